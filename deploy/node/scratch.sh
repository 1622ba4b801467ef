#!/bin/bash
# Creates /mnt/scratch/spill, where Ray spills objects, on local NVMe if there is any, otherwise on the root disk. It
# holds only Ray's objects, which are lost with the machine.
set -euo pipefail

if ! mountpoint --quiet /mnt/scratch; then
    sudo mkdir -p /mnt/scratch
    disk=$(lsblk --nodeps --noheadings --output PATH,MODEL | awk '/Instance Storage/ { print $1 }' | head -n 1)
    if mountpoint --quiet /opt/dlami/nvme; then # mounted by the Deep Learning AMI
        sudo mount --bind /opt/dlami/nvme /mnt/scratch
    elif [ -n "$disk" ]; then
        sudo mkfs.ext4 -q -F -m 0 "$disk"
        sudo mount -o noatime "$disk" /mnt/scratch
    fi
fi
sudo install --directory --mode 700 --owner "$(id -un)" /mnt/scratch/spill
