"""The gRPC side of the plugin: messages in, messages out, errors to statuses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from zeropull.containerd._generated import snapshots_pb2 as pb
from zeropull.containerd.connection import MAX_MESSAGE_BYTES
from zeropull.containerd.snapshots import (
    SERVICE,
    SnapshotInfo,
    SnapshotKind,
    info_to_message,
    mounts_to_messages,
)
from zeropull.containerd.statuses import status_of
from zeropull.errors import ZeropullError
from zeropull.snapshotter.snapshotter import Snapshotter
from zeropull.snapshotter.usage import Cancelled
from zeropull.telemetry.logs import get_logger

LIST_BATCH = 100
# Changes wait for each other and for the disk: reads need threads beside those that wait.
_THREADS = 32

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)
_log = get_logger(__name__)


class SnapshotsService:
    """Each method of containerd.services.snapshots.v1.Snapshots over one Snapshotter."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Prepare": _unary(self._prepare, pb.PrepareSnapshotRequest),
            "View": _unary(self._view, pb.ViewSnapshotRequest),
            "Mounts": _unary(self._mounts, pb.MountsRequest),
            "Commit": _unary(self._commit, pb.CommitSnapshotRequest),
            "Remove": _unary(self._remove, pb.RemoveSnapshotRequest),
            "Stat": _unary(self._stat, pb.StatSnapshotRequest),
            "Update": _unary(self._update, pb.UpdateSnapshotRequest),
            "Usage": _unary(self._usage, pb.UsageRequest),
            "Cleanup": _unary(self._cleanup, pb.CleanupRequest),
        }
        methods["List"] = grpc.unary_stream_rpc_method_handler(
            self._list,
            request_deserializer=pb.ListSnapshotsRequest.FromString,
            response_serializer=pb.ListSnapshotsResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _prepare(
        self, request: pb.PrepareSnapshotRequest, _: grpc.ServicerContext
    ) -> pb.PrepareSnapshotResponse:
        mounts = self._snapshotter.prepare(request.key, request.parent, dict(request.labels))
        return pb.PrepareSnapshotResponse(mounts=mounts_to_messages(mounts))

    def _view(
        self, request: pb.ViewSnapshotRequest, _: grpc.ServicerContext
    ) -> pb.ViewSnapshotResponse:
        mounts = self._snapshotter.view(request.key, request.parent, dict(request.labels))
        return pb.ViewSnapshotResponse(mounts=mounts_to_messages(mounts))

    def _mounts(self, request: pb.MountsRequest, _: grpc.ServicerContext) -> pb.MountsResponse:
        mounts = self._snapshotter.mounts(request.key)
        return pb.MountsResponse(mounts=mounts_to_messages(mounts))

    def _commit(self, request: pb.CommitSnapshotRequest, _: grpc.ServicerContext) -> Empty:
        self._snapshotter.commit(request.key, request.name, dict(request.labels), request.parent)
        return Empty()

    def _remove(self, request: pb.RemoveSnapshotRequest, _: grpc.ServicerContext) -> Empty:
        self._snapshotter.remove(request.key)
        return Empty()

    def _stat(
        self, request: pb.StatSnapshotRequest, _: grpc.ServicerContext
    ) -> pb.StatSnapshotResponse:
        return pb.StatSnapshotResponse(info=info_to_message(self._snapshotter.stat(request.key)))

    def _update(
        self, request: pb.UpdateSnapshotRequest, _: grpc.ServicerContext
    ) -> pb.UpdateSnapshotResponse:
        # Kind and parent cannot be changed and are not read.
        info = SnapshotInfo(
            request.info.name, "", SnapshotKind.COMMITTED, dict(request.info.labels)
        )
        updated = self._snapshotter.update(info, list(request.update_mask.paths))
        return pb.UpdateSnapshotResponse(info=info_to_message(updated))

    def _usage(self, request: pb.UsageRequest, context: grpc.ServicerContext) -> pb.UsageResponse:
        stop = threading.Event()
        context.add_callback(stop.set)
        usage = self._snapshotter.usage(request.key, stop)
        return pb.UsageResponse(size=usage.size_bytes, inodes=usage.inodes)

    def _cleanup(self, _: pb.CleanupRequest, __: grpc.ServicerContext) -> Empty:
        self._snapshotter.cleanup()
        return Empty()

    def _list(
        self, request: pb.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ListSnapshotsResponse]:
        try:
            infos = self._snapshotter.walk(request.filters)
        except Exception as error:
            _abort(context, error)
        for start in range(0, len(infos), LIST_BATCH):
            batch = infos[start : start + LIST_BATCH]
            yield pb.ListSnapshotsResponse(info=[info_to_message(info) for info in batch])


def start_server(socket: Path, service: SnapshotsService) -> grpc.Server:
    """Serve on a Unix socket that only root may use; returns once it accepts calls.

    Raises:
        OSError: the socket cannot be made.
    """
    socket.parent.mkdir(parents=True, exist_ok=True)
    socket.unlink(missing_ok=True)  # of a process that was killed
    server = grpc.server(
        ThreadPoolExecutor(_THREADS, thread_name_prefix="snapshots"),
        handlers=[service.handlers()],
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ],
    )
    if server.add_insecure_port(f"unix:{socket}") == 0:
        raise OSError(f"{socket} cannot be listened on")
    server.start()
    socket.chmod(0o600)
    return server


def _unary(
    method: Callable[[_Request, grpc.ServicerContext], _Response], request: type[_Request]
) -> grpc.RpcMethodHandler[_Request, _Response]:
    def handle(message: _Request, context: grpc.ServicerContext) -> _Response:
        try:
            return method(message, context)
        except Exception as error:
            _abort(context, error)
            raise

    return grpc.unary_unary_rpc_method_handler(
        handle,
        request_deserializer=request.FromString,
        response_serializer=_serialize,
    )


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _abort(context: grpc.ServicerContext, error: Exception) -> None:
    """End the call with the status of `error`; always raises."""
    if isinstance(error, Cancelled):
        context.abort(grpc.StatusCode.CANCELLED, "cancelled")
    if isinstance(error, ZeropullError):
        context.abort(status_of(error), str(error))
    _log.error("call_failed", error=repr(error), exc_info=error)
    context.abort(grpc.StatusCode.INTERNAL, f"snapshotter: {error}")
