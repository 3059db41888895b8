# What ./run says.

step() {
    printf '== %s\n' "$*"
}

say() {
    printf '   %s\n' "$*"
}

die() {
    printf './run: %s\n' "$*" >&2
    exit 1
}

# Runs a command quietly; its last lines are shown only when it fails.
# $1: what it is for. The rest: the command.
quietly() {
    quietly_what=$1
    shift
    mkdir -p build/logs
    if ! "$@" >build/logs/last-step.log 2>&1; then
        tail -n 12 build/logs/last-step.log >&2
        die "$quietly_what failed (the whole output: build/logs/last-step.log). \
Is the network there, and does this machine reach its package registries?"
    fi
}
