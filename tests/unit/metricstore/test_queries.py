"""Queries over the store: which need which, whose periods they have, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from zeropull.errors import InvalidInput
from zeropull.metricstore.queries import (
    MetricStat,
    Query,
    check_queries,
    evaluate_queries,
    periods_of,
)
from zeropull.metricstore.store import MetricKey, MetricStore

ACCOUNT = "1"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MetricStore]:
    made = MetricStore(tmp_path / "m.db")
    yield made
    made.close()


def metric(query_id: str, name: str = "a", period_s: int = 60, statistic: str = "Sum") -> Query:
    return Query(query_id, stat=MetricStat("own", name, {}, statistic, period_s))


def math(query_id: str, expression: str, period_s: int | None = None) -> Query:
    return Query(query_id, expression=expression, period_s=period_s)


def put(store: MetricStore, name: str, *values: float | None, unit: str = "None") -> None:
    """One value a minute; None leaves a minute out."""
    for minute, value in enumerate(values):
        if value is not None:
            store.observe(MetricKey.of(ACCOUNT, "own", name, {}, unit), minute * 60, value)


def test_expressions_may_use_others_wherever_those_stand(store: MetricStore) -> None:
    put(store, "a", 1, 2, 3)
    queries = [math("e1", "e2 + 1"), math("e2", "m1 * 10"), metric("m1")]
    assert evaluate_queries(store, ACCOUNT, queries, 0, 180)["e1"] == {0: 11, 60: 21, 120: 31}


def test_series_of_other_periods_meet_where_the_longer_one_begins(store: MetricStore) -> None:
    put(store, "a", 1, 2, 3, 4, 5, 6)
    put(store, "b", 10, None, 30, 40)
    queries = [metric("m1"), metric("m2", "b", 120), math("e1", "m1 + m2"), math("e2", "m2 / 2")]
    found = evaluate_queries(store, ACCOUNT, queries, 0, 360)
    assert found["e1"] == {0: 11, 120: 73, 240: 5}
    assert found["e2"] == {0: 5, 120: 35}
    assert periods_of(queries) == {"m1": 60, "m2": 120, "e1": 120, "e2": 120}


def test_a_metric_by_the_minute_has_values_at_the_minutes_in_shorter_periods(
    store: MetricStore,
) -> None:
    put(store, "a", 1, None, 3)
    key = MetricKey.of(ACCOUNT, "own", "a", {}, "None")
    store.observe(key, 75, 5.0, resolution=1)  # this minute came by the second
    store.observe(key, 118, 7.0, resolution=1)
    found = evaluate_queries(store, ACCOUNT, [metric("m1", period_s=10)], 0, 180)
    assert found["m1"] == {0: 1, 70: 5, 110: 7, 120: 3}
    found = evaluate_queries(store, ACCOUNT, [metric("m1", period_s=30)], 30, 150)
    assert found["m1"] == {60: 5, 90: 7, 120: 3}


def test_every_unit_counts_unless_one_is_named(store: MetricStore) -> None:
    put(store, "a", 1)
    put(store, "a", 2, unit="Seconds")
    one = Query("m2", stat=MetricStat("own", "a", {}, "Sum", 60, "Seconds"))
    found = evaluate_queries(store, ACCOUNT, [metric("m1"), one], 0, 60)
    assert (found["m1"], found["m2"]) == ({0: 3}, {0: 2})


def test_sliding_periods_end_where_the_range_does(store: MetricStore) -> None:
    put(store, "a", *range(1, 11))
    found = evaluate_queries(
        store, ACCOUNT, [metric("m1", period_s=300)], 120, 420, is_sliding=True
    )
    assert found["m1"] == {120: 3 + 4 + 5 + 6 + 7}


def test_several_series_are_there_for_other_expressions(store: MetricStore) -> None:
    put(store, "a", 1, 2, 3)
    put(store, "b", 10, None, 30)
    several = Query("e1", expression="METRICS() / 2", return_data=False)
    queries = [math("e2", "SUM(e1) ^ 2"), several, metric("m1"), metric("m2", "b")]
    check_queries(queries)
    found = evaluate_queries(store, ACCOUNT, queries, 0, 180)
    assert found["e2"] == {0: 5.5**2, 60: 1, 120: 16.5**2}
    assert found.keys() == {"e2", "m1", "m2"}


def test_what_expressions_keep_for_others_is_bounded(store: MetricStore) -> None:
    put(store, "a", 1, 2, 3)
    doubled = [
        Query(f"e{n}", expression=f"[e{n - 1}, e{n - 1}]", return_data=False) for n in range(1, 60)
    ]
    queries = [metric("e0"), *doubled]
    with pytest.raises(InvalidInput, match=r"'e9': .* an array of 512 series, at most 500"):
        evaluate_queries(store, ACCOUNT, queries, 0, 180)
    with pytest.raises(InvalidInput, match=r"'e9': .* an array of 512 series, at most 500"):
        check_queries(queries)
    with pytest.raises(InvalidInput, match=r"'e3': .* have 42 datapoints, at most 40"):
        evaluate_queries(store, ACCOUNT, queries, 0, 180, max_kept=40)


@pytest.mark.parametrize(
    ("queries", "text"),
    [
        ([metric("m1"), metric("m1")], "The values for parameter id in MetricDataQueries are not"),
        ([math("e1", "e1 + 1")], "Error in expression 'e1': e1 needs e1"),
        ([math("e1", "e2"), math("e2", "e3"), math("e3", "e1")], "Error in expression .* needs "),
        ([math("e1", "m9 + 1")], "Error in expression 'e1': .* unknown id 'm9'"),
        ([metric("m1"), math("e1", "RATE(m1)")], "Error in expression 'e1': .* function 'RATE'"),
        ([metric("m1"), math("e1", "m1 ? 2")], r"Error in expression 'e1': .* position"),
        ([metric("m1"), math("e1", "METRICS()")], "gives several series"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_and_without_data(
    store: MetricStore, queries: list[Query], text: str
) -> None:
    with pytest.raises(InvalidInput, match=text):
        evaluate_queries(store, ACCOUNT, queries, 0, 180)
    with pytest.raises(InvalidInput, match=text):
        check_queries(queries)


def test_expressions_that_use_each_other_twice_are_evaluated_once(store: MetricStore) -> None:
    put(store, "a", 1)
    chain = [math(f"e{n}", f"(e{n - 1} + e{n - 2}) / 2") for n in range(2, 400)]
    queries = [*reversed(chain), math("e1", "m1"), math("e0", "m1"), metric("m1")]
    assert evaluate_queries(store, ACCOUNT, queries, 0, 60)["e399"] == {0: 1}


def test_more_periods_than_a_page_holds_are_refused(store: MetricStore) -> None:
    with pytest.raises(InvalidInput, match="at most 100800 can be computed"):
        evaluate_queries(store, ACCOUNT, [math("e1", "5")], 0, 1_790_000_000)
