"""What the log of scaling activities keeps, and what it leaves out."""

from __future__ import annotations

from pathlib import Path

from zeropull.autoscaler.readings import NotScaled
from zeropull.resources.scaling import VARIANT_DIMENSION, ScalableTarget, ScalingActivity
from zeropull.scaling.activities import ActivityLog
from zeropull.statestore import Store


def test_reasons_that_take_turns_push_no_change_out_of_the_log(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "state.db")
    target = ScalableTarget(
        "000000000000", "endpoint/demo/variant/main", VARIANT_DIMENSION, 1, 4, "arn", 1.0
    )
    log = ActivityLog(store, target)
    log.begin(target, 2, "more was needed", 10.0)
    for turn in range(300):
        reason = NotScaled.AT_MINIMUM if turn % 2 else NotScaled.ANTICIPATED_FLAPPING
        log.note_not_scaled(target, reason, 2, "as before", 20.0 + turn)
    kept = [each.document for each in store.select(ScalingActivity)]
    assert [each.desired for each in kept if each.desired is not None] == [2]
    assert len(kept) == 3
    log.begin(target, 1, "less was needed", 400.0)
    log.note_not_scaled(target, NotScaled.AT_MINIMUM, 1, "again", 410.0)
    assert len(store.select(ScalingActivity)) == 5
    store.close()
