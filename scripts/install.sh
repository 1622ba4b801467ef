#!/bin/sh
# Install the project with one of its extras into .venv: scripts/install.sh PYTHON EXTRA
# .venv is made if it is missing. What constraints.txt pins is installed by uv, or by pip where uv cannot be had;
# INSTALLER=pip leaves uv out.
set -eu
python=$1
extra=$2
cd "$(dirname "$0")/.."

fail() {
    echo "error: $1" >&2
    exit 1
}

if [ ! -x .venv/bin/python ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
        || fail "Python 3.11 or later is needed, and '$python' is not one; install python3.11, or name one: make PYTHON=..."
    "$python" -c 'import ensurepip, venv' 2> /dev/null \
        || fail "$python has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv)"
    "$python" -m venv .venv
fi

pip() {
    .venv/bin/python -m pip "$@"
}

if [ "${INSTALLER:-uv}" = uv ] && pip install --quiet --constraint constraints.txt uv; then
    # uv does not read pip's configuration: hand it the index.
    index=${PIP_INDEX_URL:-$(pip config get global.index-url 2> /dev/null || true)}
    if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}" ]; then
        export UV_DEFAULT_INDEX="$index"
    fi
    .venv/bin/uv pip install --python .venv/bin/python --constraint constraints.txt --editable ".[$extra]"
else
    echo "Installing with pip, which takes several times as long as uv would"
    pip install --progress-bar on --constraint constraints.txt --editable ".[$extra]"
fi
