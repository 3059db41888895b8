"""containerd's tasks: the processes of containers."""

from __future__ import annotations

import signal as signals
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote, urlencode

from google.protobuf.empty_pb2 import Empty

from zeropull.containerd._generated import tasks_pb2
from zeropull.containerd.connection import Connection
from zeropull.containerd.snapshots import Mount, mounts_to_messages
from zeropull.errors import ContainerError, Unavailable

SERVICE = "containerd.services.tasks.v1.Tasks"
START_TIMEOUT_S = 120.0


class TaskStatus(StrEnum):
    UNKNOWN = "unknown"
    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    PAUSING = "pausing"


@dataclass(frozen=True, slots=True)
class Task:
    """The first process of a container. `exit_status` means something once it is STOPPED."""

    container_id: str
    pid: int
    status: TaskStatus
    exit_status: int = 0
    exited_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class TaskExit:
    """`exit_status` is 128 + signal for a killed process. Time in Unix nanoseconds."""

    exit_status: int
    exited_at_ns: int


@dataclass(frozen=True, slots=True)
class TaskOutput:
    """Where the shim writes: a URI (`file:///path`, `fifo://`, `binary://`), or the plain path of a
    named pipe that somebody reads; "" discards."""

    stdout: str = ""
    stderr: str = ""

    @classmethod
    def to_file(cls, path: Path) -> TaskOutput:
        """Both streams appended to one file by the shim itself, whoever else is alive."""
        return cls(stdout=f"file://{path}", stderr=f"file://{path}")

    @classmethod
    def to_program(cls, program: Path, **words: str) -> TaskOutput:
        """Both streams to a program that the shim starts for the task; it gets `words` as
        arguments, each key before its value."""
        uri = f"binary://{quote(str(program))}?{urlencode(words)}"
        return cls(stdout=uri, stderr=uri)


class TasksClient:
    """Tasks of one namespace, by container ID."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(
        self,
        container_id: str,
        rootfs: Sequence[Mount],
        output: TaskOutput | None = None,
        *,
        timeout_s: float = START_TIMEOUT_S,
    ) -> int:
        """Set the container up, its process held before exec; returns its PID.

        Raises:
            AlreadyExists: it has a task.
            ContainerError: runc refused; the message is runc's.
        """
        output = output or TaskOutput()
        request = tasks_pb2.CreateTaskRequest(
            container_id=container_id,
            rootfs=mounts_to_messages(rootfs),
            stdout=output.stdout,
            stderr=output.stderr,
        )
        try:
            answer = await self._connection.call(
                f"{SERVICE}/Create", request, tasks_pb2.CreateTaskResponse, timeout_s=timeout_s
            )
        except Unavailable as error:
            raise _runtime_error(container_id, error) from error
        return answer.pid

    async def start(self, container_id: str, *, timeout_s: float = START_TIMEOUT_S) -> int:
        """Let the process go; returns its PID.

        Raises:
            ContainerError: runc refused; the message is runc's.
        """
        request = tasks_pb2.StartRequest(container_id=container_id)
        try:
            answer = await self._connection.call(
                f"{SERVICE}/Start", request, tasks_pb2.StartResponse, timeout_s=timeout_s
            )
        except Unavailable as error:
            raise _runtime_error(container_id, error) from error
        return answer.pid

    async def wait(self, container_id: str, *, timeout_s: float | None = None) -> TaskExit:
        """Return when the process has ended. `Unavailable` means that containerd went away, not
        that the process ended: wait again.

        Raises:
            NotFound: it has no task.
        """
        answer = await self._connection.call(
            f"{SERVICE}/Wait",
            tasks_pb2.WaitRequest(container_id=container_id),
            tasks_pb2.WaitResponse,
            timeout_s=timeout_s,
        )
        return TaskExit(answer.exit_status, answer.exited_at.ToNanoseconds())

    async def kill(
        self, container_id: str, signal: int = signals.SIGTERM, *, every_process: bool = False
    ) -> None:
        """Raises:
        NotFound: it has no task, or the process has ended.
        """
        request = tasks_pb2.KillRequest(
            container_id=container_id, signal=int(signal), all=every_process
        )
        await self._connection.call(f"{SERVICE}/Kill", request, Empty)

    async def delete(self, container_id: str) -> TaskExit:
        """Forget an ended task; its root file system is unmounted.

        Raises:
            NotFound: it has no task.
            Conflict: it still runs.
        """
        answer = await self._connection.call(
            f"{SERVICE}/Delete",
            tasks_pb2.DeleteTaskRequest(container_id=container_id),
            tasks_pb2.DeleteResponse,
        )
        return TaskExit(answer.exit_status, answer.exited_at.ToNanoseconds())

    async def get(self, container_id: str) -> Task:
        """Raises:
        NotFound: it has no task.
        """
        answer = await self._connection.call(
            f"{SERVICE}/Get",
            tasks_pb2.GetRequest(container_id=container_id),
            tasks_pb2.GetResponse,
        )
        return _task_from_message(container_id, answer.process)

    async def list(self) -> list[Task]:
        answer = await self._connection.call(
            f"{SERVICE}/List", tasks_pb2.ListTasksRequest(), tasks_pb2.ListTasksResponse
        )
        return [_task_from_message("", process) for process in answer.tasks]


_STATUSES = {
    tasks_pb2.CREATED: TaskStatus.CREATED,
    tasks_pb2.RUNNING: TaskStatus.RUNNING,
    tasks_pb2.STOPPED: TaskStatus.STOPPED,
    tasks_pb2.PAUSED: TaskStatus.PAUSED,
    tasks_pb2.PAUSING: TaskStatus.PAUSING,
}


def _task_from_message(container_id: str, process: tasks_pb2.Process) -> Task:
    # Some versions answer with `id` alone.
    return Task(
        container_id=container_id or process.container_id or process.id,
        pid=process.pid,
        status=_STATUSES.get(process.status, TaskStatus.UNKNOWN),
        exit_status=process.exit_status,
        exited_at_ns=process.exited_at.ToNanoseconds(),
    )


def _runtime_error(container_id: str, error: Unavailable) -> Exception:
    """runc's refusals come as status UNKNOWN; a containerd that is away stays Unavailable."""
    from_containerd = "UNKNOWN" in str(getattr(error.__cause__, "code", lambda: "")())
    return ContainerError(f"container {container_id}: {error}") if from_containerd else error
