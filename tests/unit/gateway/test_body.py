"""Bodies share a memory: which of them goes when there is too little of it."""

from __future__ import annotations

import pytest

from zeropull.gateway.body import BodyMemory, RequestBody
from zeropull.gateway.refusals import Refusal


class Memory(BodyMemory):
    """1,000 bytes, 600 for one body, at a time that the test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(max_body_bytes=600, max_bytes=1000, monotonic=lambda: self.now_s)
        self.gone: list[str] = []

    def body(self, address: str, size_bytes: int = 0, name: str = "") -> RequestBody:
        """One that is not whole yet."""
        body = RequestBody(self, address)
        body.watch(lambda refusal: self._give_up(body, name or address))
        if size_bytes:
            body.add(b"x" * size_bytes)
        return body

    def _give_up(self, body: RequestBody, name: str) -> None:
        self.gone.append(name)
        body.release()


def test_no_body_is_larger_than_the_limit_of_one() -> None:
    body = Memory().body("a", 600)
    with pytest.raises(Refusal, match="larger than the limit of 600 bytes"):
        body.add(b"x")
    assert body.refusal(1) is not None


def test_bodies_that_are_whole_make_no_room() -> None:
    memory = Memory()
    for address in "ab":
        memory.body(address, 500).finish()
    memory.now_s = 99.0
    with pytest.raises(Refusal, match="in memory"):
        memory.body("c").add(b"x")
    assert memory.gone == []


def test_the_slowest_goes_first_whoever_sent_it() -> None:
    memory = Memory()
    memory.body("a", 300, "slow")
    memory.body("a", 200, "slowest")
    memory.now_s = 2.0
    memory.body("b", 500)
    memory.body("b").add(b"x" * 200)
    assert memory.gone == ["slowest"]
    assert memory.used_bytes == 1000


def test_the_address_that_holds_the_most_gives_way_to_the_others() -> None:
    memory = Memory()
    memory.body("many", 400, "larger")
    memory.body("many", 300)
    memory.body("few", 200)
    memory.body("few").add(b"x" * 200)
    assert memory.gone == ["larger"]


def test_who_holds_the_most_gets_nothing_from_the_others() -> None:
    memory = Memory()
    memory.body("many", 600)
    memory.body("few", 300)
    with pytest.raises(Refusal, match="in memory"):
        memory.body("many").add(b"x" * 200)
    assert memory.gone == []
    assert memory.used_bytes == 900


def test_what_is_released_twice_counts_once() -> None:
    memory = Memory()
    body = memory.body("a", 100)
    body.release()
    body.release()
    assert memory.used_bytes == 0
