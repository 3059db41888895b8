"""An empty state beside a full state directory: an accident, not a first start."""

from __future__ import annotations

from pathlib import Path

from zeropull.errors import ConfigurationError
from zeropull.imagecache.generations import GenerationStore
from zeropull.resources.image_caches import ImageCacheRecord
from zeropull.resources.settings import Settings
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

NAMED = 5

log = get_logger(__name__)


def refuse_lost_state(settings: Settings, store: Store) -> None:
    """Refuse to begin with an empty state beside instances or image caches. No document would know
    them, so the instances would be ended and the caches removed.

    Raises:
        ConfigurationError: with what is there, unless the operator has said `--fresh-state`.
    """
    if settings.fresh_state or store.revision:
        return
    instances = _described("instance", settings.state_dir / "instances")
    caches = _described("image cache", settings.state_dir / "caches")
    found = " and ".join(text for text in (instances, caches) if text)
    if found:
        raise ConfigurationError(
            f"the state in {settings.database} is missing or empty, but there are {found}: bring "
            "the state back with `zeropull restore FILE`, or begin anew with `zeropull serve "
            "--fresh-state`, which ends these instances and removes these image caches"
        )


def remove_orphaned_caches(store: Store, generations: GenerationStore) -> None:
    """Remove the image caches that no document knows: its document was damaged, or the state was
    begun anew."""
    known = {stored.document.endpoint_uid for stored in store.select(ImageCacheRecord)}
    for uid in generations.endpoints():
        if uid not in known:
            removed = generations.purge(uid)
            log.warning("orphaned image cache removed", endpoint_uid=uid, bytes=removed.bytes)


def _described(what: str, folder: Path) -> str:
    """Such as "2 instances (S/instances: i-1, i-2)"; empty when there is none."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    except OSError:
        return ""
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    plural = "" if len(names) == 1 else "s"
    return f"{len(names)} {what}{plural} ({folder}: {', '.join(names[:NAMED])}{more})"
