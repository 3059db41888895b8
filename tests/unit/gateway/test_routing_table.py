"""Choosing variants and copies, and what outlives a change of routes."""

from __future__ import annotations

from collections import Counter

import pytest

from zeropull.controlapi.messages import CopyReading, EndpointRoute, Routes, Target, VariantRoute
from zeropull.gateway.refusals import Refusal
from zeropull.gateway.routing import RoutingTable

NOW_S = 1000.0


def target(name: str, **values: object) -> Target:
    return Target(name, f"i-{name}", "127.0.0.1", 8080, **values)  # type: ignore[arg-type]


def table(*variants: VariantRoute, **values: object) -> RoutingTable:
    readings: list[CopyReading] = []
    made = RoutingTable(readings.append)
    made.apply(Routes(1, endpoints=(endpoint(*variants, **values),)), NOW_S)
    return made


def endpoint(*variants: VariantRoute, **values: object) -> EndpointRoute:
    status = str(values.pop("status", "InService"))
    return EndpointRoute("e", "1", status, variants=variants, **values)  # type: ignore[arg-type]


def test_traffic_follows_the_weights() -> None:
    routes = table(
        VariantRoute("a", 3.0, targets=(target("1"),)),
        VariantRoute("b", 1.0, targets=(target("2"),)),
        VariantRoute("c", 0.0, targets=(target("3"),)),
    )
    found = routes.find("e", "1")
    assert found is not None
    counts = Counter(found.group(None, None).variant for _ in range(8000))
    assert counts["c"] == 0
    assert 0.70 < counts["a"] / 8000 < 0.80
    assert found.group("c", None).variant == "c"


def test_a_variant_without_copies_takes_no_share() -> None:
    routes = table(VariantRoute("a", 9.0), VariantRoute("b", 1.0, targets=(target("2"),)))
    found = routes.find("e", "1")
    assert found is not None
    assert {found.group(None, None).variant for _ in range(100)} == {"b"}


def test_least_outstanding_takes_the_copy_with_the_fewest_requests() -> None:
    routes = table(
        VariantRoute("a", strategy="LEAST_OUTSTANDING_REQUESTS", targets=(target("1"), target("2")))
    )
    group = routes.groups["1", "e", "a", None]
    routes.targets["1"].meter.begin(NOW_S)
    assert {group.choose(NOW_S) for _ in range(50)} == {routes.targets["2"]}


def test_random_uses_every_copy() -> None:
    routes = table(VariantRoute("a", targets=(target("1"), target("2"))))
    group = routes.groups["1", "e", "a", None]
    assert {group.choose(NOW_S) for _ in range(100)} == set(routes.targets.values())


def test_a_full_copy_is_not_chosen() -> None:
    routes = table(VariantRoute("a", targets=(target("1", max_concurrency=1),)))
    group = routes.groups["1", "e", "a", None]
    assert group.choose(NOW_S) is routes.targets["1"]
    routes.targets["1"].meter.begin(NOW_S)
    assert group.choose(NOW_S) is None


def test_a_copy_that_refuses_connections_is_passed_over_for_a_moment() -> None:
    routes = table(VariantRoute("a", targets=(target("1"), target("2"))))
    group = routes.groups["1", "e", "a", None]
    pause_s = routes.targets["1"].eject(NOW_S)
    assert {group.choose(NOW_S) for _ in range(50)} == {routes.targets["2"]}
    later = {group.choose(NOW_S + pause_s) for _ in range(100)}
    assert later == set(routes.targets.values())


def test_copies_keep_their_state_over_new_routes_and_removed_ones_finish() -> None:
    routes = table(VariantRoute("a", targets=(target("1"), target("2"))))
    first, second = routes.targets["1"], routes.targets["2"]
    second.meter.begin(NOW_S)
    routes.apply(Routes(2, endpoints=(endpoint(VariantRoute("a", targets=(target("1"),))),)), NOW_S)
    assert routes.targets["1"] is first
    assert routes.targets["2"] is second
    assert routes.groups["1", "e", "a", None].targets == [first]
    assert routes.forget_finished(NOW_S) == []
    second.meter.end(NOW_S)
    assert routes.forget_finished(NOW_S) == [second]


def test_a_draining_copy_gets_nothing_new() -> None:
    routes = table(VariantRoute("a", targets=(target("1", draining=True), target("2"))))
    group = routes.groups["1", "e", "a", None]
    assert {group.choose(NOW_S) for _ in range(50)} == {routes.targets["2"]}


@pytest.mark.parametrize("status", ["Creating", "Failed", "Deleting", "OutOfService"])
def test_an_endpoint_that_does_not_serve_is_not_found(status: str) -> None:
    assert table(VariantRoute("a"), status=status).find("e", "1") is None


def test_another_accounts_endpoint_is_not_found() -> None:
    assert table(VariantRoute("a")).find("e", "2") is None


def test_components_are_groups_of_their_own() -> None:
    routes = table(
        VariantRoute("a", targets=(target("1", component="x"), target("2", component="y"))),
        component_based=True,
        components=("x", "y", "z"),
    )
    found = routes.find("e", "1")
    assert found is not None
    assert found.group(None, "x").targets == [routes.targets["1"]]
    assert found.group(None, "z").targets == []
    for variant, component, text in (
        (None, None, "is required"),
        (None, "unknown", "not found"),
        ("other", "x", "Variant other"),
    ):
        with pytest.raises(Refusal, match=text):
            found.group(variant, component)


def test_the_component_header_is_refused_without_components() -> None:
    found = table(VariantRoute("a", targets=(target("1"),))).find("e", "1")
    assert found is not None
    with pytest.raises(Refusal, match="is not allowed"):
        found.group(None, "x")
