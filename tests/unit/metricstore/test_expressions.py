"""Metric math gives what CloudWatch's documentation says it gives."""

from __future__ import annotations

import time

import pytest

from zeropull.errors import InvalidInput
from zeropull.metricstore.expressions import Series, evaluate_expression, names_in

QUERIES: dict[str, Series] = {"m1": {0: 2.0, 60: 4.0, 120: 6.0}, "m2": {0: 1.0, 120: 0.0}}
MORE: dict[str, Series] = QUERIES | {"none": {}, "big": {0: 1.0, 60: 1.7e308, 120: 1.7e308}}
TIMES = [0, 60, 120]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m1 + 1", {0: 3, 60: 5, 120: 7}),
        ("2 * (m1 - 1) / 2", {0: 1, 60: 3, 120: 5}),
        ("-m1 + 10", {0: 8, 60: 6, 120: 4}),
        ("m1 + m2", {0: 3, 120: 6}),
        ("m1 / m2", {0: 2}),
        ("SUM([m1, m2])", {0: 3, 60: 4, 120: 6}),
        ("AVG(METRICS())", {0: 1.5, 60: 4, 120: 3}),
        ("MAX(m1)", {0: 6, 60: 6, 120: 6}),
        ("m1 / SUM(m1)", {0: 2 / 12, 60: 4 / 12, 120: 0.5}),
        ("FILL(m2, 7)", {0: 1, 60: 7, 120: 0}),
        ("FILL(m2, REPEAT)", {0: 1, 60: 1, 120: 0}),
        ("FILL(m2, LINEAR)", {0: 1, 60: 0.5, 120: 0}),
        ("IF(m1 > 3, m1, 0)", {0: 0, 60: 4, 120: 6}),
        ("IF(m1 > 3 AND m1 < 5, 1, 0)", {0: 0, 60: 1, 120: 0}),
        ("IF(FILL(m2, 0) == 0, 1)", {60: 1, 120: 1}),
        ("5", {0: 5, 60: 5, 120: 5}),
        ("2 - -3 * 2", {0: 8, 60: 8, 120: 8}),
        ("-(m1 - 8) / -2", {0: -3, 60: -2, 120: -1}),
        ("m1 / 0", {}),
        ("5 / 0", {}),
        ("none", {}),
        ("SUM([m1, none])", {0: 2, 60: 4, 120: 6}),
        ("MAX([FILL(m2, 9), m1 * 2, none])", {0: 4, 60: 9, 120: 12}),
        ("FILL(m2, m1)", {0: 1, 60: 4, 120: 0}),
        ("FILL(none, REPEAT)", {}),
        ("MAX(FILL([m2, none], 7))", {0: 7, 60: 7, 120: 7}),
        ("CEIL(MAX(none) / 3)", {}),
        ("FLOOR(AVG(none))", {}),
        ("IF(MAX(none), 1, 2)", {}),
        ("IF(MAX(none) > 3, 1, 2)", {0: 2, 60: 2, 120: 2}),
        ("SUM([big, big])", {0: 2}),
        ("AVG(big) * 0", {}),
        ('SUM(METRICS("m"))', {0: 3, 60: 4, 120: 6}),
    ],
)
def test_expressions_give_the_documented_series(text: str, expected: Series) -> None:
    queries = MORE if "none" in text or "big" in text else QUERIES
    assert evaluate_expression(text, queries, timestamps=TIMES) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "m1 +", "m3", "SUM(m1", "ANOMALY(m1)", "m1 $ 2", "[m1, m2]", "(" * 60 + "m1", "", "m1 m2",
        "SUM(m1, m2)", "SUM()", "FILL(m1)", "FILL(m1, NEAREST)", "FILL(m1, METRICS())", "[1, m1]",
        "IF(m1)", "IF(METRICS(), 1)", "IF(m1, METRICS())", "METRICS(m1)", '"m1"', "REPEAT",
        "METRICS() + METRICS()", "m1 < 2 < 3", "* m1",
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput, match="expression"):
        evaluate_expression(text, QUERIES, timestamps=TIMES)


def test_ids_of_an_expression_are_told_from_functions() -> None:
    assert names_in("IF(m1 > 3, SUM([m2, e1]), 0)") == {"m1", "m2", "e1"}


def test_metrics_are_those_of_the_request_without_its_expressions() -> None:
    queries = QUERIES | {"e1": {0: 100.0}}
    found = evaluate_expression(
        "SUM(METRICS()) + 0 * MAX(e1)", queries, timestamps=TIMES, metrics=["m1", "m2"]
    )
    assert found == {0: 3, 60: 4, 120: 6}


def test_filling_two_weeks_of_minutes_takes_no_time() -> None:
    minutes = range(0, 14 * 86400, 60)
    sparse = {"m1": {start: 1.0 for start in minutes[::2]}}
    began_s = time.process_time()
    for filler in ("REPEAT", "LINEAR"):
        found = evaluate_expression(f"FILL(m1, {filler})", sparse, timestamps=minutes)
        assert len(found) >= len(minutes) - 1
    assert time.process_time() - began_s < 1.0
