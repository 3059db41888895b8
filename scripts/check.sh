# The checks that need no privileges: all are run, and a summary tells which failed.

check() {
    check_summary=
    check_failures=0
    check_started=$(date +%s)
    check_step "format"           .venv/bin/ruff format --check .
    check_step "lint"             .venv/bin/ruff check .
    check_step "types"            .venv/bin/mypy
    check_step "import contracts" .venv/bin/lint-imports
    check_step "unit tests"       .venv/bin/python -m pytest -q tests/unit --durations=3
    step "summary of the checks ($(($(date +%s) - check_started)) s)"
    printf '%s' "$check_summary"
    [ "$check_failures" -eq 0 ] || die "checks that failed: $check_failures"
}

# $1: its name. The rest: the command.
check_step() {
    check_name=$1
    shift
    step "$check_name"
    check_step_started=$(date +%s)
    if "$@"; then
        check_result=ok
    else
        check_result=FAILED
        check_failures=$((check_failures + 1))
    fi
    check_line=$(printf '   %-18s %-7s %3s s' \
        "$check_name" "$check_result" "$(($(date +%s) - check_step_started))")
    check_summary="$check_summary$check_line
"
}
