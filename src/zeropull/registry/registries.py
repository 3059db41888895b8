"""Credentials by registry, and images by digest: what the control plane knows of registries."""

from __future__ import annotations

import dataclasses
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from zeropull.errors import ConfigurationError, UnreadableImage, ZeropullError
from zeropull.oci.images import ResolvedImage
from zeropull.oci.references import parse_reference
from zeropull.registry import RegistryClient
from zeropull.registry.credentials import load_docker_config
from zeropull.resources.settings import RegistrySettings, Settings
from zeropull.resources.sources import RegistryAccess, RegistryMirror
from zeropull.telemetry import get_logger

REMEMBERED_IMAGES = 256
REMEMBERED_ACCESS_S = 30.0

log = get_logger(__name__)


class Registries:
    """How registries are reached: the configuration, and credentials from the Docker config file,
    read anew, where the configuration has none."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._images: OrderedDict[str, ResolvedImage] = OrderedDict()
        self._known: dict[str, _Known] = {}
        self._refreshing = ThreadPoolExecutor(2, thread_name_prefix="credentials")
        self.client = RegistryClient(self.access)

    def access(self, host: str) -> RegistryAccess | None:
        """Looked up now; it may wait for a credential helper.

        Never raises: why there are no credentials is the answer's `problem`.
        """
        found = self._look_up(host)
        self._known[host] = _Known(found, time.monotonic() + REMEMBERED_ACCESS_S)
        return found

    def access_for(self, reference: str) -> RegistryAccess | None:
        """For the registry of an image reference, as it was known lately.

        The event loop does not wait for helpers: what is old is looked up again in a thread, and
        only a host that nobody has asked for since the start is looked up at once.
        """
        host = parse_reference(reference).registry
        known = self._known.get(host)
        if known is None:
            return self.access(host)
        if known.until_s < time.monotonic():
            known.until_s = time.monotonic() + REMEMBERED_ACCESS_S
            self._refreshing.submit(self.access, host)
        return known.access

    def _look_up(self, host: str) -> RegistryAccess | None:
        configured = self._settings.registries.get(host)
        problem = None
        try:
            if configured is None:
                return self._from_docker(host)
            given = _configured(host, configured)
            if configured.username is None and configured.token is None:
                given = _with_credentials(given, self._from_docker(host))
            mirrors = tuple(RegistryMirror(url, self._mirror(url)) for url in configured.mirrors)
            return dataclasses.replace(given, mirrors=mirrors)
        except ZeropullError as error:
            problem = error.reason
            log.warning("credentials not found", host=host, reason=problem)
        plain_http = configured.plain_http if configured is not None else None
        return RegistryAccess(host, plain_http, problem=problem)

    def _mirror(self, url: str) -> RegistryAccess:
        """A mirror stands in the configuration, so it may have any address."""
        parts = urlsplit(url)
        host = parts.netloc
        known = self._settings.registries.get(host)
        access = _configured(host, known) if known else RegistryAccess(host, is_configured=True)
        if access.username is None and access.token is None:
            access = _with_credentials(access, self._from_docker(host))
        return dataclasses.replace(access, plain_http=parts.scheme == "http")

    def _from_docker(self, host: str) -> RegistryAccess | None:
        path = Path(self._settings.docker_config or "~/.docker/config.json").expanduser()
        return load_docker_config(path)(host) if path.exists() else None

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


@dataclass(slots=True)
class _Known:
    access: RegistryAccess | None
    until_s: float


def _configured(host: str, settings: RegistrySettings) -> RegistryAccess:
    return RegistryAccess(
        host,
        settings.plain_http,
        settings.username,
        settings.password,
        settings.token,
        ca=_read_pem(host, "ca_file", settings.ca_file),
        client_cert=_read_pem(host, "cert_file", settings.cert_file),
        client_key=_read_pem(host, "key_file", settings.key_file),
        skip_verify=settings.skip_verify,
        is_configured=True,
    )


def _with_credentials(access: RegistryAccess, found: RegistryAccess | None) -> RegistryAccess:
    if found is None:
        return access
    return dataclasses.replace(
        access, username=found.username, password=found.password, token=found.token
    )


def _read_pem(host: str, name: str, path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"registries.{host}.{name} = {path!r} cannot be read: {error}"
        ) from error
