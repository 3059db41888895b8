"""A silent instance is given up late, with others of its kind one after the other, and not while it
answers."""

from __future__ import annotations

from dataclasses import replace

from zeropull.reconcilers.silence import Silence
from zeropull.resources.instances import Instance, InstanceState
from zeropull.resources.settings import EndpointSettings

SETTINGS = EndpointSettings()


class Clock:
    """A monotonic clock, and a control plane whose rounds come on time."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.silence = Silence(SETTINGS, lambda: self.now_s)

    def listen(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now_s += 1.0
            assert self.silence.begin_round() == 0.0

    def stand_still(self, seconds: float) -> None:
        self.now_s += seconds
        assert self.silence.begin_round() > 0.0


def instances(count: int) -> list[Instance]:
    return [
        Instance(
            f"i-{number:017x}", "0", "u", "demo", "main", "ml.m5.large", "d",
            InstanceState.RUNNING, "t", 0.0,
        )
        for number in range(count)
    ]  # fmt: skip


def test_an_instance_that_is_silent_for_too_long_is_lost() -> None:
    clock, (one,) = Clock(), instances(1)
    heard = {one.instance_id: clock.now_s}
    clock.listen(SETTINGS.node_lost_s - 1)
    assert clock.silence.lost([one], heard) == {}
    clock.listen(1)
    assert clock.silence.lost([one], heard) == {
        one.instance_id: f"the node of {one.instance_id} has not reported for 30 s"
    }


def test_an_instance_that_never_reported_has_its_time_to_start() -> None:
    clock, (one,) = Clock(), instances(1)
    assert clock.silence.lost([one], {}) == {}
    clock.listen(SETTINGS.node_start_s - 1)
    assert clock.silence.lost([one], {}) == {}
    clock.listen(1)
    assert clock.silence.lost([one], {}).keys() == {one.instance_id}


def test_a_control_plane_that_was_stopped_gives_nobody_up() -> None:
    clock, four = Clock(), instances(4)
    heard = {i.instance_id: clock.now_s for i in four}
    clock.stand_still(120.0)
    assert clock.silence.lost(four, heard) == {}
    clock.listen(SETTINGS.node_lost_s - 1)
    assert clock.silence.lost(four, heard) == {}


def test_of_many_that_fall_silent_at_once_only_a_share_is_given_up() -> None:
    clock, eight = Clock(), instances(8)
    heard = {i.instance_id: clock.now_s for i in eight}
    clock.listen(SETTINGS.node_lost_s + 5)
    first = clock.silence.lost(eight, heard)
    assert len(first) == 2
    left = [
        replace(i, state=InstanceState.TERMINATING) if i.instance_id in first else i for i in eight
    ]
    assert clock.silence.lost(left, heard) == {}
    gone = [i for i in eight if i.instance_id not in first]
    clock.silence.forget_all_but({i.instance_id for i in gone})
    second = clock.silence.lost(gone, heard)
    assert len(second) == 1
    assert not second.keys() & first.keys()


def test_one_that_speaks_again_makes_room_for_no_other() -> None:
    clock, two = Clock(), instances(2)
    heard = {i.instance_id: clock.now_s for i in two}
    clock.listen(SETTINGS.node_lost_s)
    (given_up,) = clock.silence.lost(two, heard)
    heard = dict.fromkeys(heard, clock.now_s)
    assert clock.silence.lost(two, heard) == {}
    assert given_up in heard


def test_a_silent_instance_whose_copy_answers_is_not_lost() -> None:
    clock, (one,) = Clock(), instances(1)
    heard_s = clock.now_s
    clock.listen(SETTINGS.node_lost_s / 2 - 1)
    assert not clock.silence.is_doubtful(one, heard_s)
    clock.listen(1)
    assert clock.silence.is_doubtful(one, heard_s)
    clock.silence.answered(one.instance_id)
    assert not clock.silence.is_doubtful(one, heard_s)
    clock.listen(SETTINGS.node_lost_s - 1)
    assert clock.silence.lost([one], {one.instance_id: heard_s}) == {}
    clock.listen(1)
    assert clock.silence.lost([one], {one.instance_id: heard_s}) != {}
