"""A request that waits wakes the component that it waits for, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.reconcilers.component_world import ACCOUNT, world
from zeropull.controlapi.exchange import Exchange
from zeropull.controlapi.messages import GatewayReport, WaitingRequests
from zeropull.metricstore.store import MetricStore
from zeropull.resources.components import ComponentStatus, InferenceComponent, component_key
from zeropull.resources.scaling import COMPONENT_DIMENSION, ScalableTarget, ScalingActivity
from zeropull.resources.settings import ScalingSettings
from zeropull.scaling.controller import ScalingController
from zeropull.statestore import Store

OTHER = "111111111111"
HELD = (WaitingRequests(ACCOUNT, "shared", "main", "a", 3),)


class SleepingComponents:
    """Components scaled to zero, each with a target of its own in the fast mode."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.open(folder / "state.db")
        self.metrics = MetricStore(folder / "metrics.db")
        self.exchange = Exchange()
        self.now_s = 100.0
        self.controller = ScalingController(
            self.store, self.metrics, self.exchange, ScalingSettings("fast"), lambda: self.now_s
        )

    def add(self, account: str = ACCOUNT) -> None:
        made = world()
        made.add("a")
        made.settle()
        made.scale("a", 0)
        made.settle()
        self.store.put(replace(made.components["a"], account=account))
        self.store.put(
            ScalableTarget(account, "inference-component/a", COMPONENT_DIMENSION, 0, 4, "arn", 1.0)
        )

    def report(
        self, waiting: tuple[WaitingRequests, ...] = (), queued: dict[str, int] | None = None
    ) -> None:
        """A gateway says who waits, and the controller looks."""
        report = GatewayReport("g", 1, self.now_s, queued=queued or {}, waiting=waiting)
        self.exchange.take_gateway_report(report, self.now_s)
        self.controller.wake_components()

    def component(self, account: str = ACCOUNT) -> InferenceComponent:
        return self.store.require(InferenceComponent, component_key(account, "a")).document

    def activities(self) -> list[ScalingActivity]:
        return [stored.document for stored in self.store.select(ScalingActivity)]


@pytest.fixture
def sleeping(tmp_path: Path) -> Iterator[SleepingComponents]:
    made = SleepingComponents(tmp_path)
    yield made
    made.metrics.close()
    made.store.close()


def test_a_held_request_wakes_its_component_once(sleeping: SleepingComponents) -> None:
    sleeping.add()
    sleeping.report(
        (
            WaitingRequests(ACCOUNT, "shared", "main", None, 9),
            WaitingRequests(ACCOUNT, "elsewhere", "main", "a", 9),
        )
    )
    assert sleeping.component().desired_copies == 0
    for _ in range(2):
        sleeping.report(HELD)
    assert sleeping.component().desired_copies == 1
    assert sleeping.component().status is ComponentStatus.UPDATING
    assert "3 request(s) wait" in sleeping.component().cause
    (activity,) = sleeping.activities()
    assert activity.description == "Setting desired copy count to 1."


def test_a_component_in_the_aws_mode_is_not_woken(sleeping: SleepingComponents) -> None:
    sleeping.add()
    sleeping.controller = ScalingController(
        sleeping.store, sleeping.metrics, sleeping.exchange, ScalingSettings("aws"), lambda: 100.0
    )
    sleeping.report(HELD)
    assert sleeping.component().desired_copies == 0


def test_a_request_wakes_the_component_of_its_own_account_only(
    sleeping: SleepingComponents,
) -> None:
    """Both accounts have an endpoint and a component of the same names."""
    sleeping.add()
    sleeping.add(OTHER)
    sleeping.report((WaitingRequests(OTHER, "shared", "main", "a", 2),))
    assert sleeping.component().desired_copies == 0
    assert sleeping.component(OTHER).desired_copies == 1
    sleeping.report((WaitingRequests(OTHER, "shared", "main", "a", 2), *HELD))
    assert sleeping.component().desired_copies == 1
    assert "3 request(s) wait" in sleeping.component().cause


def test_a_gateway_of_the_last_release_wakes_what_it_can_only_mean(
    sleeping: SleepingComponents,
) -> None:
    """It does not say whose component it is: where two accounts have one, neither is woken."""
    sleeping.add()
    queued = {"shared/main/a": 3, "shared/main": 9, "x/y/z": 0}
    sleeping.add(OTHER)
    sleeping.report(queued=queued)
    assert sleeping.component().desired_copies == sleeping.component(OTHER).desired_copies == 0
    sleeping.store.delete(InferenceComponent, component_key(OTHER, "a"))
    sleeping.report(queued=queued)
    assert sleeping.component().desired_copies == 1


def test_what_woke_a_component_ends_as_any_other_activity(sleeping: SleepingComponents) -> None:
    sleeping.add()
    sleeping.report(HELD)
    serving = replace(
        sleeping.component(),
        status=ComponentStatus.IN_SERVICE,
        desired_copies=1,
        current_copies=1,
    )
    sleeping.store.put(serving)
    sleeping.now_s = 101.0
    sleeping.controller.tick()
    (activity,) = sleeping.activities()
    assert (activity.status, activity.ended_s) == ("Successful", 101.0)


def test_requests_that_begin_to_wait_are_told_at_once() -> None:
    exchange = Exchange()
    exchange.take_gateway_report(GatewayReport("g", 1, 0.0), 0.0)
    assert not exchange.held.is_set()
    exchange.take_gateway_report(GatewayReport("g", 1, 0.5, waiting=HELD), 0.5)
    assert exchange.held.is_set()
    exchange.held.clear()
    more = (replace(HELD[0], count=7),)
    exchange.take_gateway_report(GatewayReport("g", 1, 1.0, waiting=more), 1.0)
    assert not exchange.held.is_set()  # they wait already
