"""Stored bodies are short, and dictionaries stay as they were released."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

import msgspec
import pytest

from zeropull.resources.instances import (
    AttachedVolume,
    CopyRecord,
    Instance,
    InstanceState,
    TimelineRecord,
)
from zeropull.resources.stages import Stage, StageRecord
from zeropull.statestore import Store
from zeropull.statestore.bodies import _DICTIONARIES, packed, unpacked


def test_every_body_comes_back(tmp_path: Path) -> None:
    for size in (0, 1, 100, 255, 256, 10_000, 1_000_000):
        text = msgspec.json.encode({"text": secrets.token_hex(size // 2)})
        assert unpacked(packed(text)) == text
    text = b'{"same":"' + b"x" * 100_000 + b'"}'
    assert len(packed(text)) < 1000


@pytest.mark.parametrize("cut", [1, 2, -3, -1])
def test_a_body_that_is_cut_is_refused(cut: int) -> None:
    body = packed(b'{"name":"' + b"y" * 1000 + b'"}')
    with pytest.raises(ValueError, match=r"end|invalid"):
        unpacked(body[:cut])


def test_a_released_dictionary_never_changes() -> None:
    """What was written with it could not be read any more."""
    digests = {n: hashlib.sha256(text).hexdigest()[:16] for n, text in _DICTIONARIES.items()}
    assert digests == {1: "a1e80a9ce48f1bd3"}


def test_a_copy_takes_less_than_two_kilobytes_on_the_disk(tmp_path: Path) -> None:
    """With its instance and its launch, and with the indexes of all."""
    path = tmp_path / "zeropull.db"
    count = 400
    with Store.open(path) as store, store.transaction():
        for number in range(count):
            put_copy(store, number)
    assert path.stat().st_size / count < 2048


def put_copy(store: Store, number: int) -> None:
    account, uid, deployment = "000000000000", f"{number // 50:032x}", secrets.token_hex(16)
    instance_id, copy_id = f"i-{secrets.token_hex(9)}", f"c-{secrets.token_hex(9)}"
    began_s = 1_790_000_000.0 + number / 7
    stages = tuple(
        StageRecord(
            stage, began_s + at, began_s + at * 1.7, {"registry": 0, "volume": number * 7919},
            8, 8, "cached", f"8/8 layers from the cache (100.0 %), {number} files",
        )
        for at, stage in enumerate(Stage)
    )  # fmt: skip
    digest = f"sha256:{secrets.token_hex(32)}"
    store.put(
        Instance(
            instance_id, account, uid, "endpoint", "AllTraffic", "ml.g5.xlarge", deployment,
            InstanceState.RUNNING, secrets.token_hex(32), began_s, "2 instances are wanted",
            began_s + 1, began_s + 2, address="198.18.3.2",
            volumes=(AttachedVolume(1, f"/var/lib/zeropull/caches/{uid}/generations/1", digest),),
        )
    )  # fmt: skip
    store.put(
        CopyRecord(
            copy_id, instance_id, account, uid, "endpoint", "AllTraffic", deployment, began_s,
            digest, state="healthy", host="198.18.3.3", healthy_s=began_s + 9.1,
            routed_s=began_s + 9.2,
        )
    )  # fmt: skip
    store.put(
        TimelineRecord(
            copy_id, instance_id, account, uid, "endpoint", "AllTraffic", deployment,
            "ml.g5.xlarge", began_s, reason="2 instances are wanted, 1 is there",
            ready_s=began_s + 9.2, first_response_s=began_s + 10, stages=stages,
        )
    )  # fmt: skip
