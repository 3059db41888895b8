"""The pullers that the image benchmark sets side by side; each begins with an empty disk.

containerd 2 has its best settings: ranged GETs in parallel into 8 MiB chunks, as many layers
unpacked at once as there are processors, and for EROFS its own differ with a tar index, which took
the least CPU time and wrote the least of its modes.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from bench.rig import MODEL_PORT, Cgroup, Rig, stop_process, wait_until
from bench.slow_volume import enter
from tests.fixtures.mounting import detach, mounts_under
from tests.fixtures.servers import BUILD, REPOSITORY
from zeropull.containerd.config import ContainerdConfig, detect_version, render_config
from zeropull.imagecache.generations import PublishedGeneration
from zeropull.oci.digests import hex_of
from zeropull.oci.images import ResolvedImage
from zeropull.providers.node_file import write_node_config
from zeropull.resources.node import SNAPSHOTTER, NodeConfig
from zeropull.startprofiles.recording import MountedLayer

NAMES = (
    "containerd-debian",
    "containerd-2-overlayfs",
    "containerd-2-erofs",
    "podman",
    "fallback",
    "cached",
)
CONTAINER = "zpbench"
_PULL_TIMEOUT_S = 1800.0
_CHUNK_BYTES = 8 << 20


class CannotRun(Exception):
    """This puller is not to be had on this machine; the message says what is missing."""


class Puller(Protocol):
    """Entered = its daemons run, nothing is pulled. `pull` is what is measured; `start` starts the
    container in the node's network. Left = nothing of it remains."""

    def __enter__(self) -> Puller: ...
    def __exit__(self, *_: object) -> None: ...
    def pull(self) -> None: ...
    def start(self) -> None: ...


def make_puller(name: str, rig: Rig, cgroup: Cgroup, image: ResolvedImage, how: HowOurs) -> Puller:
    if name == "podman":
        return _Podman(rig, cgroup, image)
    if name in ("fallback", "cached"):
        return Ours(rig, cgroup, image, how)
    return _Containerd(name, rig, cgroup, image)


@dataclass(frozen=True)
class HowOurs:
    """`volume` None: our own pull; else the cached start. `model`: the node agent downloads it,
    too. `disk_group`: of the block I/O controller, for the warm-up and the container."""

    volume: PublishedGeneration | None = None
    model: bool = False
    warm_up: bool = True
    disk_group: str = ""


def version_of(name: str) -> str:
    """What the puller's own program says of itself.

    Raises:
        CannotRun: it is not there.
    """
    if name == "podman":
        return _said(["podman", "--version"])
    said = _said([str(_binaries(name) / "containerd"), "--version"]).split()[2]
    if name == "containerd-2-erofs":
        return f"{said}, {_said([_mkfs(), '--version']).splitlines()[0]}"
    return said


class _Daemon:
    """A private containerd in the node's namespace and the measured group."""

    def __init__(self, kind: str, rig: Rig, cgroup: Cgroup, image: ResolvedImage) -> None:
        self.kind, self.rig, self.cgroup, self.image = kind, rig, cgroup, image
        self.root = rig.scratch / "puller"
        self.run_dir = Path(f"/run/zpbench-{os.getpid()}")
        self.log = rig.scratch / f"{kind}.log"
        self.namespace = f"zpbenchns-{os.getpid()}"
        self._daemons: list[subprocess.Popen[bytes]] = []

    @property
    def socket(self) -> Path:
        return self.run_dir / "containerd.sock"

    def start_containerd(self, extra: str = "") -> None:
        binaries = _binaries(self.kind)
        config = ContainerdConfig(
            root=self.root / "containerd",
            state=self.run_dir / "state",
            socket=self.socket,
            plugin_socket=self.run_dir / "snapshotter.sock",
            plugin_root=self.root / "snapshotter",
        )
        text = render_config(config, detect_version(str(binaries / "containerd"))) + extra
        (self.root / "config.toml").write_text(text)
        command = [str(binaries / "containerd"), "--config", str(self.root / "config.toml")]
        self.start_daemon(command, lambda: self._answers(binaries))

    def start_daemon(self, command: Sequence[str], answers: object) -> None:
        assert callable(answers)
        process = self.rig.spawn(
            command, self.log, cgroup=self.cgroup, environment=_path(self.kind)
        )
        self._daemons.append(process)
        wait_until(answers, process, self.log)

    def ctr(self, *arguments: str) -> None:
        command = [str(_binaries(self.kind) / "ctr"), "-a", str(self.socket)]
        run_measured(self.rig, self.cgroup, [*command, "-n", self.namespace, *arguments], self.log)

    def make_folders(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        self.run_dir.mkdir(mode=0o700)

    def stop_all(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.ctr("tasks", "kill", "-s", "SIGKILL", CONTAINER)
        with contextlib.suppress(RuntimeError):
            self.ctr("tasks", "delete", "--force", CONTAINER)
        for daemon in reversed(self._daemons):
            stop_process(daemon)
        self.cgroup.remove()
        for folder in (self.run_dir, self.root):
            for point in mounts_under(folder):
                detach(Path(point))
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(f"/run/containerd/runc/{self.namespace}", ignore_errors=True)
        for group in Path("/sys/fs/cgroup").glob(f"*/{self.namespace}"):
            for each in sorted([group, *group.glob("**/")], reverse=True):
                with contextlib.suppress(OSError):  # version 1: runc removes the leaf only
                    each.rmdir()

    def _answers(self, binaries: Path) -> bool:
        command = [str(binaries / "ctr"), "-a", str(self.socket), "version"]
        return subprocess.run(command, capture_output=True).returncode == 0


class _Containerd(_Daemon):
    """Debian's containerd, or a current one with its overlayfs or EROFS snapshotter."""

    def __enter__(self) -> Puller:
        self.make_folders()
        self.snapshotter = "erofs" if self.kind == "containerd-2-erofs" else "overlayfs"
        self.start_containerd("" if self.kind == "containerd-debian" else self._best_settings())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()

    def pull(self) -> None:
        arguments = ["images", "pull", "--plain-http", "--snapshotter", self.snapshotter]
        self.ctr(*arguments, self.image.reference)

    def start(self) -> None:
        arguments = ["run", "-d", "--net-host", "--snapshotter", self.snapshotter]
        self.ctr(*arguments, self.image.reference, CONTAINER)

    def _best_settings(self) -> str:
        differ = "erofs" if self.snapshotter == "erofs" else "walking"
        return f"""
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_downloads = 8
  concurrent_layer_fetch_buffer = {_CHUNK_BYTES}
  max_concurrent_unpacks = {os.cpu_count()}
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux/amd64"
    snapshotter = "{self.snapshotter}"
    differ = "{differ}"

[plugins."io.containerd.differ.v1.erofs"]
  enable_tar_index = true

[plugins."io.containerd.service.v1.diff-service"]
  default = ["{differ}", "walking"]
"""


class Ours(_Daemon):
    """The node agent's image stage with our snapshotter behind Debian's containerd, and its model
    download where there is one: they share the link as they do on a node."""

    def __init__(
        self,
        rig: Rig,
        cgroup: Cgroup,
        image: ResolvedImage,
        how: HowOurs,
    ) -> None:
        super().__init__("fallback", rig, cgroup, image)
        self.how = how
        self._model: dict[str, object] = {}
        self._agent: subprocess.Popen[bytes] | None = None

    @property
    def layers(self) -> Path:
        return self.root / "layers"

    def __enter__(self) -> Ours:
        self.make_folders()
        config = NodeConfig(
            instance_id=self.namespace,
            node_token="",
            control_socket="",
            disk_dir=str(self.root),
            run_dir=str(self.run_dir),
            instance_type="",
            vcpus=os.cpu_count() or 1,
            memory_bytes=1 << 40,
            subnet="",
            gateway="",
            address="",
            cgroup_parent="",
            containerd_namespace=self.namespace,
        )
        write_node_config(self.root / "node.json", config)
        self.start_containerd()
        plugin = [*_python("zeropull.daemons.snapshotter"), "--socket"]
        plugin += [str(config.snapshotter_socket), "--state", str(config.snapshotter_dir)]
        plugin += ["--catalog", str(config.catalog_dir), "--mounts", str(config.mounts_dir)]
        plugin += ["--namespace", self.namespace]
        self.start_daemon(plugin, config.snapshotter_socket.exists)
        volume = self.how.volume
        endpoint = f"http://{self.rig.host}:{MODEL_PORT}" if self.how.model else "-"
        warm_up = "warm-up" if self.how.warm_up else "no-warm-up"
        arguments = ["image", str(self.root / "node.json"), endpoint, warm_up]
        arguments += [self.image.reference, self.image.manifest_digest]
        arguments += [str(volume.path), volume.index_digest] if volume else []
        self._agent = begin_helper(self.rig, self.cgroup, arguments, self.log)
        if self.how.disk_group:
            enter(self.how.disk_group, self._agent.pid)
        return self

    def __exit__(self, *_: object) -> None:
        if self._agent is not None:
            stop_process(self._agent)
        self.stop_all()

    def pull(self) -> None:
        assert self._agent is not None
        facts = finish_helper(self._agent, self.log)
        if "model_s" in facts:
            self._model, facts = facts, next_answer(self._agent, self.log)
        expected = "cached" if self.how.volume else "fallback"
        if facts["path"] != expected:
            raise RuntimeError(f"the image came by {facts['path']}, expected {expected}: {facts}")
        self._name = str(facts["name"])

    def finish_model(self) -> tuple[float, str]:
        """Waits for the model: its seconds, and how it shared the link."""
        assert self._agent is not None
        facts = self._model or next_answer(self._agent, self.log)
        return round(float(str(facts["model_s"])), 3), str(facts["link"])

    def start(self) -> None:
        where = ["--cgroup", self.how.disk_group] if self.how.disk_group else []
        arguments = ["run", "-d", "--net-host", *where, "--snapshotter", SNAPSHOTTER]
        self._tell("starts")
        self.ctr(*arguments, self._name, CONTAINER)

    def answered(self) -> None:
        """As the node agent sees by /ping."""
        self._tell("answered")

    def _tell(self, line: str) -> None:
        assert self._agent is not None
        _pipe(self._agent.stdin).write(f"{line}\n".encode())
        _pipe(self._agent.stdin).flush()

    def end_container(self) -> None:
        """The layers stay mounted, and what was read of them stays in memory."""
        self.ctr("tasks", "delete", "--force", CONTAINER)
        self.ctr("containers", "delete", CONTAINER)

    def said_of_profile(self) -> dict[str, str]:
        """What the agent has logged of its warm-up, empty when there was none."""
        lines = self.log.read_text(errors="replace").splitlines()
        found = [line for line in lines if "start profile is " in line]
        return {"warm": found[-2], "verified": found[-1]} if len(found) > 1 else {}

    def mounted_layers(self) -> list[MountedLayer]:
        """Where the image's layers are mounted, bottom-up, for recording a start profile."""
        mounts: dict[str, tuple[Path, Path]] = {}
        for line in Path("/proc/mounts").read_text().splitlines():
            source, target, kind = line.split(" ")[:3]
            if kind == "erofs" and target.startswith(f"{self.run_dir}/"):
                directory = Path(source).parent
                mounts[directory.name] = (directory, Path(target))
        chains = self.image.chain_ids
        return [MountedLayer(each, *mounts[hex_of(each)]) for each in chains]


class _Podman:
    """Debian's podman with its overlay store."""

    def __init__(self, rig: Rig, cgroup: Cgroup, image: ResolvedImage) -> None:
        self._rig, self._cgroup, self._image = rig, cgroup, image
        self._root = rig.scratch / "puller"
        self._run_dir = Path(f"/run/zpbench-{os.getpid()}")
        self._log = rig.scratch / "podman.log"

    def __enter__(self) -> Puller:
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):
            self._podman("rm", "--force", "--time", "0", CONTAINER)
        self._cgroup.remove()
        for folder in (self._run_dir, self._root):
            for point in mounts_under(folder):
                detach(Path(point))
            shutil.rmtree(folder, ignore_errors=True)

    def pull(self) -> None:
        self._podman("pull", "--tls-verify=false", self._image.reference)

    def start(self) -> None:
        # It would raise these two, which not every machine lets it.
        limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
        arguments = ["--network=host", "--name", CONTAINER]
        for name, number in limits.items():
            soft, hard = resource.getrlimit(number)
            arguments.append(f"--ulimit={name}={soft}:{hard}")
        self._podman("run", "-d", *arguments, self._image.reference)

    def _podman(self, *arguments: str) -> None:
        where = ["--root", str(self._root), "--runroot", str(self._run_dir)]
        command = ["podman", *where, "--storage-driver=overlay", "--cgroup-manager=cgroupfs"]
        run_measured(self._rig, self._cgroup, [*command, *arguments], self._log)


def run_measured(rig: Rig, cgroup: Cgroup, command: Sequence[str], log: Path) -> None:
    """Raises RuntimeError, with the log's end, when the command fails."""
    process = rig.spawn(command, log, cgroup=cgroup, environment=_path(""))
    if process.wait(_PULL_TIMEOUT_S) != 0:
        said = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command)} failed; it said:\n{said}")


def begin_helper(
    rig: Rig, cgroup: Cgroup | None, arguments: Sequence[str], log: Path
) -> subprocess.Popen[bytes]:
    """Start bench.our_pull; back once it waits for the word to begin."""
    process = rig.spawn(
        [*_python("bench.our_pull"), *arguments],
        log,
        cgroup=cgroup,
        environment={"PYTHONPATH": str(REPOSITORY)},
        pipes=True,
    )
    if _pipe(process.stdout).readline() != b"ready\n":
        raise RuntimeError(log.read_text(errors="replace")[-2000:])
    return process


def finish_helper(process: subprocess.Popen[bytes], log: Path) -> dict[str, object]:
    """Let it begin, and wait for its answer."""
    _pipe(process.stdin).write(b"go\n")
    _pipe(process.stdin).flush()
    return next_answer(process, log)


def next_answer(process: subprocess.Popen[bytes], log: Path) -> dict[str, object]:
    answer = _pipe(process.stdout).readline()
    if not answer:
        raise RuntimeError(log.read_text(errors="replace")[-2000:])
    facts: dict[str, object] = json.loads(answer)
    return facts


@contextlib.contextmanager
def measured_group() -> Iterator[Cgroup]:
    cgroup = Cgroup(f"zpbench-{os.getpid()}")
    try:
        yield cgroup
    finally:
        cgroup.remove()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _python(module: str) -> list[str]:
    return [str(REPOSITORY / ".venv/bin/python"), "-m", module]


def _binaries(kind: str) -> Path:
    if kind.startswith("containerd-2"):
        found = BUILD / "containerd2" / "containerd"
        if not found.exists():
            raise CannotRun(f"no containerd 2 is built: {REPOSITORY / 'bench/containerd2/build'}")
        return found.parent
    debian = shutil.which("containerd")
    if debian is None:
        raise CannotRun("no containerd is installed")
    return Path(debian).parent


def _mkfs() -> str:
    """A mkfs.erofs that reads tar (erofs-utils 1.7 and newer)."""
    for candidate in (str(BUILD / "erofs-utils/mkfs.erofs"), "mkfs.erofs"):
        found = shutil.which(candidate)
        if found and "--tar" in _said([found, "--help"]):
            return found
    raise CannotRun("no mkfs.erofs that reads tar: erofs-utils 1.7 or newer is needed")


def _path(kind: str) -> dict[str, str]:
    folders = [str(BUILD / "erofs-utils")]
    if kind.startswith("containerd"):
        folders.append(str(_binaries(kind)))
    return {"PATH": ":".join([*folders, os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])}


def _said(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CannotRun(f"{command[0]} is not installed") from error
    return (done.stdout + done.stderr).strip()
