#!/bin/bash
# Sets up a machine of the cluster: a C compiler, Python's headers, and the environment of constraints.txt in ~/.venv.
# Running it again takes a second, as long as pyproject.toml and constraints.txt are unchanged.
set -euo pipefail
code=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# models/*.c are compiled for the CPU at hand; Triton compiles its launchers against Python's headers.
packages=(python3-venv python3-dev gcc libc6-dev)
if ! dpkg --status "${packages[@]}" > /dev/null 2>&1; then
    # A new machine first updates itself, and holds apt's lock meanwhile.
    sudo apt-get -q -o DPkg::Lock::Timeout=600 update
    sudo DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 install "${packages[@]}"
fi

wanted=$(cat "$code/pyproject.toml" "$code/constraints.txt" | sha256sum)
if [ ! -f ~/.venv/.ready ] || [ "$(< ~/.venv/.ready)" != "$wanted" ]; then
    rm -rf ~/.venv
    python3 -m venv ~/.venv
    # uv checks every file against the hashes of the constraints, and pip checks uv.
    awk '/^uv==/,!/\\$/' "$code/constraints.txt" > ~/.venv/uv.txt
    ~/.venv/bin/pip install --no-cache-dir --progress-bar off --require-hashes --requirement ~/.venv/uv.txt
    # The head's autoscaler requests machines with boto3.
    ~/.venv/bin/uv pip install --python ~/.venv/bin/python --no-cache --constraint "$code/constraints.txt" \
        --build-constraint "$code/constraints.txt" --editable "$code" boto3
    echo "$wanted" > ~/.venv/.ready
fi

# For the shells of `ray attach`, `ray exec` and `ray down`.
line=". $code/deploy/node/environment.sh"
grep -qxF "$line" ~/.bashrc || echo "$line" >> ~/.bashrc
