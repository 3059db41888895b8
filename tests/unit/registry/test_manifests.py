from __future__ import annotations

import json

import pytest

from tests.fixtures.images import Entry, make_image, make_index
from zeropull.errors import ImageError, PlatformError
from zeropull.registry.manifests import (
    Index,
    Manifest,
    Platform,
    choose,
    read_diff_ids,
    read_manifest,
)

AMD64 = Platform("linux", "amd64")


def image(**options: object):
    return make_image([[Entry("a", b"a")]], **options)  # type: ignore[arg-type]


def content(thing) -> bytes:
    return thing.manifest.content


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_both_formats_are_read(docker: bool, compression: str) -> None:
    made = image(docker=docker, compression=compression)
    manifest = read_manifest("r/a", content(made), "")
    assert isinstance(manifest, Manifest)
    assert manifest.config.digest == made.config.digest
    assert [layer.digest for layer in manifest.layers] == [made.layers[0].digest]


@pytest.mark.parametrize("docker", [False, True])
def test_an_index_is_searched_for_the_platform(docker: bool) -> None:
    arm, amd = image(architecture="arm64"), image()
    index = read_manifest("r/a", content(make_index([arm, amd], docker=docker)), "")
    assert isinstance(index, Index)
    assert choose("r/a", index, AMD64).digest == amd.digest


def test_a_missing_platform_names_what_is_offered() -> None:
    index = read_manifest("r/a", content(make_index([image(architecture="arm64")])), "")
    assert isinstance(index, Index)
    with pytest.raises(PlatformError, match="not built for linux/amd64, only for linux/arm64"):
        choose("r/a", index, AMD64)


def test_an_oci_index_without_a_media_type_is_known_by_its_shape() -> None:
    document = json.loads(content(make_index([image()])))
    del document["mediaType"]
    assert isinstance(read_manifest("r/a", json.dumps(document).encode(), ""), Index)


def test_a_config_for_another_architecture_is_refused() -> None:
    made = image(architecture="arm64")
    manifest = read_manifest("r/a", content(made), "")
    assert isinstance(manifest, Manifest)
    with pytest.raises(PlatformError, match="is built for linux/arm64, and this needs linux/amd64"):
        read_diff_ids("r/a", made.config.content, AMD64, manifest.layers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schemaVersion": 1}, "schema version 1"),
        ({"config": None}, "no config"),
        ({"layers": [{"digest": "sha256:12", "size": 1, "mediaType": "text/plain"}]}, "text/plain"),
        ({"layers": "many"}, "not valid"),
    ],
)
def test_what_is_not_a_usable_image_is_refused(change: dict[str, object], message: str) -> None:
    document = json.loads(content(image())) | change
    with pytest.raises(ImageError, match=message):
        read_manifest("r/a", json.dumps(document).encode(), "")


def test_an_artifact_is_not_an_image() -> None:
    document = json.loads(content(image()))
    document["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    with pytest.raises(ImageError, match="artifact"):
        read_manifest("r/a", json.dumps(document).encode(), "")


def test_a_manifest_of_endless_brackets_is_refused() -> None:
    content = b'{"schemaVersion": 2, "x": ' + b"[" * 1_000_000
    with pytest.raises(ImageError, match="manifest is not valid"):
        read_manifest("a", content, "application/json")
