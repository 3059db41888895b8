"""The sockets of the client port: bound by us, or made by systemd.

They outlive every gateway: connections that no gateway has accepted yet wait in them.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

BACKLOG = 4096  # connections that wait for a gateway; the kernel's net.core.somaxconn caps it
_FIRST_PASSED = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)


def bind_sockets(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of `host`; port 0 takes a free one, the same for all.

    Raises:
        OSError: one of them is taken, or not an address of this machine.
    """
    sockets: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            made = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            chosen = port or sockets[0].getsockname()[1]
            made.bind((address, chosen))
            made.listen(BACKLOG)
    except OSError:
        close_all(sockets)
        raise
    return sockets


def sockets_from_systemd(environment: Mapping[str, str], pid: int) -> list[socket.socket]:
    """What systemd listens on for this very process (sd_listen_fds(3)); [] without activation."""
    if environment.get("LISTEN_PID") != str(pid):
        return []
    count = int(environment.get("LISTEN_FDS", "0"))
    sockets = [socket.socket(fileno=_FIRST_PASSED + number) for number in range(count)]
    for passed in sockets:
        passed.set_inheritable(False)
    return sockets


def listen_on(sockets: Iterable[socket.socket], host: str, port: int) -> bool:
    """Whether these listen where `host` and `port` say; port 0 is any."""
    there = {found.getsockname()[:2] for found in sockets}
    wanted = {address for _, address in _addresses(host, port)}
    if {address for address, _ in there} != wanted:
        return False
    return port == 0 or {number for _, number in there} == {port}


def address_of(sockets: list[socket.socket]) -> tuple[str, int]:
    """The first one's."""
    host, port = sockets[0].getsockname()[:2]
    return host, port


def close_all(sockets: Iterable[socket.socket]) -> None:
    for made in sockets:
        made.close()


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    """In the resolver's order, each once."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))
