# Programs from the distribution's packages.

must_be_root() {
    [ "$(id -u)" -eq 0 ] || die "'$1' mounts, makes namespaces and starts containers: run it as root (sudo ./run $1)"
}

system_supported() {
    [ -r /etc/os-release ] || die "this is not Linux as we know it: Debian 12/13 or Ubuntu 24.04 is needed"
    # shellcheck source=/dev/null
    system_id=$(. /etc/os-release && echo "${ID:-}")
    case $system_id in
        debian | ubuntu) ;;
        *) die "packages are installed with apt-get on Debian 12/13 or Ubuntu 24.04, and this is '$system_id': \
install containerd, runc, iproute2, nftables, python3-venv, erofs-utils, debootstrap and pigz yourself" ;;
    esac
}

# Adds package $2 to the list of missing ones unless program $1 is there, whoever installed it.
need() {
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

system_ready() {
    PATH=$PATH:/usr/sbin:/sbin
    export PATH
    missing=
    # Docker's containerd.io brings containerd, ctr and runc too, and conflicts with Debian's
    # packages: what is on PATH is used, and only what is missing is installed.
    need containerd containerd
    need runc runc
    need ip iproute2
    need nft nftables
    need mkfs.erofs erofs-utils
    need debootstrap debootstrap
    need pigz pigz
    need ldd libc-bin
    [ -x /usr/bin/python3 ] || missing="$missing python3"
    python_has_venv || missing="$missing python3-venv"
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"
    [ -z "$missing" ] && return
    system_supported
    step "packages:$missing"
    quietly "apt-get update" apt-get update
    install_without_services
}

# Installs $missing. Debian's packages start and enable their services when they are installed:
# a policy forbids the start, and what was newly enabled is disabled again.
install_without_services() {
    wants=/etc/systemd/system/multi-user.target.wants
    enabled_before=" $(ls "$wants" 2>/dev/null | tr '\n' ' ') "
    policy=/usr/sbin/policy-rc.d
    policy_is_ours=no
    if [ ! -e "$policy" ]; then
        policy_is_ours=yes
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f "$policy"' EXIT
        trap 'exit 130' INT TERM
    fi
    # shellcheck disable=SC2086  # a list of package names
    quietly "installing$missing" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-remove --no-install-recommends $missing
    for unit in containerd.service docker-registry.service nftables.service; do
        case $enabled_before in
            *" $unit "*) ;;
            *) rm -f "$wants/$unit" ;;
        esac
    done
    if [ "$policy_is_ours" = yes ]; then
        rm -f "$policy"
        trap - EXIT INT TERM
    fi
}
