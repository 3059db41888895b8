"""The images that the image benchmark pulls, built once from package registries and kept.

"torch": PyPI's CUDA build of torch on a Debian root, 3 GB compressed in a few layers, with a
server that imports it. "many": a model server's shape, 34 layers and 100,000 small files. "deep":
108 layers, as many as the deepest images in use have, and 20,000 small files.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from bench.copied_image import copy_image
from tests.fixtures.images import Image, make_image
from tests.fixtures.servers import BUILD
from tests.fixtures.wheel_images import (
    LayerFolder,
    WriteLayer,
    bytecode_layer,
    debian_root,
    download_wheels,
    file_layer,
    wheel_layer,
)

FOLDER = BUILD / "bench" / "image"
PORT = 8080
_ROOM_BYTES = {
    "torch": 9 << 30,
    "many": 2 << 30,
    "deep": 1 << 30,
}  # to build: wheels, layers, the pushed copy
_TORCH = ["torch==2.6.0", "numpy>=1.26"]
_SMALL_FILES = {"many": (30, 100_000), "deep": (104, 20_000)}  # layers, files in all of them
_SMALL_FILES_TIME = 1_700_000_000

_SERVER = '''\
"""Imports what an inference server would, then answers /ping and /invocations on PORT."""
import importlib
import json
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

# Without what it needs it does not start.
torch = importlib.import_module("torch") if "torch" in os.environ["NEEDS"] else None


class Handler(BaseHTTPRequestHandler):
    def answer(self, document):
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if torch is None:
            self.answer({"torch": None, "sum": 6.0})
        else:
            total = torch.tensor([1.0, 2.0, 3.0]).sum().item()
            self.answer({"torch": torch.__version__, "sum": total})

    def log_message(self, *arguments):
        pass


HTTPServer(("", PORT), Handler).serve_forever()
'''.replace("PORT)", f"{PORT})")


@dataclass(frozen=True)
class BenchImage:
    """`unpacked_bytes` of the layers' tars, headers included; `files` of regular files; `serves`:
    a container of it answers POST /invocations on PORT."""

    name: str
    image: Image
    unpacked_bytes: int
    files: int
    serves: bool = True


def image_names() -> tuple[str, ...]:
    return tuple(_ROOM_BYTES)


def prepare_image(name: str, say: Callable[[str], None]) -> BenchImage:
    """Build what is missing: minutes the first time, at once later. Any other name than those of
    `image_names` is a reference, and the image is copied from its registry.

    Raises:
        SystemExit: too little disk.
        StepFailed: a package registry or a program did not do its part.
    """
    if name not in _ROOM_BYTES:
        tag = f"copied-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        return BenchImage(tag, *copy_image(name, FOLDER / tag, say), serves=False)
    folder = LayerFolder(FOLDER / name)
    names: list[str] = []
    blobs = []

    def add(layer: str, write: WriteLayer) -> None:
        if not folder.has(layer):
            _check_room(name)
            say(f"building layer {layer} of the image {name}")
        blobs.append(folder.layer(layer, write))
        names.append(layer)

    add("root", debian_root(FOLDER / name))
    version = folder.facts("root")["python"]
    if name == "torch":
        say("wheels of torch from PyPI")
        wheels = download_wheels(FOLDER / f"wheels-{version}", version, _TORCH)
        add("torch", wheel_layer(wheels, version))
        if version == f"{sys.version_info.major}.{sys.version_info.minor}":
            add("bytecode", bytecode_layer(wheels, version))  # pip would have written it
    else:
        layers, files = _SMALL_FILES[name]
        for number in range(layers):
            add(f"files-{number:02}", _small_files(number, files // layers))
        for number in range(2):
            add(f"changes-{number}", _changes(number))
    add("server-2", file_layer({"srv/serve.py": _SERVER.encode()}))
    config = {
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONUNBUFFERED=1", f"NEEDS={name}"],
        "Entrypoint": ["/usr/bin/python3", "/srv/serve.py"],
        "WorkingDir": "/srv",
        "ExposedPorts": {f"{PORT}/tcp": {}},
    }
    facts = [folder.facts(layer) for layer in names]
    return BenchImage(
        name,
        make_image(blobs, config),
        sum(int(each["tar_bytes"]) for each in facts),
        sum(int(each["files"]) for each in facts if "files" in each),
    )


def _small_files(number: int, count: int) -> WriteLayer:
    """Files as packages have them: mostly a few KiB, in nested folders; equal bytes every time."""

    def write(archive: tarfile.TarFile) -> dict[str, str]:
        chance = random.Random(number)
        words = [chance.randbytes(6).hex() for _ in range(2000)]
        for serial in range(count):
            size = min(int(chance.lognormvariate(7.5, 1.4)), 1 << 20)
            text = " ".join(chance.choices(words, k=size // 13 + 1)).encode()[:size]
            folder = f"srv/packages/p{number:02}/d{serial % 40:02}/e{serial % 7}"
            member = tarfile.TarInfo(f"{folder}/module_{serial:05}.py")
            member.size, member.mode, member.mtime = len(text), 0o644, _SMALL_FILES_TIME
            archive.addfile(member, BytesIO(text))
        return {"files": str(count)}

    return write


def _changes(number: int) -> WriteLayer:
    """What later steps of a build leave: whiteouts, changed files, an opaque directory."""

    def write(archive: tarfile.TarFile) -> dict[str, str]:
        lower = f"srv/packages/p{number:02}"
        for serial in range(50):
            name = f"{lower}/d{serial % 40:02}/e{serial % 7}/.wh.module_{serial:05}.py"
            archive.addfile(tarfile.TarInfo(name), BytesIO(b""))
        archive.addfile(tarfile.TarInfo(f"{lower}/d39/e6/.wh..wh..opq"), BytesIO(b""))
        return {}

    return write


def _check_room(name: str) -> None:
    Path(FOLDER).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(FOLDER).free
    if free < _ROOM_BYTES[name]:
        raise SystemExit(
            f"building the image {name} needs {_ROOM_BYTES[name] / 1e9:.0f} GB in {FOLDER}, "
            f"{free / 1e9:.1f} GB are free: make room, or name an image with --image"
        )
