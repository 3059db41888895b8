"""Images found behind indexes, in a registry of two dictionaries."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fixtures.images import Entry, Image, make_image
from zeropull.errors import ImageError, NotFound, PlatformError, UnreadableImage
from zeropull.oci.digests import digest_of
from zeropull.oci.images import Descriptor, ResolvedImage
from zeropull.oci.platforms import Platform
from zeropull.registry.choosing import Document, find_image
from zeropull.registry.manifests import OCI_INDEX, OCI_MANIFEST

AMD64 = {"os": "linux", "architecture": "amd64"}
UNKNOWN = {"os": "unknown", "architecture": "unknown"}


class Shelf:
    """Manifests and configs by digest (the in-memory twin of a registry's documents)."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.asked: list[str] = []

    def put(self, content: bytes) -> str:
        self.contents[digest_of(content)] = content
        return digest_of(content)

    def manifest(self, digest: str) -> Document:
        self.asked.append(digest)
        if digest not in self.contents:
            raise NotFound(digest)
        return Document(self.contents[digest], "")

    def config(self, descriptor: Descriptor) -> bytes:
        return self.contents[descriptor.digest]

    def image(
        self, text: str, config: dict[str, Any] | None = None, **manifest: object
    ) -> dict[str, Any]:
        """The descriptor of an image with one file; `config` and `manifest` are changes to it."""
        made = make_image([[Entry(text, text.encode())]])
        changed = json.dumps(json.loads(_content(made)) | (config or {})).encode()
        document = json.loads(_bytes(made.manifest.content)) | manifest
        document["config"] |= {"digest": self.put(changed), "size": len(changed)}
        return self.entry(json.dumps(document).encode(), OCI_MANIFEST)

    def index(self, *entries: dict[str, Any]) -> dict[str, Any]:
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}
        return self.entry(json.dumps(document).encode(), OCI_INDEX)

    def entry(self, content: bytes, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": self.put(content), "size": len(content)}

    def find(self, top: dict[str, Any], wanted: str | None = "linux/amd64/v3") -> ResolvedImage:
        document = Document(self.contents[top["digest"]], "")
        return find_image("r/a", document, Platform.parse(wanted) if wanted else None, self)


def _content(image: Image) -> bytes:
    return _bytes(image.config.content)


def _bytes(content: object) -> bytes:
    assert isinstance(content, bytes)
    return content


def test_an_index_in_an_index_is_followed() -> None:
    shelf = Shelf()
    image = shelf.image("a")
    attestation = shelf.image("attestation", UNKNOWN)
    inner = shelf.index(image | {"platform": AMD64}, attestation | {"platform": UNKNOWN})
    for platform in ({"platform": AMD64}, {}):
        found = shelf.find(shelf.index(inner | platform))
        assert found.manifest_digest == image["digest"]
    assert attestation["digest"] not in shelf.asked


def test_indexes_that_never_end_are_refused() -> None:
    shelf = Shelf()
    top = shelf.image("a")
    for _ in range(20):
        top = shelf.index(top)
    with pytest.raises(ImageError, match="indexes lead to indexes"):
        shelf.find(shelf.index(top | {"platform": AMD64}))
    many = [shelf.image(str(number), {"architecture": "arm64"}) for number in range(70)]
    with pytest.raises(ImageError, match="more than 64"):
        shelf.find(shelf.index(*many))


def test_an_entry_without_a_platform_is_matched_by_its_config() -> None:
    shelf = Shelf()
    arm, amd = shelf.image("arm", {"architecture": "arm64"}), shelf.image("amd")
    entries: list[dict[str, Any]] = [{}, {"platform": None}, {"platform": {}}]
    for entry in entries:
        found = shelf.find(shelf.index(arm | entry, amd | entry))
        assert found.manifest_digest == amd["digest"]


def test_entries_without_a_platform_that_are_no_images_are_passed_over() -> None:
    shelf = Shelf()
    signature = shelf.image("s", config=None, layers=[{"mediaType": "text/plain", "digest": "x"}])
    deleted = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "0" * 64, "size": 2}
    image = shelf.image("a")
    assert shelf.find(shelf.index(signature, deleted, image)).manifest_digest == image["digest"]
    with pytest.raises(UnreadableImage, match="text/plain") as caught:
        shelf.find(shelf.index(signature, deleted))
    assert caught.value.manifest_digest == signature["digest"]


def test_the_highest_level_that_the_processor_has_is_chosen() -> None:
    shelf = Shelf()
    entries = {
        level: shelf.image(level) | {"platform": AMD64 | {"variant": level}}
        for level in ("v4", "v2", "v1", "v3")
    }
    index = shelf.index(*entries.values())
    for level in entries:
        found = shelf.find(index, f"linux/amd64/{level}")
        assert found.manifest_digest == entries[level]["digest"]
    assert shelf.find(index, "linux/amd64").manifest_digest == entries["v1"]["digest"]


def test_an_image_for_better_processors_only_names_the_level() -> None:
    shelf = Shelf()
    index = shelf.index(shelf.image("a") | {"platform": AMD64 | {"variant": "v4"}})
    with pytest.raises(PlatformError, match="for linux/amd64/v3, only for linux/amd64/v4"):
        shelf.find(index)


@pytest.mark.parametrize("name", ["x86_64", "AMD64", "x86-64"])
def test_other_names_of_amd64_are_amd64(name: str) -> None:
    shelf = Shelf()
    image = shelf.image("a", {"architecture": name})
    assert shelf.find(image).manifest_digest == image["digest"]
    index = shelf.index(image | {"platform": {"os": "linux", "architecture": name}})
    assert shelf.find(index).manifest_digest == image["digest"]


def test_a_config_that_states_no_platform_is_taken() -> None:
    shelf = Shelf()
    image = shelf.image("a", {"architecture": "", "os": ""})
    assert shelf.find(image).manifest_digest == image["digest"]
    assert shelf.find(shelf.index(image)).manifest_digest == image["digest"]


def test_an_index_decides_against_the_config() -> None:
    shelf = Shelf()
    image = shelf.image("a", {"architecture": "arm64"})
    found = shelf.find(shelf.index(image | {"platform": AMD64}))
    assert found.manifest_digest == image["digest"]
    # Asked for again by its digest, it stands by itself.
    assert shelf.find(image, None).manifest_digest == image["digest"]
    with pytest.raises(PlatformError, match="is built for linux/arm64, and this needs linux/amd64"):
        shelf.find(image)


def test_a_missing_platform_names_what_is_offered() -> None:
    shelf = Shelf()
    arm = shelf.image("a") | {"platform": {"os": "linux", "architecture": "arm64"}}
    attestation = shelf.image("b") | {"platform": UNKNOWN}
    for index in (shelf.index(arm, attestation), shelf.index(shelf.index(arm))):
        with pytest.raises(PlatformError, match=r"for linux/amd64, only for linux/arm64: build"):
            shelf.find(index)
    with pytest.raises(PlatformError, match="only for nothing"):
        shelf.find(shelf.index(attestation))


def test_what_is_not_known_here_is_told_with_its_digest() -> None:
    shelf = Shelf()
    image = shelf.image("a", layers=[{"mediaType": "application/new", "digest": "x", "size": 1}])
    for top in (image, shelf.index(image | {"platform": AMD64})):
        with pytest.raises(UnreadableImage, match="application/new") as caught:
            shelf.find(top)
        assert caught.value.manifest_digest == image["digest"]
