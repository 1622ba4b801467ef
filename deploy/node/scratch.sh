#!/bin/bash
# Gives /mnt/scratch/spill, where Ray puts objects that memory does not hold: on local NVMe, on the root disk if there
# is none. What lies there is lost with the machine, and nothing but Ray's objects does.
set -euo pipefail

if ! mountpoint --quiet /mnt/scratch; then
    sudo mkdir -p /mnt/scratch
    disk=$(lsblk --nodeps --noheadings --output PATH,MODEL | awk '/Instance Storage/ { print $1 }' | head -n 1)
    if mountpoint --quiet /opt/dlami/nvme; then # the Deep Learning AMI has mounted it by itself
        sudo mount --bind /opt/dlami/nvme /mnt/scratch
    elif [ -n "$disk" ]; then
        sudo mkfs.ext4 -q -F -m 0 "$disk"
        sudo mount -o noatime "$disk" /mnt/scratch
    fi
fi
sudo install --directory --mode 700 --owner "$(id -un)" /mnt/scratch/spill
