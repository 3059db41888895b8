# The checks that need no privileges: all are run, and a summary tells which failed.

check() {
    check_summary=
    check_failures=0
    check_started=$(date +%s)
    if caches_are_ours; then
        ruff_cache= mypy_cache= imports_cache= pytest_cache=
    else
        ruff_cache=--no-cache mypy_cache=--cache-dir=/dev/null
        imports_cache=--no-cache pytest_cache=-pno:cacheprovider
    fi
    # Options without a value vanish, as they are not quoted.
    # shellcheck disable=SC2086
    {
        check_step "format"           .venv/bin/ruff format --check $ruff_cache .
        check_step "lint"             .venv/bin/ruff check $ruff_cache .
        check_step "types"            .venv/bin/mypy $mypy_cache
        check_step "import contracts" .venv/bin/lint-imports $imports_cache
        check_step "unit tests"       .venv/bin/python -m pytest -q -n 2 tests/unit --durations=3 $pytest_cache
    }
    step "summary of the checks ($(($(date +%s) - check_started)) s)"
    printf '%s' "$check_summary"
    [ "$check_failures" -eq 0 ] || die "checks that failed: $check_failures"
}

# False for a plain user where root has run them before (sudo ./run test).
caches_are_ours() {
    for cache in . .ruff_cache .mypy_cache .import_linter_cache .pytest_cache; do
        [ ! -e "$cache" ] || [ -w "$cache" ] || return 1
    done
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
