# The virtual environment, made anew when pyproject.toml or the interpreter changes.

python_has_venv() {
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1
}

python_ready() {
    command -v python3 >/dev/null 2>&1 || die "python3 is not installed: run './run setup' as root"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "Python 3.11 or newer is needed, and python3 is $(python3 --version)"
    python_key=$({ cat pyproject.toml; python3 --version; } | sha256sum | cut -c 1-16)
    [ -e ".venv/.ready-$python_key" ] && return
    python_has_venv || die "Python has no venv: install python3-venv, or run './run setup' as root"
    step "virtual environment in .venv"
    [ -x .venv/bin/python ] || quietly "making .venv" python3 -m venv .venv
    say "installing what pyproject.toml names"
    quietly "pip install" .venv/bin/python -m pip install --disable-pip-version-check -e '.[dev]'
    rm -f .venv/.ready-*
    : >".venv/.ready-$python_key"
}
