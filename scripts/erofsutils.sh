# A newer erofs-utils than Debian 12's 1.5 and Ubuntu 24.04's 1.7, in build/erofs-utils: a second
# reader of our images in the tests, and the mkfs.erofs that reads tar for the benchmark of
# containerd 2.

DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
EROFS_UTILS_MINIMUM=1.8
EROFS_UTILS_SUITE=trixie
EROFS_UTILS_LIBRARIES="libc6 libdeflate0 liblz4-1 liblzma5 libpcre2-8-0 libselinux1 libuuid1
    libxxhash0 libzstd1 zlib1g"

# Never fails: without it the tests that want it are skipped, and say so.
erofs_utils_ready() {
    [ -e build/erofs-utils/.ready-$EROFS_UTILS_SUITE ] && return
    erofs_utils_are_recent && return
    if [ ! -e "$DEBIAN_KEYRING" ]; then
        step "erofs-utils $EROFS_UTILS_MINIMUM is left out: no $DEBIAN_KEYRING here"
        return
    fi
    step "erofs-utils of Debian $EROFS_UTILS_SUITE with its libraries, unpacked into \
build/erofs-utils"
    erofs_utils_unpacked || step "erofs-utils $EROFS_UTILS_MINIMUM could not be had; what needs it \
is skipped"
}

erofs_utils_are_recent() {
    erofs_utils_version=$(fsck.erofs -V 2>&1 | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')
    [ "$(printf '%s\n%s\n' "$EROFS_UTILS_MINIMUM" "${erofs_utils_version:-0}" | sort -V |
        head -n 1)" = "$EROFS_UTILS_MINIMUM" ]
}

# apt with lists of its own: nothing of the machine's own sources or packages is touched.
erofs_utils_unpacked() {
    erofs_utils_scratch=$(mktemp -d)
    erofs_utils_done=0
    # In a subshell, whose end is not ours when a step fails.
    # shellcheck disable=SC2086  # a list of package names
    (quietly "fetching erofs-utils" sh -eu -c '
        scratch=$1 suite=$2 keyring=$3
        shift 3
        cd "$scratch"
        chmod 755 .
        mkdir -p lists/partial cache/archives/partial root
        echo "deb [signed-by=$keyring] http://deb.debian.org/debian $suite main" >sources.list
        {
            echo "Dir::Etc::sourcelist \"$scratch/sources.list\";"
            echo "Dir::Etc::sourceparts \"-\";"
            echo "Dir::State::lists \"$scratch/lists\";"
            echo "Dir::Cache \"$scratch/cache\";"
            echo "Acquire::Languages \"none\";"
            echo "APT::Sandbox::User \"root\";"
        } >apt.conf
        export APT_CONFIG="$scratch/apt.conf"
        apt-get update
        apt-get download "$@"
        for archive in *.deb; do
            dpkg-deb -x "$archive" root
        done
    ' sh "$erofs_utils_scratch" "$EROFS_UTILS_SUITE" "$DEBIAN_KEYRING" \
        $(printf "%s/$EROFS_UTILS_SUITE " erofs-utils $EROFS_UTILS_LIBRARIES)) && erofs_utils_placed && erofs_utils_done=1
    rm -rf "$erofs_utils_scratch"
    [ $erofs_utils_done -eq 1 ]
}

# Each program behind a script that starts it with the loader and the libraries it was built for.
erofs_utils_placed() {
    rm -rf build/erofs-utils
    mkdir -p build/erofs-utils/lib
    find "$erofs_utils_scratch/root" -path '*/lib/*-linux-gnu*/*.so*' ! -path '*/gconv/*' \
        -exec cp -P {} build/erofs-utils/lib/ \;
    for erofs_utils_program in fsck.erofs mkfs.erofs dump.erofs; do
        cp "$erofs_utils_scratch/root/usr/bin/$erofs_utils_program" build/erofs-utils/lib/
        cat >"build/erofs-utils/$erofs_utils_program" <<'SCRIPT'
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
for loader in "$here"/lib/ld-linux*; do
    exec "$loader" --library-path "$here/lib" "$here/lib/$(basename "$0")" "$@"
done
SCRIPT
        chmod 755 "build/erofs-utils/$erofs_utils_program"
    done
    build/erofs-utils/fsck.erofs -V >/dev/null 2>&1 || return 1
    : >"build/erofs-utils/.ready-$EROFS_UTILS_SUITE"
}
