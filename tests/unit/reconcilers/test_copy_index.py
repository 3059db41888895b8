"""Copies are found by component and by instance as a search through all of them finds them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zeropull.reconcilers.copy_index import CopyIndex
from zeropull.resources.instances import CopyIntent, CopyRecord


def record(number: int, intent: CopyIntent = CopyIntent.RUN) -> CopyRecord:
    return CopyRecord(
        copy_id=f"c-{number}",
        instance_id=f"i-{number % 3}",
        account="0",
        endpoint_uid="u",
        endpoint="e",
        variant="main",
        deployment_id="d",
        created_s=0.0,
        manifest_digest="sha256:0",
        component=None if number % 5 == 0 else "ab"[number % 2],
        intent=intent,
    )


@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["put", "drain", "drop"]))))
def test_an_index_agrees_with_a_search(changes: list[tuple[int, str]]) -> None:
    index = CopyIndex(record(number) for number in range(6))
    plain = {f"c-{number}": record(number) for number in range(6)}
    for number, change in changes:
        copy_id = f"c-{number}"
        if change == "drop":
            assert (index.pop(copy_id, None) is None) == (plain.pop(copy_id, None) is None)
            continue
        copy = record(number, CopyIntent.DRAIN if change == "drain" else CopyIntent.RUN)
        index[copy_id] = plain[copy_id] = copy
    assert list(index.items()) == list(plain.items())
    assert list(index.values()) == list(plain.values())
    for name in "abc":
        assert index.of_component(name) == [c for c in plain.values() if c.component == name]
    for name in ("i-0", "i-1", "i-2", "i-3"):
        assert index.on_instance(name) == [c for c in plain.values() if c.instance_id == name]
