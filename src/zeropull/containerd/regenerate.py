"""Write `_generated` again from `protos`: `python -m zeropull.containerd.regenerate`.

Needs grpcio-tools, of the `dev` extra. Only messages are generated, no service stubs: those
would tie us to the grpcio release that wrote them, and our clients name their methods themselves.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def regenerate(source_root: Path = HERE.parent.parent) -> list[Path]:
    """Run protoc over every file of `protos`; returns what it was run for."""
    from grpc_tools import protoc  # of the dev extra

    protos = sorted((HERE / "protos").glob("*.proto"))
    package = "zeropull/containerd/_generated"
    well_known = Path(protoc.__file__).parent / "_proto"
    status = protoc.main(
        [
            "protoc",
            f"-I{package}={HERE / 'protos'}",
            f"-I{well_known}",
            f"--python_out={source_root}",
            f"--pyi_out={source_root}",
            *(f"{package}/{proto.name}" for proto in protos),
        ]
    )
    if status != 0:
        raise SystemExit(f"protoc ended with {status}")
    return protos


if __name__ == "__main__":
    print(f"generated from {len(regenerate())} files")
