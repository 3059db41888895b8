from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fixtures import images
from tests.fixtures.images import Entry, Image, make_image, make_index
from zeropull.errors import ImageError, UnreadableImage
from zeropull.oci.platforms import Platform
from zeropull.registry.manifests import Index, Manifest, read_config, read_manifest


def image(**options: Any) -> Image:
    return make_image([[Entry("a", b"a")]], **options)


def content(thing: Image | images.Index) -> bytes:
    assert isinstance(thing.manifest.content, bytes)
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
def test_an_index_lists_its_entries_with_their_platforms(docker: bool) -> None:
    arm, amd = image(architecture="arm64"), image()
    index = read_manifest("r/a", content(make_index([arm, amd], docker=docker)), "")
    assert isinstance(index, Index)
    assert [str(entry.platform) for entry in index.entries] == ["linux/arm64", "linux/amd64"]
    assert [entry.descriptor.digest for entry in index.entries] == [arm.digest, amd.digest]


def test_an_oci_index_without_a_media_type_is_known_by_its_shape() -> None:
    document = json.loads(content(make_index([image()])))
    del document["mediaType"]
    assert isinstance(read_manifest("r/a", json.dumps(document).encode(), ""), Index)


def changed(**members: object) -> bytes:
    return json.dumps(json.loads(content(image())) | members).encode()


def test_a_manifest_and_a_config_without_layers_may_say_null() -> None:
    manifest = read_manifest("r/a", changed(layers=None), "")
    assert isinstance(manifest, Manifest)
    assert manifest.layers == ()
    assert (
        read_config("r/a", b'{"rootfs": {"type": "layers", "diff_ids": null}}', ()).diff_ids == ()
    )
    assert read_config("r/a", b'{"rootfs": null, "os": null}', ()).platform == Platform("", "")


def test_members_that_are_not_used_may_be_missing() -> None:
    windows = {"digest": "sha256:" + "0" * 64, "platform": {"os": "windows"}, "size": None}
    document = {"schemaVersion": 2, "manifests": [windows, {"digest": "md5:12"}, {}]}
    index = read_manifest("r/a", json.dumps(document).encode(), "")
    assert isinstance(index, Index)
    (entry,) = index.entries
    assert entry.platform is None


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    ],
)
def test_layers_that_need_not_be_distributed_are_layers(media_type: str) -> None:
    layers = json.loads(content(image()))["layers"]
    layers[0]["mediaType"] = media_type
    manifest = read_manifest("r/a", changed(layers=layers), "")
    assert isinstance(manifest, Manifest)
    assert manifest.layers[0].media_type == media_type


@pytest.mark.parametrize("media_type", ["application/octet-stream", "application/json", None])
def test_configs_of_old_pushes_and_small_tools_are_configs(media_type: str | None) -> None:
    config = json.loads(content(image()))["config"] | {"mediaType": media_type}
    assert isinstance(read_manifest("r/a", changed(config=config), ""), Manifest)


def test_a_manifest_without_a_schema_version_is_read() -> None:
    document = json.loads(content(image()))
    del document["schemaVersion"]
    assert isinstance(read_manifest("r/a", json.dumps(document).encode(), ""), Manifest)


def test_an_image_that_is_an_index_as_well_is_refused() -> None:
    with pytest.raises(ImageError, match="an image and an index at once"):
        read_manifest("r/a", changed(manifests=[{"digest": "sha256:" + "0" * 64}]), "")


def test_a_config_for_another_number_of_layers_is_left_to_containerd() -> None:
    made = image()
    manifest = read_manifest("r/a", content(made), "")
    assert isinstance(manifest, Manifest)
    with pytest.raises(UnreadableImage, match="its config names 0 layers, its manifest 1"):
        read_config("r/a", b"{}", manifest.layers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schemaVersion": 1}, "schema version 1"),
        ({"config": None}, "no config"),
        ({"layers": [{"digest": "sha256:12", "size": 1, "mediaType": "text/plain"}]}, "text/plain"),
        ({"layers": "many"}, "not valid"),
        ({"fsLayers": [{"blobSum": "sha256:12"}]}, "schema version"),
    ],
)
def test_what_is_no_format_of_ours_is_left_to_containerd(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(UnreadableImage, match=message):
        read_manifest("r/a", changed(**change), "")


def test_an_artifact_is_not_an_image() -> None:
    document = json.loads(content(image()))
    document["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    with pytest.raises(ImageError, match="artifact"):
        read_manifest("r/a", json.dumps(document).encode(), "")


def test_a_manifest_of_endless_brackets_is_refused() -> None:
    content = b'{"schemaVersion": 2, "x": ' + b"[" * 1_000_000
    with pytest.raises(ImageError, match="manifest is not valid"):
        read_manifest("a", content, "application/json")
