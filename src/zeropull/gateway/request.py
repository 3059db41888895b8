"""One request of a client as it is read, and what answers it."""

from __future__ import annotations

from typing import Protocol

from zeropull.awsprotocol.sigv4 import SignedHead

_INVOCATIONS = b"/endpoints/"


class Handler(Protocol):
    """Answers one request."""

    def start(self) -> None:
        """The head is there; the body follows."""

    def on_chunk(self, data: bytes) -> None: ...
    def on_complete(self) -> None: ...
    def on_client_gone(self) -> None: ...
    def on_client_writable(self, writable: bool) -> None: ...


class Request:
    """`chunks` holds a body that came before the handler was started.

    `is_invocation`: it is for a model and no other part of the API; nothing else decides that.
    """

    __slots__ = (
        "chunks",
        "complete",
        "headers",
        "http10",
        "is_invocation",
        "keep_alive",
        "method",
        "path",
        "query",
        "received_s",
        "signed",
        "target",
    )

    def __init__(self, target: bytes) -> None:
        self.target = target
        self.path, _, self.query = target.partition(b"?")
        self.is_invocation = self.path.startswith(_INVOCATIONS)
        self.method = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.keep_alive = True
        self.http10 = False
        self.complete = False
        self.chunks: list[bytes] = []
        self.received_s = 0.0
        self.signed: SignedHead | None = None  # once its signature was found to be right

    @property
    def length_bytes(self) -> int:
        """Of the body, as the head says; 0 when it does not say."""
        for name, value in self.headers:
            if name.lower() == b"content-length":
                return int(value)
        return 0
