"""After a reboot nothing runs, whatever the store says: it is told so before anybody asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from zeropull.controlapi.messages import CopyState
from zeropull.resources.endpoints import Endpoint, EndpointStatus
from zeropull.resources.instances import CopyRecord
from zeropull.resources.machine import Machine
from zeropull.statestore import Store
from zeropull.telemetry import get_logger

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # proc(5): new at every boot
REBOOTED = "The machine was started again: nothing has answered since."

log = get_logger(__name__)


def boot_id() -> str:
    return BOOT_ID.read_text(encoding="ascii").strip()


def note_reboot(store: Store, current: str) -> bool:
    """Whether the machine has booted since the store was served last; then no copy counts as
    healthy or in rotation until it is heard of again.

    A store that knows no boot (of 0.1.0, or a new one) only learns this one.
    """
    stored = store.get(Machine, Machine.key)
    if stored is not None and stored.document.boot_id == current:
        return False
    with store.transaction():
        store.put(Machine(current))
        if stored is None:
            return False
        for copy in (s.document for s in store.select(CopyRecord)):
            store.put(replace(copy, state=CopyState.PENDING.value, routed_s=None))
        for endpoint in (s.document for s in store.select(Endpoint)):
            if endpoint.status is EndpointStatus.IN_SERVICE:
                out = replace(
                    endpoint, status=EndpointStatus.OUT_OF_SERVICE, failure_reason=REBOOTED
                )
                store.put(out)
    log.warning("the machine was started again: nothing runs yet")
    return True
