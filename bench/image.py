"""Pulls one image with every puller from one registry, and starts a container of it.

    python -m bench image [--image torch|many|REFERENCE] [--pullers A,B] [--links A,B]
                          [--rounds N] [--no-slow-volume] [--json FILE]

Each run begins with an empty disk for the puller, dropped page caches and the registry's blobs
read once, so that all find the same. On limited links a model is downloaded beside the image, by
our model store's client for every puller: in a process apart, or, for our own pull and the cached
start, by the node agent, which then divides the link (its CPU and memory are in the figures).
`ready_s` ends when a container can be made, `first_response_s` when the container has answered
/invocations (and the model is there). CPU, memory and disk are those of the puller's processes up
to `ready_s`: see bench/rig.py. `page_cache` is the state of the cache volume's files at a cached
start; after a pull they are as the puller left them ("warm"). `of_link_s` is what all bytes would
take at the goodput of one TCP connection, measured before.

Cached starts without a limit on the link are made with and without `warm_up`, on the local disk and
on a `volume` limited to 200 MB/s (container and warm-up together). `start_s` is from where the
container can be made to its answer, `restart_s` the same for another container of the image right
afterwards, when all that it reads is in memory: the warm start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.images import FOLDER, PORT, BenchImage, image_names, prepare_image
from bench.pullers import (
    NAMES,
    CannotRun,
    HowOurs,
    Ours,
    Puller,
    begin_helper,
    make_puller,
    measured_group,
    version_of,
)
from bench.rig import (
    MODEL_PORT,
    RATES_BITS,
    Meter,
    Rig,
    measure_goodput,
    running_rig,
    stop_process,
)
from bench.slow_volume import RATE, has_slow_volumes, slow_volume
from tests.fixtures.images import push_image
from zeropull.imagecache.generations import GenerationStore, PublishedGeneration
from zeropull.layers.layout import layer_directory
from zeropull.linux.network_namespaces import in_netns
from zeropull.oci.images import ResolvedImage
from zeropull.registry.client import RegistryClient
from zeropull.resources.sources import RegistryAccess
from zeropull.startprofiles.profile import StartProfile, encode_profile
from zeropull.startprofiles.recording import StartRecorder

MODEL_BYTES = 3_000_000_000
REPOSITORY = "bench"
_ANSWER_TIMEOUT_S = 120.0
_SPARE_BYTES = 1 << 30


@dataclass(frozen=True)
class Run:
    """One measurement; None = not a part of it."""

    puller: str
    link: str
    model_beside: bool
    page_cache: str
    ready_s: float
    cpu_s: float
    peak_mb: float
    disk_written_bytes: int
    registry_bytes: int
    model_s: float | None
    first_response_s: float | None
    of_link_s: float | None = None
    model_link: str = ""
    volume: str = "local"
    warm_up: bool | None = None
    profile_bytes: int | None = None
    start_s: float | None = None
    restart_s: float | None = None

    @property
    def complete_s(self) -> float:
        """Image and model are there."""
        return max(self.ready_s, self.model_s or 0.0)


@dataclass
class Session:
    """What all runs share. `volume` is the generation that cached starts use, once there is one."""

    image: BenchImage
    storage: Path
    scratch: Path
    console: Console
    slow_volume: bool = True
    model_bytes: int = 0
    volume: PublishedGeneration | None = None
    profile_bytes: int | None = None
    goodput: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """How a cached start is made."""

    page_cache: str = "warm"
    warm_up: bool = True
    slow: bool = False


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through every clean-up
    if os.geteuid() != 0:
        raise SystemExit("the image benchmark makes mounts and network namespaces: run it as root")
    console = Console(width=150)
    image = prepare_image(options.image, lambda text: console.print(f"  {text}"))
    _check_room(image)
    pullers = _available(options.pullers, console)
    machine = _machine(pullers)
    shown = {
        "reference": f"{REPOSITORY}:{image.name}" if image.serves else options.image,
        "compressed_bytes": image.image.compressed_bytes,
        "unpacked_bytes": image.unpacked_bytes,
        "layers": len(image.image.layers),
        "files": image.files,
    }
    console.print(machine, shown, sep="\n")
    console.print((__doc__ or "").split("\n\n", 2)[2])
    runs: list[Run] = []
    failed = 0
    with _scratch() as scratch:
        slow = options.slow_volume and has_slow_volumes(FOLDER)
        storage = FOLDER / "registry"
        session = Session(image, storage, scratch, console, slow, options.model_bytes)
        for link in options.links:
            model_bytes = 0 if RATES_BITS[link] is None else options.model_bytes
            with running_rig(link, session.storage, scratch, model_bytes) as rig:
                resolved = _push(rig, image)
                if model_bytes:
                    session.goodput[link] = measure_goodput(rig)
                    console.print(f"  {link}: {session.goodput[link] / 1e6:.1f} MB/s of goodput")
                for _ in range(options.rounds):
                    for puller in pullers:
                        try:
                            runs += _measure(session, rig, resolved, puller, bool(model_bytes))
                        except RuntimeError as error:
                            failed += 1
                            console.print(f"  {puller} failed: {error}", markup=False)
                        if options.json:
                            listed = [asdict(run) for run in runs]
                            document = {
                                "machine": machine,
                                "image": shown,
                                "goodput_bytes_per_s": session.goodput,
                                "runs": listed,
                            }
                            options.json.write_text(json.dumps(document, indent=1) + "\n")
    console.print(_table(runs))
    console.print(_starts(runs))
    return 1 if failed else 0


def _measure(
    session: Session, rig: Rig, image: ResolvedImage, puller: str, model_beside: bool
) -> Iterator[Run]:
    if puller != "cached":
        yield _one_run(session, rig, image, puller, Start(), model_beside)
        return
    if session.volume is None:
        session.console.print("  (a pull that is not counted, for the cache volume)")
        _one_run(session, rig, image, "fallback", Start(), False, shown=False)
    starts = [Start("cold"), Start("warm")]
    if rig.link == "loopback" and session.image.serves:
        starts.insert(0, Start("cold", warm_up=False))
        if session.slow_volume:
            starts += [Start("cold", warm_up=False, slow=True), Start("cold", slow=True)]
    for start in starts:
        yield _one_run(session, rig, image, puller, start, model_beside)


def _one_run(
    session: Session,
    rig: Rig,
    image: ResolvedImage,
    puller: str,
    start: Start,
    model_beside: bool,
    *,
    shown: bool = True,
) -> Run:
    """Everything of the run is gone afterwards; of our own pull a generation is kept, once."""
    volume = session.volume if puller == "cached" else None
    _settle_disk(session, drop=puller != "cached" or start.page_cache == "cold")
    with contextlib.ExitStack() as stack:
        disk = slow_volume(f"zpbench-slow-{os.getpid()}", FOLDER) if start.slow else None
        group = stack.enter_context(disk) if disk else ""
        how = HowOurs(volume, model_beside, start.warm_up, group)
        cgroup = stack.enter_context(measured_group())
        running = stack.enter_context(make_puller(puller, rig, cgroup, image, how))
        served_before = rig.registry.served()[1]
        is_ours = isinstance(running, Ours)
        with _model_download(rig, model_beside and not is_ours) as model:
            began_s = time.monotonic()
            model.begin()
            with Meter(cgroup) as meter:
                running.pull()
                ready_s = time.monotonic() - began_s
            registry_bytes = rig.registry.served()[1] - served_before
            model_s, link = model.finish(), ""
            if isinstance(running, Ours) and model_beside:
                model_s, link = running.finish_model()
            first_s = recorder = start_s = restart_s = None
            is_first = session.volume is None and isinstance(running, Ours)
            if is_first and session.image.serves and isinstance(running, Ours):
                layers = running.mounted_layers()
                recorder = StartRecorder(f"zpbench-{os.getpid()}", image.manifest_digest, layers)
                recorder.begin()
            if session.image.serves:
                try:
                    start_s = _start(rig, running)
                except RuntimeError as error:
                    if is_ours:
                        raise
                    said = str(error)[-300:]
                    session.console.print(f"  {puller} pulled, but starts nothing: {said}")
            if start_s is not None:
                first_s = round(time.monotonic() - began_s, 3)
                if volume is not None and isinstance(running, Ours):
                    running.end_container()
                    restart_s = _start(rig, running)
                    session.console.print(running.said_of_profile(), markup=False)
        if is_first and isinstance(running, Ours):
            profile = recorder.finish() if recorder else None
            session.volume = _keep_generation(session, image, running, profile)
    all_bytes = registry_bytes + session.model_bytes
    run = Run(
        puller, rig.link, model_beside, start.page_cache, round(ready_s, 3), round(meter.cpu_s, 3),
        round(meter.peak_mb, 1), meter.written_bytes, registry_bytes, model_s, first_s,
        round(all_bytes / session.goodput[rig.link], 3) if model_beside else None, link,
        "200MB/s" if start.slow else "local", start.warm_up if volume else None,
        session.profile_bytes if volume else None, start_s, restart_s,
    )  # fmt: skip
    if shown:
        session.console.print(f"  {run}")
    return run


def _start(rig: Rig, running: Puller) -> float:
    """Seconds until the container answers."""
    began_s = time.monotonic()
    running.start()
    _wait_for_answer(rig)
    if isinstance(running, Ours):
        running.answered()
    return round(time.monotonic() - began_s, 3)


class _Model:
    """A model download beside the image, or none."""

    def __init__(self, process: subprocess.Popen[bytes] | None, log: Path) -> None:
        self._process, self._log = process, log

    def begin(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()

    def finish(self) -> float | None:
        """Waits for its end; seconds that it took."""
        if self._process is None or self._process.stdout is None:
            return None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(self._log.read_text(errors="replace")[-2000:])
        return round(float(json.loads(answer)["model_s"]), 3)


@contextlib.contextmanager
def _model_download(rig: Rig, wanted: bool) -> Iterator[_Model]:
    log, target = rig.scratch / "model.log", rig.scratch / "model"
    process = None
    try:
        if wanted:
            arguments = ["model", f"http://{rig.host}:{MODEL_PORT}", str(target)]
            process = begin_helper(rig, None, arguments, log)
        yield _Model(process, log)
    finally:
        if process is not None:
            stop_process(process)
        shutil.rmtree(target, ignore_errors=True)


def _wait_for_answer(rig: Rig) -> None:
    """POST /invocations until the server in the container answers."""

    def ask() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=_ANSWER_TIMEOUT_S)
        try:
            connection.request("POST", "/invocations", b"{}")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    deadline = time.monotonic() + _ANSWER_TIMEOUT_S
    while not in_netns(rig.node, ask):
        if time.monotonic() > deadline:
            raise RuntimeError("the container does not answer")
        time.sleep(0.01)


def _keep_generation(
    session: Session, image: ResolvedImage, ours: Ours, profile: StartProfile | None
) -> PublishedGeneration:
    """Publishes what our own pull left as a generation, by hard links, with the start profile."""
    layers = {each: layer_directory(ours.layers, each) for each in image.chain_ids}
    store = GenerationStore(session.scratch / "caches")
    profiles: dict[str, bytes] = {}
    if profile is not None:
        order = "in order (tracepoints)" if profile.ordered else "as a set (mincore)"
        session.console.print(
            f"  start profile: {profile.size_bytes / 1e6:.0f} MB in {len(profile.runs)} runs, "
            f"{order}"
        )
        session.profile_bytes = profile.size_bytes
        profiles[image.manifest_digest] = encode_profile(profile)
    return store.build("bench", [image], layers, created_at=time.time(), profiles=profiles)


def _push(rig: Rig, image: BenchImage) -> ResolvedImage:
    """Into the registry's kept folder: only the first time does it move bytes."""
    address = rig.registry.address
    in_netns(rig.node, lambda: push_image(address, REPOSITORY, image.name, image.image))
    access = RegistryAccess(address, plain_http=True)

    async def resolve() -> ResolvedImage:
        async with RegistryClient(lambda _: access, user_agent="zeropull") as client:
            return await client.resolve(f"{address}/{REPOSITORY}:{image.name}")

    return in_netns(rig.node, lambda: asyncio.run(resolve()))


def _settle_disk(session: Session, *, drop: bool) -> None:
    """Nothing is left to be written, caches are dropped, the registry's blobs are in memory."""
    os.sync()
    if drop:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    buffer = bytearray(8 << 20)
    for blob in session.image.image.layers:
        digits = blob.digest.removeprefix("sha256:")
        path = session.storage / "docker/registry/v2/blobs/sha256" / digits[:2] / digits / "data"
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="scratch-", dir=FOLDER))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _available(names: Sequence[str], console: Console) -> list[str]:
    pullers = []
    for name in names:
        try:
            version_of(name)
            pullers.append(name)
        except CannotRun as error:
            console.print(f"  {name} is left out: {error}")
    return pullers


def _machine(pullers: Sequence[str]) -> dict[str, object]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpus": os.cpu_count(),
        "memory_bytes": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "pullers": {name: version_of(name) for name in pullers},
    }


def _check_room(image: BenchImage) -> None:
    """The generation is kept beside one puller's compressed and unpacked copy, and a model."""
    needed = 2 * image.unpacked_bytes + image.image.compressed_bytes + MODEL_BYTES + _SPARE_BYTES
    if not (FOLDER / "registry").exists():
        needed += image.image.compressed_bytes
    free = shutil.disk_usage(FOLDER).free
    if free < needed:
        raise SystemExit(
            f"the benchmark needs {needed / 1e9:.0f} GB in {FOLDER}, {free / 1e9:.1f} GB are free"
        )


def _table(runs: Sequence[Run]) -> Table:
    """Medians; the ratio is to our own pull on the same link."""
    table = Table(title="medians")
    for title in ("link", "puller", "cache", "runs", "ready s", "ratio", "CPU s", "peak MB"):
        table.add_column(title, justify="left" if title in ("link", "puller") else "right")
    for title in ("written MB", "registry MB", "model s", "all bytes s", "first response s"):
        table.add_column(title, justify="right")
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if run.volume == "local" and run.warm_up is not False:
            groups.setdefault((run.link, run.puller, run.page_cache), []).append(run)
    for (link, puller, page_cache), group in groups.items():
        ours = groups.get((link, "fallback", "warm"))
        ready_s = statistics.median(run.ready_s for run in group)
        ratio = ready_s / statistics.median(run.ready_s for run in ours) if ours else None
        models = [run.model_s for run in group if run.model_s is not None]
        shares = [run.complete_s / run.of_link_s for run in group if run.of_link_s]
        firsts = [run.first_response_s for run in group if run.first_response_s is not None]
        table.add_row(
            link, puller, page_cache, str(len(group)),
            f"{ready_s:.2f}",
            f"{ratio:.2f}" if ratio is not None else "",
            f"{statistics.median(run.cpu_s for run in group):.1f}",
            f"{statistics.median(run.peak_mb for run in group):.0f}",
            f"{statistics.median(run.disk_written_bytes for run in group) / 1e6:.0f}",
            f"{statistics.median(run.registry_bytes for run in group) / 1e6:.1f}",
            f"{statistics.median(models):.1f}" if models else "",
            f"{statistics.median(shares):.2f} x" if shares else "",
            f"{statistics.median(firsts):.2f}" if firsts else "",
        )  # fmt: skip
    return table


def _starts(runs: Sequence[Run]) -> Table:
    """Cold cached starts against the warm start, and against what the slow volume's rate allows."""
    table = Table(title="cached starts with a cold page cache: medians")
    for title in ("volume", "warm-up", "runs", "start s", "warm start s", "ratio", "at 200 MB/s s"):
        table.add_column(title, justify="right")
    groups: dict[tuple[str, bool], list[Run]] = {}
    for run in runs:
        if run.page_cache == "cold" and run.link == "loopback" and run.restart_s is not None:
            groups.setdefault((run.volume, bool(run.warm_up)), []).append(run)
    for (volume, warm_up), group in groups.items():
        start_s = statistics.median(run.start_s or 0.0 for run in group)
        least_s = warm_s = statistics.median(run.restart_s or 0.0 for run in group)
        rate_s = (group[0].profile_bytes or 0) / RATE
        if volume != "local":
            least_s = max(warm_s, rate_s)
        table.add_row(
            volume, "yes" if warm_up else "no", str(len(group)), f"{start_s:.2f}",
            f"{warm_s:.2f}", f"{start_s / least_s:.2f} x",
            f"{rate_s:.2f}" if volume != "local" else "",
        )  # fmt: skip
    return table


def _options(argv: Sequence[str]) -> argparse.Namespace:
    def several(known: Sequence[str]) -> object:
        def parse(text: str) -> list[str]:
            names = text.split(",")
            if unknown := set(names) - set(known):
                raise argparse.ArgumentTypeError(f"{unknown} is not one of {', '.join(known)}")
            return names

        return parse

    parser = argparse.ArgumentParser(prog="bench image", description="compares image pullers")
    names = " or ".join(image_names())
    parser.add_argument("--image", default="torch", help=f"{names}, or an image's reference")
    parser.add_argument("--pullers", type=several(tuple(NAMES)), default=list(NAMES))  # type: ignore[arg-type]
    parser.add_argument("--links", type=several(tuple(RATES_BITS)), default=list(RATES_BITS))  # type: ignore[arg-type]
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model-bytes", type=int, default=MODEL_BYTES)
    parser.add_argument(
        "--no-slow-volume",
        dest="slow_volume",
        action="store_false",
        help="no cached starts on a volume limited to 200 MB/s",
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)
