"""Resolves image references to digests: once per deployment, and once per version of a component.

A registry that is busy or breaks off is asked again, with growing pauses, for as long as the
variant may wait for its instances (`provision_timeout_s`). One that cannot be reached at all is
given up sooner: its address is more likely wrong.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace

from zeropull.errors import ImageError, Unavailable, ZeropullError
from zeropull.oci.images import ResolvedImage
from zeropull.reconcilers import failure_reasons
from zeropull.reconcilers.failing import MAX_ATTEMPTS, provision_limit_s
from zeropull.resources.components import ComponentVersion, InferenceComponent
from zeropull.resources.endpoints import DeployedImage, Deployment, Endpoint, Variant
from zeropull.resources.settings import EndpointSettings
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

UNREACHABLE_LIMIT_S = 60.0  # connections refused, or a name that nobody knows

log = get_logger(__name__)

Resolve = Callable[[str], Awaitable[ResolvedImage]]


@dataclass(frozen=True, slots=True)
class _Sought:
    """`missing`: the variant by image reference. `limit_s` counts from `started_s`."""

    missing: dict[str, str]
    started_s: float
    limit_s: float


class _Unforeseen(Unavailable):
    """An error of another kind than ours: it may pass, but it is not waited for long."""


class Resolver:
    """`failures`: the FailureReason by target, for what cannot be resolved; `waiting`: why it is
    still waited for. A target is the ID of a deployment or of a component's version."""

    def __init__(
        self,
        store: Store,
        resolve: Resolve,
        settings: EndpointSettings,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._resolve = resolve
        self._settings = settings
        self._clock = clock
        self.failures: dict[str, str] = {}
        self.waiting: dict[str, str] = {}

    async def run(self, endpoint_key: str, target: str) -> None:
        """Write the digests of the target's references into its document, or note why not."""
        sought = self._find(endpoint_key, target)
        resolved: dict[str, DeployedImage] = {}
        for reference, variant in sought.missing.items() if sought else ():
            try:
                image = await self._resolve_patiently(endpoint_key, target, reference)
            except ZeropullError as error:
                self.failures[target] = failure_reasons.image_failure(variant, error.reason)
                log.warning("image not resolved", image=reference, reason=error.reason)
                return
            finally:
                self.waiting.pop(target, None)
            if image is None:
                return
            digest = image.manifest_digest
            resolved[reference] = DeployedImage(reference, digest, self._clock())
            log.info("image resolved", image=reference, manifest_digest=digest)
        self._write(endpoint_key, target, resolved)

    def forget_all_but(self, targets: Collection[str]) -> None:
        """Failures of what is wanted no more are of no use to anyone."""
        for target in self.failures.keys() - set(targets):
            del self.failures[target]

    async def _resolve_patiently(
        self, endpoint_key: str, target: str, reference: str
    ) -> ResolvedImage | None:
        """None when nobody wants it any more.

        Raises:
            ZeropullError: it can not be resolved, or not in time.
        """
        loop = asyncio.get_running_loop()
        began_s, failures, unforeseen = loop.time(), 0, 0
        failed: Unavailable
        while True:
            sought = self._find(endpoint_key, target)
            if sought is None or reference not in sought.missing:
                return None
            left_s = sought.limit_s - (loop.time() - began_s)
            try:
                return await self._resolve_once(reference, left_s)
            except _Unforeseen as error:
                failed = error
                unforeseen += 1
            except Unavailable as error:
                failed = error
            failures += 1
            # Ages are measured by the loop's clock: the wall clock may be set meanwhile.
            spent_s = loop.time() - began_s
            limit_s = sought.limit_s
            if _is_unreachable(failed):
                limit_s = min(limit_s, UNREACHABLE_LIMIT_S)
            delay_s = max(self._settings.backoff.after(failures), failed.retry_after_s or 0.0)
            if unforeseen >= MAX_ATTEMPTS:
                raise failed
            if spent_s + delay_s > limit_s:
                raise Unavailable(
                    f"{failed.reason} (tried {failures} times in {spent_s:.0f} s)"
                ) from failed
            self.waiting[target] = f"{failed.reason}; tried again in {delay_s:.0f} s"
            log.warning(
                "image not resolved yet",
                image=reference,
                reason=failed.reason,
                retry_in_s=round(delay_s, 1),
            )
            await asyncio.sleep(delay_s)

    async def _resolve_once(self, reference: str, limit_s: float) -> ResolvedImage:
        """One try, with nothing but errors of ours."""
        try:
            async with asyncio.timeout(limit_s):
                return await self._resolve(reference)
        except TimeoutError:
            raise ImageError(
                f"{reference} was not resolved within {limit_s:.0f} s: its registry does not answer"
            ) from None
        except ZeropullError:
            raise
        except Exception as error:
            log.error("an error that nobody foresaw", error=str(error), exc_info=error)
            raise _Unforeseen(f"{type(error).__name__}: {error}") from error

    def _find(self, endpoint_key: str, target: str) -> _Sought | None:
        stored = self._store.get(Endpoint, endpoint_key)
        if stored is None:
            return None
        endpoint = stored.document
        for deployment in (endpoint.current, endpoint.pending):
            if deployment is not None and deployment.deployment_id == target:
                return self._of_deployment(deployment)
        for component in self._store.select(InferenceComponent, endpoint_uid=endpoint.uid):
            version = component.document.version(target)
            if version is not None:
                return self._of_version(endpoint, component.document, version)
        return None

    def _of_deployment(self, deployment: Deployment) -> _Sought:
        missing = {
            c.image: v.name
            for v in deployment.variants
            for c in v.containers
            if c.image not in {i.reference for i in v.images}
        }
        limit_s = max(provision_limit_s(v, self._settings) for v in deployment.variants)
        return _Sought(missing, deployment.started_s, limit_s)

    def _of_version(
        self, endpoint: Endpoint, component: InferenceComponent, version: ComponentVersion
    ) -> _Sought:
        missing = {} if version.image else {version.spec.container.image: component.variant}
        variant = endpoint.newest.variant(component.variant) if endpoint.newest else None
        limit_s = (
            provision_limit_s(variant, self._settings)
            if variant is not None
            else self._settings.provision_timeout_s
        )
        return _Sought(missing, version.started_s, limit_s)

    def _write(self, endpoint_key: str, target: str, resolved: dict[str, DeployedImage]) -> None:
        with self._store.transaction():
            stored = self._store.get(Endpoint, endpoint_key)
            if stored is None or not resolved:
                return
            endpoint = stored.document
            filled = replace(
                endpoint,
                current=_with_images(endpoint.current, target, resolved),
                pending=_with_images(endpoint.pending, target, resolved),
            )
            if filled != endpoint:
                self._store.put(filled)
                return
            for component in self._store.select(InferenceComponent, endpoint_uid=endpoint.uid):
                _fill_version(self._store, component.document, target, resolved)


def _with_images(
    deployment: Deployment | None, target: str, resolved: dict[str, DeployedImage]
) -> Deployment | None:
    if deployment is None or deployment.deployment_id != target:
        return deployment

    def filled(variant: Variant) -> Variant:
        known = {i.reference: i for i in variant.images} | resolved
        images = dict.fromkeys(c.image for c in variant.containers)
        return replace(variant, images=tuple(known[i] for i in images if i in known))

    return replace(deployment, variants=tuple(filled(v) for v in deployment.variants))


def _fill_version(
    store: Store,
    component: InferenceComponent,
    target: str,
    resolved: dict[str, DeployedImage],
) -> None:
    current, pending = component.current, component.pending
    if current.version_id == target:
        image = resolved[current.spec.container.image]
        store.put(replace(component, current=replace(current, image=image)))
    elif pending is not None and pending.version_id == target:
        image = resolved[pending.spec.container.image]
        store.put(replace(component, pending=replace(pending, image=image)))


def _is_unreachable(error: Unavailable) -> bool:
    return isinstance(error.__cause__, ConnectionRefusedError | socket.gaierror)
