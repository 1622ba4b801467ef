#!/bin/sh
# Install the project with one of its extras into .venv: scripts/install.sh PYTHON EXTRA
# .venv is made if it is missing. What constraints.txt pins is installed by uv, which compares the files with the hashes
# there, or by pip where uv cannot be had, which then compares versions alone; INSTALLER=pip leaves uv out.
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

awk '/^uv==/,!/\\$/' constraints.txt > .venv/uv.txt
if [ "${INSTALLER:-uv}" = uv ] && pip install --quiet --require-hashes --requirement .venv/uv.txt; then
    # uv does not read pip's configuration: hand it the index.
    index=${PIP_INDEX_URL:-$(pip config get global.index-url 2> /dev/null || true)}
    if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}" ]; then
        export UV_DEFAULT_INDEX="$index"
    fi
    .venv/bin/uv pip install --python .venv/bin/python --constraint constraints.txt --build-constraint constraints.txt \
        --editable ".[$extra]"
else
    echo "Installing with pip, which takes several times as long as uv would and compares no hashes"
    # With hashes in a constraint pip asks for one of everything, and this project has none.
    sed -e '/--hash=/d' -e 's/ *\\$//' constraints.txt > .venv/versions.txt
    pip install --progress-bar on --constraint .venv/versions.txt --editable ".[$extra]"
fi
