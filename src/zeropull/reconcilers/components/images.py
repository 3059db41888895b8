"""Resolves the image of a component's version: once, before its first copy is placed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from zeropull.backoff import Backoff
from zeropull.errors import Unavailable, ZeropullError
from zeropull.oci.images import ResolvedImage
from zeropull.reconcilers import failure_reasons
from zeropull.resources.components import ComponentVersion, InferenceComponent
from zeropull.resources.endpoints import DeployedImage
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

ATTEMPTS = 3  # of an unreachable registry, until the version fails

log = get_logger(__name__)


async def resolve_version(
    store: Store,
    version_id: str,
    resolve: Callable[[str], Awaitable[ResolvedImage]],
    *,
    backoff: Backoff,
    clock: Callable[[], float],
) -> str | None:
    """Write the digest into the version; returns the FailureReason when there is none."""
    found = _find(store, version_id)
    if found is None:
        return None
    component, version = found
    reference = version.spec.container.image
    try:
        image = await _resolve(reference, resolve, backoff)
    except ZeropullError as error:
        log.warning("image not resolved", image=reference, reason=error.reason)
        return failure_reasons.image_failure(component.variant, error.reason)
    deployed = DeployedImage(reference, image.manifest_digest, clock())

    def filled(document: InferenceComponent) -> InferenceComponent:
        current, pending = document.current, document.pending
        if current.version_id == version_id:
            return replace(document, current=replace(current, image=deployed))
        if pending is not None and pending.version_id == version_id:
            return replace(document, pending=replace(pending, image=deployed))
        return document  # rolled back meanwhile

    with store.transaction():
        if store.get(InferenceComponent, component.key) is not None:
            store.update(InferenceComponent, component.key, filled)
    log.info("image resolved", image=reference, manifest_digest=image.manifest_digest)
    return None


async def _resolve(
    reference: str, resolve: Callable[[str], Awaitable[ResolvedImage]], backoff: Backoff
) -> ResolvedImage:
    for failures in range(1, ATTEMPTS):
        try:
            return await resolve(reference)
        except Unavailable as error:
            delay_s = backoff.after(failures)
            log.warning(
                "registry unavailable", image=reference, reason=error.reason, retry_in_s=delay_s
            )
            await asyncio.sleep(delay_s)
    return await resolve(reference)


def _find(store: Store, version_id: str) -> tuple[InferenceComponent, ComponentVersion] | None:
    for stored in store.select(InferenceComponent):
        version = stored.document.version(version_id)
        if version is not None:
            return stored.document, version
    return None
