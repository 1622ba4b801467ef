#!/bin/sh
# Install the project with one of its extras into .venv: scripts/install.sh PYTHON EXTRA
# Creates .venv if it is missing. uv installs the versions that constraints.txt pins and checks the hashes there. If uv
# is not available, pip installs the same versions without checking hashes; INSTALLER=pip skips uv.
# Prints a line per phase; the output of the tools goes to .venv/install.log.
set -eu
python=$1
extra=$2
cd "$(dirname "$0")/.."
log=.venv/install.log

fail() {
    echo "error: $1" >&2
    exit 1
}

# Run a command as a phase: phase NAME COMMAND...
phase() {
    printf '  %s: ' "$1"
    shift
    begin=$(date +%s)
    echo "+ $*" >> "$log"
    if "$@" >> "$log" 2>&1; then
        echo "$(($(date +%s) - begin)) s"
    else
        echo "failed"
        return 1
    fi
}

# Run the command of a phase without which the installation cannot continue.
require() {
    phase "$@" && return
    tail -n 12 "$log" >&2
    fail "the installation failed: the last lines of its log are above, all of it is in $log"
}

pip() {
    .venv/bin/python -m pip "$@"
}

if [ ! -x .venv/bin/python ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
        || fail "Python 3.11 or later is required, but '$python' is older or missing; try make PYTHON=python3.11"
    "$python" -c 'import ensurepip, venv' 2> /dev/null \
        || fail "$python has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv)"
fi
mkdir -p .venv
: > "$log"
if [ ! -x .venv/bin/python ]; then
    require "Creating .venv" "$python" -m venv .venv
fi

awk '/^uv==/,!/\\$/' constraints.txt > .venv/uv.txt
if [ "${INSTALLER:-uv}" = uv ] && phase "Installing uv" pip install --require-hashes --requirement .venv/uv.txt; then
    # uv does not read pip's configuration, so pass it pip's index.
    index=${PIP_INDEX_URL:-$(pip config get global.index-url 2> /dev/null || true)}
    if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}" ]; then
        export UV_DEFAULT_INDEX="$index"
    fi
    require "Installing sceneparse[$extra] with uv" \
        .venv/bin/uv pip install --python .venv/bin/python --constraint constraints.txt \
        --build-constraint constraints.txt --editable ".[$extra]"
else
    echo "  Installing with pip, which is several times slower than uv and does not check hashes"
    # If any constraint has a hash, pip requires one for every package, and this project has none.
    sed -e '/--hash=/d' -e 's/ *\\$//' constraints.txt > .venv/versions.txt
    require "Installing sceneparse[$extra] with pip" \
        pip install --constraint .venv/versions.txt --editable ".[$extra]"
fi
