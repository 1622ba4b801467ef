# shellcheck shell=bash source=/dev/null
# Sourced before every `ray` command on a machine of the cluster.
. ~/.venv/bin/activate
# Nobody without the token of ~/.ray/auth_token gets in, jobs and nodes alike.
export RAY_AUTH_MODE=token
# The launcher sets both for its own commands, and every worker would inherit them: one thread each, no warnings.
unset OMP_NUM_THREADS PYTHONWARNINGS
# Ray keeps many files open.
ulimit -n "$(ulimit -H -n)"
