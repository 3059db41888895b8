# The virtual environment: made anew when it does not work here, filled anew when pyproject.toml
# changes.

# Debian and Ubuntu have these two in a package of their own, python3-venv.
python_has_venv() {
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1
}

python_ready() {
    if ! venv_works; then
        make_venv
    fi
    python_key=$({ cat pyproject.toml; .venv/bin/python --version; } | sha256sum | cut -c 1-16)
    [ -e ".venv/.ready-$python_key" ] || install_packages
    # Where Python is told not to write bytecode, as many container images do, every process would
    # compile anew what it imports: half of the time in which one starts. A plain user may not.
    .venv/bin/python -m compileall -q src bench demo tests >/dev/null 2>&1 || :
}

install_packages() {
    [ -w .venv ] || die "pyproject.toml has changed, and .venv is another user's: \
run './run setup' as that user (sudo ./run setup)"
    step "Python packages that pyproject.toml names, into .venv"
    quietly "pip install" .venv/bin/python -m pip install --disable-pip-version-check -e '.[dev]'
    rm -f .venv/.ready-*
    : >".venv/.ready-$python_key"
}

# False also when the folder was moved or the interpreter was replaced by another version: the
# programs in .venv name the place where they were installed.
venv_works() {
    [ -x .venv/bin/python ] && [ -r .venv/bin/pip ] &&
        .venv/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
        head -n 1 .venv/bin/pip | grep -qF "$root/.venv/bin/python"
}

make_venv() {
    command -v python3 >/dev/null 2>&1 ||
        die "Python is not installed: run './run setup' as root (sudo ./run setup)"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "Python 3.11 or newer is needed, and python3 is $(python3 --version)"
    python_has_venv ||
        die "Python has no venv: run './run setup' as root (sudo ./run setup), or install python3-venv"
    step "virtual environment in .venv ($(python3 --version))"
    quietly "making .venv" python3 -m venv --clear .venv
}
