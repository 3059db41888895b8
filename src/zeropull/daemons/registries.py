"""Credentials by registry, and images by digest: what the control plane knows of registries."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from zeropull.controlapi.messages import RegistryAccess
from zeropull.errors import UnreadableImage, ZeropullError
from zeropull.oci.images import ResolvedImage
from zeropull.oci.references import parse_reference
from zeropull.registry import RegistryClient
from zeropull.registry.credentials import load_docker_config
from zeropull.resources.settings import Settings
from zeropull.telemetry import get_logger

REMEMBERED_IMAGES = 256

log = get_logger(__name__)


class Registries:
    """Looks a host up in the configuration first, then in the Docker config file, read anew."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._images: OrderedDict[str, ResolvedImage] = OrderedDict()
        self.client = RegistryClient(self.access)

    def access(self, host: str) -> RegistryAccess | None:
        configured = self._settings.registries.get(host)
        if configured is not None:
            return RegistryAccess(
                host,
                configured.plain_http,
                configured.username,
                configured.password,
                configured.token,
            )
        path = Path(self._settings.docker_config or "~/.docker/config.json").expanduser()
        if not path.exists():
            return None
        try:
            return load_docker_config(path)(host)
        except ZeropullError as error:
            log.warning("credentials not found", host=host, reason=error.reason)
            return None

    def access_for(self, reference: str) -> RegistryAccess | None:
        """For the registry of an image reference."""
        return self.access(parse_reference(reference).registry)

    async def resolve(self, reference: str) -> ResolvedImage:
        """What the reference means now.

        An image that only containerd may be able to read is its digest and nothing else: nodes
        have containerd pull it.
        """
        try:
            image = await self.client.resolve(reference)
        except UnreadableImage as error:
            if not error.manifest_digest:
                raise
            log.warning("image is left to containerd", image=reference, reason=error.reason)
            return ResolvedImage(reference, error.manifest_digest, "", b"", "", b"", (), ())
        self._remember(image)
        return image

    async def image(self, reference: str, manifest_digest: str) -> ResolvedImage:
        """The manifest with this digest, from memory if it was resolved by this process."""
        known = self._images.get(manifest_digest)
        if known is not None:
            return known
        image = await self.client.fetch_manifest_image(reference, manifest_digest)
        self._remember(image)
        return image

    def _remember(self, image: ResolvedImage) -> None:
        self._images[image.manifest_digest] = image
        while len(self._images) > REMEMBERED_IMAGES:
            self._images.popitem(last=False)
