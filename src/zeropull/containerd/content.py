"""containerd's content store: manifests and configs, a few KiB each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import grpc.aio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from zeropull.containerd._generated import content_pb2
from zeropull.containerd.connection import CALL_TIMEOUT_S, Connection
from zeropull.containerd.statuses import error_of
from zeropull.errors import AlreadyExists, IntegrityError
from zeropull.oci.digests import digest_of

SERVICE = "containerd.services.content.v1.Content"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """One blob of the store; `size` in bytes."""

    digest: str
    size: int
    labels: Mapping[str, str] = field(default_factory=dict)


class ContentClient:
    """Blobs by digest."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def info(self, digest: str) -> ContentInfo:
        """Raises:
        NotFound: the store has no such blob.
        """
        answer = await self._connection.call(
            f"{SERVICE}/Info", content_pb2.InfoRequest(digest=digest), content_pb2.InfoResponse
        )
        return _info_from_message(answer.info)

    async def list(self, *filters: str) -> list[ContentInfo]:
        request = content_pb2.ListContentRequest(filters=list(filters))
        answers = self._connection.stream(
            f"{SERVICE}/List", request, content_pb2.ListContentResponse
        )
        return [_info_from_message(info) async for answer in answers for info in answer.info]

    async def arriving(self) -> dict[str, int]:
        """Bytes that are here of every blob that is being written now, by its ingest's name."""
        answer = await self._connection.call(
            f"{SERVICE}/ListStatuses",
            content_pb2.ListStatusesRequest(),
            content_pb2.ListStatusesResponse,
        )
        return {status.ref: status.offset for status in answer.statuses}

    async def read(self, digest: str) -> bytes:
        """The whole blob, held to its digest.

        Raises:
            NotFound: the store has no such blob.
            IntegrityError: the bytes are not the digest's.
        """
        request = content_pb2.ReadContentRequest(digest=digest)
        parts = self._connection.stream(f"{SERVICE}/Read", request, content_pb2.ReadContentResponse)
        blob = b"".join([part.data async for part in parts])
        if digest_of(blob) != digest:
            raise IntegrityError(f"containerd's blob {digest} has the digest {digest_of(blob)}")
        return blob

    async def write(
        self, digest: str, blob: bytes, labels: Mapping[str, str] | None = None
    ) -> None:
        """Store `blob`; one that is there already only gets the labels. Idempotent.

        Raises:
            InvalidInput: `blob` does not have this digest.
        """
        try:
            await self._write(digest, blob, labels or {})
        except AlreadyExists:
            if labels:
                await self.update_labels(digest, labels)

    async def update_labels(self, digest: str, labels: Mapping[str, str]) -> ContentInfo:
        """Set these labels and leave the others; an empty value takes one away."""
        request = content_pb2.UpdateRequest(
            info=content_pb2.Info(digest=digest, labels=dict(labels)),
            update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
        answer = await self._connection.call(
            f"{SERVICE}/Update", request, content_pb2.UpdateResponse
        )
        return _info_from_message(answer.info)

    async def delete(self, digest: str) -> None:
        request = content_pb2.DeleteContentRequest(digest=digest)
        await self._connection.call(f"{SERVICE}/Delete", request, Empty)

    async def _write(self, digest: str, blob: bytes, labels: Mapping[str, str]) -> None:
        method = f"{SERVICE}/Write"
        # The reference names the ingest: one per digest, so that a broken write is begun anew.
        ref = f"zeropull-{digest}"
        caller = self._connection.channel.stream_stream(
            f"/{method}",
            request_serializer=content_pb2.WriteContentRequest.SerializeToString,
            response_deserializer=content_pb2.WriteContentResponse.FromString,
        )
        call = caller(None, metadata=self._connection.metadata, timeout=CALL_TIMEOUT_S)
        try:
            # In step: a server that ends the call early (the blob is there) does so between two
            # of our messages, and its status reaches us instead of a broken send.
            for request in _write_requests(ref, digest, blob, labels):
                await call.write(request)
                await call.read()
            await call.done_writing()
            await call.read()
        except grpc.aio.AioRpcError as error:
            raise error_of(error.code(), error.details(), method) from error
        except asyncio.InvalidStateError as error:
            raise error_of(await call.code(), await call.details(), method) from error
        finally:
            call.cancel()


def _write_requests(
    ref: str, digest: str, blob: bytes, labels: Mapping[str, str]
) -> Iterator[content_pb2.WriteContentRequest]:
    for offset in _offsets(len(blob)):
        yield content_pb2.WriteContentRequest(
            action=content_pb2.WRITE,
            ref=ref,
            total=len(blob),
            expected=digest,
            offset=offset,
            data=blob[offset : offset + _CHUNK_BYTES],
        )
    yield content_pb2.WriteContentRequest(
        action=content_pb2.COMMIT,
        ref=ref,
        total=len(blob),
        expected=digest,
        offset=len(blob),
        labels=dict(labels),
    )


def _offsets(size: int) -> Sequence[int]:
    return range(0, max(size, 1), _CHUNK_BYTES)


def _info_from_message(message: content_pb2.Info) -> ContentInfo:
    return ContentInfo(digest=message.digest, size=message.size, labels=dict(message.labels))
