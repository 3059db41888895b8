# Programs from the distribution's packages.

PATH=$PATH:/usr/sbin:/sbin   # a plain user's PATH lacks them on Debian
export PATH

must_be_root() {
    [ "$(id -u)" -eq 0 ] || die "'$1' mounts, makes namespaces and starts containers: \
run it as root (sudo ./run $1)"
}

system_supported() {
    system_id=unknown
    if [ -r /etc/os-release ]; then
        # shellcheck source=/dev/null
        system_id=$(. /etc/os-release && echo "${ID:-unknown}")
    fi
    case $system_id in
        debian | ubuntu) ;;
        *) die "packages are installed with apt-get on Debian 12/13 or Ubuntu 24.04, and this is \
'$system_id': install these programs yourself:$*" ;;
    esac
}

# Adds package $2 to the list of missing ones unless program $1 is there, whoever installed it.
need() {
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

# $1: the command of ./run that it is for; $2: the benchmark's name.
system_ready() {
    missing=
    # Docker's containerd.io brings containerd, ctr and runc too, and conflicts with Debian's
    # packages: what is on PATH is used, and only what is missing is installed.
    need containerd containerd
    need runc runc
    need ip iproute2
    need nft nftables
    need fsck.erofs erofs-utils
    need debootstrap debootstrap
    need pigz pigz
    need ldd libc-bin
    case $1 in
        setup | test)   # file systems that fill up, and rules as Docker makes them
            need mkfs.ext4 e2fsprogs
            need iptables-nft iptables
            need fusermount3 fuse3 ;;   # images that arrive, as on older kernels
    esac
    case $1 in
        setup | test | bench)   # erofs-utils come from Debian, whose keys Ubuntu has in a package
            [ -e "$DEBIAN_KEYRING" ] || ! command -v apt-get >/dev/null 2>&1 ||
                missing="$missing debian-archive-keyring" ;;
    esac
    if [ "$1" = bench ] && [ "${2:-}" = gateway ]; then   # the load, the upstream, the yardstick
        need wrk wrk
        need nginx nginx
        need haproxy haproxy
    fi
    # The tests' image is made of the distribution's own Python.
    [ -x /usr/bin/python3 ] || missing="$missing python3"
    python_has_venv || missing="$missing python3-venv"
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"
    [ -z "$missing" ] && return
    system_supported "$missing"
    step "packages:$missing"
    package_lists_ready
    install_without_services
}

# Once per run: a failure shows when something is to be fetched.
package_lists_ready() {
    [ -z "${package_lists_fetched:-}" ] || return 0
    package_lists_fetched=yes
    quietly "apt-get update" update_package_lists
}

# A system that has just started fetches its own updates, and holds apt's locks meanwhile.
APT_PATIENCE_S=300

# apt-get can wait for dpkg's lock by itself, but not for that of the lists.
update_package_lists() {
    update_deadline=$(($(date +%s) + APT_PATIENCE_S))
    until update_said=$(LC_ALL=C apt-get update 2>&1); do
        printf '%s\n' "$update_said"
        case $update_said in
            *"Could not get lock"*) [ "$(date +%s)" -lt "$update_deadline" ] || return 1 ;;
            *) return 1 ;;
        esac
        sleep 2
    done
}

# Installs $missing. Packages start and enable their services when they are installed: a policy
# forbids the start, and what was newly enabled is disabled again. Ubuntu's needrestart would
# restart services of others.
install_without_services() {
    links_before=$(service_links)
    trap 'services_as_before' EXIT
    trap 'exit 130' INT TERM
    forbid_starts
    # shellcheck disable=SC2086  # a list of package names
    quietly "installing$missing" env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get install -o DPkg::Lock::Timeout="$APT_PATIENCE_S" \
        -y --no-remove --no-install-recommends $missing
    services_as_before
    trap - EXIT INT TERM
}

POLICY=/usr/sbin/policy-rc.d
POLICY_ASIDE=$POLICY.before-zeropull

forbid_starts() {
    if [ -x "$POLICY" ]; then
        policy_answer=0
        "$POLICY" containerd start >/dev/null 2>&1 || policy_answer=$?
        [ "$policy_answer" -ne 101 ] || return 0   # it forbids starts itself
        mv "$POLICY" "$POLICY_ASIDE"
    fi
    policy_is_ours=yes
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
}

# What is enabled: links in folders named for the unit that wants them.
service_links() {
    find /etc/systemd/system -path '*.wants/*' -type l 2>/dev/null || true
}

services_as_before() {
    if [ "${policy_is_ours:-no}" = yes ]; then
        rm -f "$POLICY"
        [ ! -e "$POLICY_ASIDE" ] || mv "$POLICY_ASIDE" "$POLICY"
        policy_is_ours=no
    fi
    service_links | while read -r link; do
        printf '%s\n' "$links_before" | grep -qxF "$link" || rm -f "$link"
    done
}

# The state of the demo and of many tests lies in a temporary folder, and no image can be mounted
# from files on tmpfs, which is what Debian 13 has in /tmp.
temporary_folder_ready() {
    temporary_folder=${TMPDIR:-/tmp}
    on_disk "$temporary_folder" && return
    on_disk /var/tmp || return 0   # the demo tells what is wrong with it
    say "temporary files go to /var/tmp: no image can be mounted from $temporary_folder"
    TMPDIR=/var/tmp
    export TMPDIR
}

on_disk() {
    case $(stat -f -c %T "$1") in
        tmpfs | ramfs | overlayfs) return 1 ;;
    esac
}
