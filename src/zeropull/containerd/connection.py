"""One gRPC channel to containerd, with the namespace and the lease that go with every call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from zeropull.containerd.statuses import error_of

CALL_TIMEOUT_S = 60.0
MAX_MESSAGE_BYTES = 16 << 20  # containerd's own limit

_Response = TypeVar("_Response", bound=Message)

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Channels of one process to one socket path must not be shared: the containerd behind a path
    # may be another one after a test or a relaunch.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass(frozen=True, slots=True)
class Connection:
    """A channel as one namespace, and one lease if there is one, sees it."""

    channel: grpc.aio.Channel
    namespace: str
    lease: str | None = None

    def under(self, lease: str) -> Connection:
        """The same channel; what is made through it is kept by `lease`."""
        return replace(self, lease=lease)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        namespace = (("containerd-namespace", self.namespace),)
        return namespace if self.lease is None else (*namespace, ("containerd-lease", self.lease))

    async def call(
        self,
        method: str,
        request: Message,
        response: type[_Response],
        *,
        timeout_s: float | None = CALL_TIMEOUT_S,
    ) -> _Response:
        """One request, one answer. `method`: "package.Service/Name"; None = no time-out.

        Raises:
            ZeropullError: by the table in `statuses`.
        """
        caller = self.channel.unary_unary(
            f"/{method}",
            request_serializer=_serialize,
            response_deserializer=response.FromString,
        )
        try:
            answer: _Response = await caller(request, metadata=self.metadata, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise error_of(error.code(), error.details(), method) from error
        return answer

    async def stream(
        self,
        method: str,
        request: Message,
        response: type[_Response],
        *,
        timeout_s: float | None = CALL_TIMEOUT_S,
    ) -> AsyncIterator[_Response]:
        """One request, many answers. Raises as `call` does, at any step."""
        caller = self.channel.unary_stream(
            f"/{method}",
            request_serializer=_serialize,
            response_deserializer=response.FromString,
        )
        try:
            async for answer in caller(request, metadata=self.metadata, timeout=timeout_s):
                yield answer
        except grpc.aio.AioRpcError as error:
            raise error_of(error.code(), error.details(), method) from error


def open_channel(socket: Path) -> grpc.aio.Channel:
    """A channel that connects at its first use, and again whenever containerd comes back."""
    return grpc.aio.insecure_channel(f"unix:{socket}", options=_CHANNEL_OPTIONS)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
