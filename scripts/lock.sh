# Two calls of ./run at once: one makes everything ready, the other one waits for it.

# flock(1) is part of util-linux. The lock goes with its last holder, however that ends.
lock_set_up() {
    command -v flock >/dev/null 2>&1 || return 0
    mkdir -p build 2>/dev/null && : 2>/dev/null >>build/.set-up-lock || return 0   # another user's
    exec 9>>build/.set-up-lock
    flock -n 9 && return
    step "another ./run makes things ready: waiting for it"
    flock 9
}

# Before what was asked for begins: its processes must not hold the lock.
unlock_set_up() {
    exec 9>&-
}
