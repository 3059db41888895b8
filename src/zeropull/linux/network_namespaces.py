"""Named network namespaces, and running something inside one without leaving the process.

A namespace is entered by a thread of its own, which ends afterwards: network namespaces belong to
threads, and a thread that has changed its namespace is of no use to anybody else. Only the network
namespace is entered. `ip netns exec` would remount /sys, after which runc finds no cgroups.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from zeropull.errors import NotFound, Unavailable
from zeropull.linux import libc
from zeropull.linux.mounts import bind, make_shared, unmount

NETNS_DIR = Path("/run/netns")  # as ip-netns(8) has it
_CLONE_NEWNET = 0x40000000
T = TypeVar("T")


def create_netns(name: str) -> None:
    """Make the namespace; nothing happens when it is there already."""
    if netns_exists(name):
        return
    NETNS_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    _own_directory()
    path = NETNS_DIR / name
    path.touch(mode=0o444)

    def hold() -> None:
        try:
            libc.call("unshare", _CLONE_NEWNET)
        except OSError as error:
            raise _unavailable(f"cannot make the network namespace {name}", error) from error
        bind(Path("/proc/thread-self/ns/net"), path)

    try:
        _in_thread(hold)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def delete_netns(name: str) -> None:
    """Remove the name; the namespace itself goes with its last process. Idempotent.

    Raises:
        Unavailable: another mount of the directory hides a second mount of the namespace.
    """
    path = NETNS_DIR / name
    while unmount(path, lazy=True):
        continue
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise Unavailable(
            f"network namespace {name} is mounted below {NETNS_DIR}, which `ip netns add` has "
            "mounted over itself since: restart the machine, or take that mount away"
        ) from error


def release_directory() -> None:
    """When no namespace is left, the directory need not be a mount any more."""
    with suppress(OSError):
        if not any(NETNS_DIR.iterdir()):
            unmount(NETNS_DIR)


def netns_exists(name: str) -> bool:
    """True for a real namespace; the empty file of a half-finished creation is none."""
    try:
        return (NETNS_DIR / name).stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except OSError:
        return False


def list_netns(prefix: str) -> list[str]:
    """Names in /run/netns that begin with `prefix`, half-made ones too."""
    with suppress(FileNotFoundError):
        return sorted(path.name for path in NETNS_DIR.iterdir() if path.name.startswith(prefix))
    return []


def netns_identity(name: str) -> tuple[int, int]:
    """Device and inode, the same as of /proc/<pid>/ns/net of every process inside."""
    status = (NETNS_DIR / name).stat()
    return status.st_dev, status.st_ino


def in_netns(name: str, work: Callable[[], T]) -> T:
    """Run `work` in the namespace and return its result. Processes that it starts stay inside.

    Raises:
        NotFound: there is no such namespace.
    """
    if not netns_exists(name):
        raise NotFound(f"network namespace {name} does not exist")

    def enter() -> T:
        try:
            enter_netns(name)
        except OSError as error:
            raise _unavailable(f"cannot enter the network namespace {name}", error) from error
        return work()

    return _in_thread(enter)


def enter_netns(name: str) -> None:
    """Move the calling thread into the namespace, for good.

    Raises:
        OSError: there is no such namespace, or the kernel refuses.
    """
    descriptor = os.open(NETNS_DIR / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.call("setns", descriptor, _CLONE_NEWNET, about=NETNS_DIR / name)
    finally:
        os.close(descriptor)


def _own_directory() -> None:
    """Make the directory a shared mount of itself before anything is mounted below it.

    The first `ip netns add` does so. Done with namespaces there it would mount each of them twice,
    of which nobody can reach the lower one to remove it (ip-netns(8), iproute2's ipnetns.c).
    """
    try:
        make_shared(NETNS_DIR)
    except OSError as error:
        if error.errno != errno.EINVAL:  # it is no mount
            raise
        if not any(NETNS_DIR.iterdir()):
            bind(NETNS_DIR, NETNS_DIR)
            make_shared(NETNS_DIR)


def _in_thread(work: Callable[[], T]) -> T:
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="zeropull-netns", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _unavailable(message: str, error: OSError) -> Unavailable:
    return Unavailable(f"{message}: {error.strerror}")
