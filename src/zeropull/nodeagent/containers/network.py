"""A network namespace for every copy, joined to the node's bridge by a veth pair.

Names are derived from the copy's id, so that whatever a killed agent left half made is found and
made anew or removed. Namespaces are made by a thread of its own that unshares and ends: nothing is
forked, and no other thread ever leaves the node's namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import ipaddress
import os
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from zeropull.errors import NoCapacity

NETNS_DIR = Path("/run/netns")
INTERFACE = "eth0"
_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class CopyNetwork:
    """What one copy's network is made of."""

    namespace: str  # name below NETNS_DIR
    link: str  # the node's end of the veth pair, at most 15 characters
    address: str
    prefix: int
    gateway: str
    bridge: str
    mtu: int

    @property
    def path(self) -> Path:
        return NETNS_DIR / self.namespace


def choose_address(subnet: str, first: int, last: int, used: Collection[str]) -> str:
    """The lowest free address of the node's range.

    Raises:
        NoCapacity: all are taken.
    """
    network = ipaddress.ip_network(subnet)
    for host in range(first, last + 1):
        address = str(network.network_address + host)
        if address not in used:
            return address
    raise NoCapacity(
        f"all {last - first + 1} container addresses of {subnet} are in use on this node"
    )


def network_names(node_namespace: str, copy_id: str) -> tuple[str, str]:
    """Name of the namespace and of the link: the same for the same copy, always.

    The namespace's name begins with the node's own, by which the provider finds what an agent that
    is gone has left. The link needs no such name: both of its ends go with the namespaces.
    """
    key = hashlib.sha256(copy_id.encode()).hexdigest()
    return f"{node_namespace}-{key[:12]}", f"zp{key[:12]}"


def hardware_address(address: str) -> str:
    """A locally administered one that follows from the address: whoever gets the address next has
    it too, so that no neighbour's ARP entry is ever stale after a restart."""
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x7A, *ipaddress.ip_address(address).packed))


def make_network(network: CopyNetwork) -> None:
    """Make it from nothing; remains of an earlier attempt go first. Blocking."""
    remove_network(network.namespace, network.link)
    NETNS_DIR.mkdir(parents=True, exist_ok=True)
    network.path.touch(mode=0o444)
    try:
        _in_thread(lambda: _bind_new_namespace(network.path))
        with IPRoute() as netlink, network.path.open("rb") as namespace:
            netlink.link(
                "add",
                ifname=network.link,
                kind="veth",
                peer={
                    "ifname": INTERFACE,
                    "net_ns_fd": namespace.fileno(),
                    "mtu": network.mtu,
                    "address": hardware_address(network.address),
                },
            )
            (bridge,) = netlink.link_lookup(ifname=network.bridge)
            (link,) = netlink.link_lookup(ifname=network.link)
            netlink.link("set", index=link, mtu=network.mtu, master=bridge, state="up")
        _in_thread(lambda: _configure_inside(network))
    except BaseException:
        remove_network(network.namespace, network.link)
        raise


def remove_network(namespace: str, link: str) -> None:
    """Take link and namespace away, whatever of them is there. Blocking."""
    with IPRoute() as netlink:
        for index in netlink.link_lookup(ifname=link):
            with contextlib.suppress(NetlinkError):
                netlink.link("del", index=index)
    path = NETNS_DIR / namespace
    while _libc.umount2(os.fsencode(path), _MNT_DETACH) == 0:
        continue
    path.unlink(missing_ok=True)


def _bind_new_namespace(path: Path) -> None:
    if _libc.unshare(_CLONE_NEWNET) != 0:
        _raise("unshare(CLONE_NEWNET)")
    source = f"/proc/self/task/{threading.get_native_id()}/ns/net".encode()
    if _libc.mount(source, os.fsencode(path), b"none", _MS_BIND, None) != 0:
        _raise(f"mount --bind {path}")


def _configure_inside(network: CopyNetwork) -> None:
    descriptor = os.open(network.path, os.O_RDONLY)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            _raise(f"setns {network.path}")
    finally:
        os.close(descriptor)
    with IPRoute() as netlink:
        (loopback,) = netlink.link_lookup(ifname="lo")
        netlink.link("set", index=loopback, state="up")
        (index,) = netlink.link_lookup(ifname=INTERFACE)
        netlink.addr("add", index=index, address=network.address, prefixlen=network.prefix)
        netlink.link("set", index=index, state="up")
        netlink.route("add", dst="default", gateway=network.gateway)


def _in_thread(work: Callable[[], None]) -> None:
    """Run `work` in a thread that ends with it, since it changes the thread's namespace."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # handed to the caller below
            failure.append(error)

    thread = threading.Thread(target=run, name="copy-network")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def _raise(what: str) -> None:
    code = ctypes.get_errno()
    raise OSError(code, f"{what}: {os.strerror(code)} ({errno.errorcode.get(code, code)})")
