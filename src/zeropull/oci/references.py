"""Image references (distribution-spec names; short forms as Docker reads them)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from zeropull.errors import InvalidInput
from zeropull.oci.digests import check_digest

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")
_MAX_REPOSITORY = 255
_HUB_ALIAS = "index.docker.io"  # Docker Hub's name in old references and in Docker's config files


@dataclass(frozen=True, slots=True)
class Reference:
    """`registry` is the host as it was written, with its port; at least one of tag and digest."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    @property
    def wanted(self) -> str:
        """What the registry is asked for: a digest pins, so it goes before the tag."""
        return self.digest or self.tag or "latest"


def parse_reference(text: str) -> Reference:
    """Read `[registry/]repository[:tag][@digest]`.

    Without a registry the reference is Docker Hub's, without tag and digest it means `latest`.

    Raises:
        InvalidInput: with the part that is wrong.
    """
    name, at, digest = text.partition("@")
    if at:
        check_digest(digest)
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        registry, path = ("docker.io" if first == _HUB_ALIAS else first), rest
    else:
        registry, path = "docker.io", name
    if not _HOST.fullmatch(registry):
        raise InvalidInput(f"image {text!r}: {registry!r} is not a registry's host[:port]")
    repository, colon, tag = path.partition(":")
    if registry == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    if not _REPOSITORY.fullmatch(repository) or len(repository) > _MAX_REPOSITORY:
        raise InvalidInput(
            f"image {text!r}: {repository!r} is not a repository name: "
            "lower-case letters, digits and . _ - between slashes"
        )
    if colon and not _TAG.fullmatch(tag):
        raise InvalidInput(f"image {text!r}: {tag!r} is not a tag")
    if not colon and not at:
        tag = "latest"
    return Reference(registry, repository, tag or None, digest or None)
