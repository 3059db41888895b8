"""Ages that no step of the wall clock changes."""

from __future__ import annotations

from zeropull.nodeagent.copies.ages import AgeOf


def test_an_age_goes_on_from_the_record_and_ignores_steps_of_the_wall_clock() -> None:
    wall, steady = [1000.0], [50.0]
    age = AgeOf(990.0, lambda: wall[0], lambda: steady[0])
    assert age.seconds == 10.0
    wall[0] += 3600.0
    steady[0] += 2.0
    assert age.seconds == 12.0


def test_a_date_in_the_future_is_now() -> None:
    assert AgeOf(2000.0, lambda: 1000.0, lambda: 5.0).seconds == 0.0


def test_what_has_not_happened_has_no_age_until_it_begins() -> None:
    steady = [7.0]
    age = AgeOf(None, lambda: 1000.0, lambda: steady[0])
    steady[0] = 9.0
    assert age.seconds == 0.0
    age.begin()
    steady[0] = 12.0
    assert age.seconds == 3.0
