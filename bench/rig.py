"""Where the image benchmark runs: a registry and a node, apart from this machine's own network.

    loopback      registry, model and puller share one network namespace, over its 127.0.0.1
    1gbit, 2gbit  registry and model in one namespace, the puller in another, a veth pair between;
                  tbf limits what the puller receives

The registry is Debian's docker-registry over a folder that is kept; the model is a file of zeros
that versitygw serves over the S3 protocol.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demo.registry import CountedRegistry
from tests.fixtures.servers import find_binary
from zeropull.linux.network_namespaces import create_netns, delete_netns, in_netns

RATES_BITS = {"loopback": None, "1gbit": 1_000_000_000, "2gbit": 2_000_000_000}
STORE_ADDRESS, NODE_ADDRESS = "198.19.250.1", "198.19.250.2"
REGISTRY_PORT, MODEL_PORT = 5000, 7070
MODEL_KEYS = ("zeropullbench", "not a secret at all")
MODEL_REGION = "us-east-1"
MODEL_BUCKET, MODEL_OBJECT = "models", "model.bin"
_GOODPUT_PORT, _GOODPUT_S = 5999, 2.0
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0


@dataclass
class Rig:
    """`host` is the address at which the node sees registry and model."""

    link: str
    node: str
    store: str
    host: str
    scratch: Path
    registry: CountedRegistry
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def spawn(
        self,
        command: Sequence[str],
        log: Path,
        *,
        cgroup: Cgroup | None = None,
        environment: Mapping[str, str] | None = None,
        pipes: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start a process of the node: in its namespace, in the measured group."""
        return spawn(self.node, command, log, cgroup=cgroup, environment=environment, pipes=pipes)


class Cgroup:
    """A control group whose processes are measured together: version 1's cpuacct, or version 2."""

    def __init__(self, name: str) -> None:
        first = Path("/sys/fs/cgroup/cpuacct")
        self._is_v1 = first.is_dir()
        self.path = (first if self._is_v1 else Path("/sys/fs/cgroup")) / name
        self.path.mkdir()

    def join(self) -> None:
        """Move the calling process here."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def pids(self) -> list[int]:
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]

    def cpu_s(self) -> float:
        if self._is_v1:
            return int((self.path / "cpuacct.usage").read_text()) / 1e9
        fields = (self.path / "cpu.stat").read_text().split()
        return int(fields[fields.index("usage_usec") + 1]) / 1e6

    def remove(self) -> None:
        """End what is left in it, and it."""
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while self.path.exists() and (pids := self.pids()):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        with contextlib.suppress(OSError):
            self.path.rmdir()


class Meter:
    """CPU, memory and disk of a group. Memory is the largest sum of its processes' proportional set
    sizes (a page that several share is counted once), sampled every second, since the kernel counts
    pages for that; disk the sum of `write_bytes` of /proc/PID/io, sampled every 50 ms, so that a
    process that ends is counted up to its last sample, or in its parent, which the kernel gives the
    count of a child that it has waited for."""

    INTERVAL_S = 0.05
    MEMORY_EVERY = 20

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup
        self._written: dict[int, int] = {}
        self._before: dict[int, int] = {}
        self._parents: dict[int, int] = {}
        self._peak = 0
        self._cpu_before_s = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Meter:
        self._sample()
        self._before = dict(self._written)
        self._peak = 0
        self._cpu_before_s = self._cgroup.cpu_s()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()
        self.cpu_s = self._cgroup.cpu_s() - self._cpu_before_s
        self.peak_mb = self._peak / 1e6
        alive = set(self._cgroup.pids())
        self.written_bytes = sum(
            count - self._before.get(pid, 0)
            for pid, count in self._written.items()
            if pid in alive or self._parents.get(pid) not in self._written
        )

    def _watch(self) -> None:
        for number in itertools.count():
            if self._ended.wait(self.INTERVAL_S):
                break
            self._sample(with_memory=number % self.MEMORY_EVERY == 0)

    def _sample(self, *, with_memory: bool = True) -> None:
        resident = 0
        for pid in self._cgroup.pids():
            with contextlib.suppress(OSError, ValueError, IndexError):
                io = Path(f"/proc/{pid}/io").read_text()
                self._written[pid] = int(io.partition("\nwrite_bytes: ")[2].split()[0])
                status = Path(f"/proc/{pid}/stat").read_text()
                self._parents[pid] = int(status.rpartition(")")[2].split()[1])
                if with_memory:
                    sizes = Path(f"/proc/{pid}/smaps_rollup").read_text()
                    resident += int(sizes.partition("\nPss:")[2].split()[0]) << 10
        self._peak = max(self._peak, resident)


@contextlib.contextmanager
def running_rig(link: str, storage: Path, scratch: Path, model_bytes: int) -> Iterator[Rig]:
    """Entered once the registry (and the model's store, unless `model_bytes` is 0) answers."""
    tag = f"zpbench-{os.getpid()}"
    limited = RATES_BITS[link] is not None
    node, store = f"{tag}-node", f"{tag}-store" if limited else f"{tag}-node"
    with contextlib.ExitStack() as stack:
        for name in {node, store}:
            stack.callback(delete_netns, name)
            create_netns(name)
            in_netns(name, lambda: _command("ip", "link", "set", "lo", "up"))
        host = "127.0.0.1"
        if limited:
            host = STORE_ADDRESS
            _connect(node, store, RATES_BITS[link] or 0)
        log = scratch / f"registry-{link}.log"
        log.unlink(missing_ok=True)
        rig = Rig(link, node, store, host, scratch, CountedRegistry(f"{host}:{REGISTRY_PORT}", log))
        stack.callback(_stop_all, rig)
        _start_registry(rig, storage)
        if model_bytes:
            _start_model_store(rig, model_bytes)
        yield rig


def measure_goodput(rig: Rig) -> float:
    """Bytes per second that one TCP connection brings from store to node, for two seconds."""
    with socket.socket() as listener:

        def listen() -> None:
            nonlocal listener
            listener = socket.create_server((rig.host, _GOODPUT_PORT))

        def send() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                while True:
                    connection.sendall(bytes(1 << 20))

        in_netns(rig.store, listen)
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        address = (rig.host, _GOODPUT_PORT)
        with in_netns(rig.node, lambda: socket.create_connection(address)) as connection:
            buffer, received = bytearray(1 << 20), 0
            began_s = time.monotonic()
            while (passed_s := time.monotonic() - began_s) < _GOODPUT_S:
                received += connection.recv_into(buffer)
        listener.close()
        thread.join()
        return received / passed_s


def spawn(
    netns: str,
    command: Sequence[str],
    log: Path,
    *,
    cgroup: Cgroup | None = None,
    environment: Mapping[str, str] | None = None,
    pipes: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `command` inside a namespace; with `pipes` its standard input and output are ours."""

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else output,
                stderr=output,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=cgroup.join if cgroup else None,
            )

    return in_netns(netns, start)


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Raises RuntimeError, with the log's end, when the process ends or the time is up."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not holds():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{process.args!r} does not come up; it said:\n{said}")
        time.sleep(0.02)


def listens(netns: str, host: str, port: int) -> bool:
    def connect() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
            return True
        return False

    return in_netns(netns, connect)


def stop_process(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_TIMEOUT_S)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _connect(node: str, store: str, rate_bits: int) -> None:
    """A veth pair; tbf at the store's end, with room for a few 64 KiB packets."""
    burst = max(256 * 1024, rate_bits // 8 // 250)

    def make() -> None:
        _command("ip", "link", "add", "zpb0", "type", "veth", "peer", "zpb1", "netns", node)
        _command("ip", "addr", "add", f"{STORE_ADDRESS}/30", "dev", "zpb0")
        _command("ip", "link", "set", "zpb0", "up")
        shape = ["rate", f"{rate_bits}bit", "burst", f"{burst}b", "latency", "20ms"]
        _command("tc", "qdisc", "add", "dev", "zpb0", "root", "tbf", *shape)

    def finish() -> None:
        _command("ip", "addr", "add", f"{NODE_ADDRESS}/30", "dev", "zpb1")
        _command("ip", "link", "set", "zpb1", "up")

    create_netns(node)
    in_netns(store, make)
    in_netns(node, finish)


def _start_registry(rig: Rig, storage: Path) -> None:
    configuration = {
        "version": 0.1,
        "log": {"level": "info", "formatter": "json", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "cache": {"blobdescriptor": "inmemory"},
        },
        "http": {"addr": f"{rig.host}:{REGISTRY_PORT}", "relativeurls": True, "secret": "bench"},
    }
    path = rig.scratch / "registry.yml"
    path.write_text(json.dumps(configuration))  # JSON is YAML, which is what the registry reads
    command = [find_binary("docker-registry"), "serve", str(path)]
    _start(rig, command, rig.registry.log, REGISTRY_PORT)


def _start_model_store(rig: Rig, model_bytes: int) -> None:
    folder = rig.scratch / "buckets"
    (folder / MODEL_BUCKET).mkdir(parents=True, exist_ok=True)
    with (folder / MODEL_BUCKET / MODEL_OBJECT).open("wb") as file:
        file.truncate(model_bytes)
    access, secret = MODEL_KEYS
    command = [find_binary("versitygw"), "--port", f"{rig.host}:{MODEL_PORT}", "--keep-alive"]
    command += ["--region", MODEL_REGION, "--quiet", "posix", str(folder)]
    keys = {"ROOT_ACCESS_KEY": access, "ROOT_SECRET_KEY": secret}
    _start(rig, command, rig.scratch / "model-store.log", MODEL_PORT, keys)


def _start(
    rig: Rig,
    command: Sequence[str],
    log: Path,
    port: int,
    environment: Mapping[str, str] | None = None,
) -> None:
    process = spawn(rig.store, command, log, environment=environment)
    rig.processes.append(process)
    wait_until(lambda: listens(rig.store, rig.host, port), process, log)


def _stop_all(rig: Rig) -> None:
    for process in rig.processes:
        stop_process(process)


def _command(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
