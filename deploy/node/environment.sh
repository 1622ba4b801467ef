# shellcheck shell=bash source=/dev/null
# Sourced before every `ray` command on a machine of the cluster.
. ~/.venv/bin/activate
# Ray requires the token in ~/.ray/auth_token of jobs and nodes alike.
export RAY_AUTH_MODE=token
# The launcher sets both for its own commands. Workers would inherit them, and have one thread and no warnings.
unset OMP_NUM_THREADS PYTHONWARNINGS
# Ray keeps many files open.
ulimit -n "$(ulimit -H -n)"
