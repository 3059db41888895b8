from __future__ import annotations

from pathlib import Path

from zeropull.containerd.regenerate import HERE, regenerate


def test_generated_modules_belong_to_the_protos(tmp_path: Path) -> None:
    names = [proto.stem for proto in regenerate(tmp_path)]
    made = tmp_path / "zeropull/containerd/_generated"
    assert sorted(f.name for f in made.glob("*.py")) == sorted(f"{name}_pb2.py" for name in names)
    for name in names:
        assert _descriptor(made / f"{name}_pb2.py") == _descriptor(
            HERE / "_generated" / f"{name}_pb2.py"
        )


def _descriptor(module: Path) -> list[str]:
    """What the protos say, without what another protoc release would write around it."""
    return [line for line in module.read_text().splitlines() if "AddSerializedFile" in line]
