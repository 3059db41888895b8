"""Keeps a duplicate of the events' group, so that no restart of the receiver drops its marks.

When the last duplicate of a group is closed, the kernel lets every waiting reader of a hole go on,
with zeros. So a process that does nothing else holds one: `serve`. It makes the group at its start,
unless the receiver, which has another duplicate, hands its own over first. One call for each
connection, over a Unix socket that only root may use:

    b"take"            the answer is the group's descriptor (SCM_RIGHTS), with b"new" the first time
                       it is handed out, else b"old"
    b"keep" + group    hold this group from now on; the answer is b"kept"
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from zeropull.errors import Unavailable
from zeropull.linux import precontent

CALL_TIMEOUT_S = 5.0
_TAKE, _KEEP, _KEPT, _NEW, _OLD = b"take", b"keep", b"kept", b"new", b"old"


def serve(path: Path) -> None:
    """Hold a group until the process ends. Never returns.

    Raises:
        OSError: this kernel has no such events, or the socket cannot be made.
    """
    group, is_new = -1, True
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        old_mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old_mask)
        listener.listen(16)
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(CALL_TIMEOUT_S)
                message, descriptors, _, _ = socket.recv_fds(connection, 16, 1)
                if message == _KEEP and descriptors:
                    if group >= 0:
                        os.close(group)
                    group, is_new = descriptors[0], False
                    connection.send(_KEPT)
                elif message == _TAKE:
                    if group < 0:
                        group = precontent.open_group()
                    socket.send_fds(connection, [_NEW if is_new else _OLD], [group])
                    is_new = False


def take_group(path: Path) -> tuple[int, bool]:
    """A duplicate of the holder's group, and whether it is new: nothing was marked before.

    Raises:
        Unavailable: the holder does not answer, or its kernel has no such events.
    """
    try:
        with _connected(path) as connection:
            connection.send(_TAKE)
            message, descriptors, _, _ = socket.recv_fds(connection, 16, 1)
    except OSError as error:
        raise Unavailable(f"the holder at {path} does not answer: {error}") from error
    if not descriptors:
        raise Unavailable(f"the holder at {path} has no group: this kernel may have no such events")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0], message == _NEW


def keep_group(path: Path, group: int) -> None:
    """Hand `group` to a holder that was started anew.

    Raises:
        Unavailable: it does not answer.
    """
    try:
        with _connected(path) as connection:
            socket.send_fds(connection, [_KEEP], [group])
            if connection.recv(16) == _KEPT:
                return
    except OSError as error:
        raise Unavailable(f"the holder at {path} does not answer: {error}") from error
    raise Unavailable(f"the holder at {path} did not keep the group")


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(CALL_TIMEOUT_S)
        connection.connect(str(path))
        yield connection
