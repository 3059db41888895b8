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
        ("m1 + m2", {0: 3, 60: 4, 120: 6}),
        ("m2 - m1", {0: -1, 60: -4, 120: -6}),
        ("m1 + none", {0: 2, 60: 4, 120: 6}),
        ("m2 > m1 OR m2 == 0", {0: 0, 60: 0, 120: 1}),
        ("m1 > m2", {0: 1, 60: 1, 120: 1}),
        ("m2 + m2", {0: 2, 120: 0}),
        ("IF(m1, m2, 9)", {0: 1, 60: 0, 120: 0}),
        ("IF(m2, m1, none)", {0: 2}),
        ("m1 / m2", {0: 2}),
        ("SUM([m1, m2])", {0: 3, 60: 4, 120: 6}),
        ("AVG(METRICS())", {0: 1.5, 60: 2, 120: 3}),
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
        ("m1 ^ 2", {0: 4, 60: 16, 120: 36}),
        ("2 ^ m1", {0: 4, 60: 16, 120: 64}),
        ("m1 ^ m2", {0: 2, 60: 1, 120: 1}),
        ("-m1 ^ 2 + 1", {0: -3, 60: -15, 120: -35}),
        ("2 ^ -1 * m1", {0: 1, 60: 2, 120: 3}),
        ("2 ^ 3 ^ 2", {0: 512, 60: 512, 120: 512}),
        ("(2 ^ 3) ^ 2", {0: 64, 60: 64, 120: 64}),
        ("m2 ^ -1", {0: 1}),
        ("(3 - m1) ^ 0.5", {0: 1}),
        ("m1 ^ 1000", {0: 2.0**1000}),
        ("MAX(none) ^ 0", {}),
        ("1 ^ MAX(none)", {}),
        ("SUM([m1, m2] ^ 2)", {0: 5, 60: 16, 120: 36}),
        ("SUM(100 / [m1, m2])", {0: 150, 60: 25, 120: 100 / 6}),
        ("AVG([m1, m2] / m1)", {0: 0.75, 60: 0.5, 120: 0.5}),
        ("MAX(-[m1, m2])", {0: -1, 60: -4, 120: 0}),
        ("SUM(METRICS() * 100)", {0: 300, 60: 400, 120: 600}),
        ('SUM([METRICS("1"), METRICS("2")])', {0: 3, 60: 4, 120: 6}),
        ('SUM(METRICS("1")) / SUM(METRICS()) * 100', {0: 200 / 3, 60: 100, 120: 100}),
        ("SUM(METRICS()) / SUM(m1)", {0: 0.25, 60: 1 / 3, 120: 0.5}),
        ("MIN(ABS([m1 - 5, m2]))", {0: 1, 60: 1, 120: 0}),
        ("SUM(CEIL(METRICS() / 4))", {0: 2, 60: 1, 120: 2}),
        ("FLOOR(-m1 / 4)", {0: -1, 60: -1, 120: -2}),
        ("MIN(FILL(METRICS(), m1))", {0: 1, 60: 4, 120: 0}),
        ("FILL(m2, MIN(m2))", {0: 1, 60: 0, 120: 0}),
        ("FILL(m2, MIN(none))", {0: 1, 120: 0}),
        ("MAX(FILL([m1, m2], REPEAT)) - MIN(m1)", {0: 0, 60: 2, 120: 4}),
        ("m1 >= 4 && m1 != 6 || m1 == 2", {0: 1, 60: 1, 120: 0}),
        ("IF(MAX(m1) > 5, m1, m2)", {0: 2, 60: 4, 120: 6}),
        ("IF(m1 - 4, 1, m1)", {0: 1, 60: 4, 120: 1}),
        ("m1 > 1 AND (m1 < 5)", {0: 1, 60: 1, 120: 0}),
    ],
)
def test_expressions_give_the_documented_series(text: str, expected: Series) -> None:
    queries = MORE if "none" in text or "big" in text else QUERIES
    assert evaluate_expression(text, queries, timestamps=TIMES) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m1 < m2", [0, 0, 1, 0]),
        ("m1 >= 30", [1, 0, 0, 0]),
        ("m1 > 15 AND m2 > 15", [1, 0, 0, 0]),
        ("IF(c1, c2, c3)", [30, 0, 20, None, None]),
        ("IF(c1, 5, c3)", [5, 5, 20, None, None]),
        ("IF(c1, c2, 5)", [30, 0, 5, 5, None]),
    ],
)
def test_missing_values_are_those_of_the_tables_in_the_user_guide(
    text: str, expected: list[float | None]
) -> None:
    tables: dict[str, list[float | None]] = {
        "m1": [30, 20, 0, 0], "m2": [20, None, 20, None],
        "c1": [1, 1, 0, 0, None], "c2": [30, None, 0, 0, 30], "c3": [0, 0, 20, None, 20],
    }  # fmt: skip
    queries = {name: series_of(*values) for name, values in tables.items()}
    assert evaluate_expression(text, queries, timestamps=range(0, 300, 60)) == series_of(*expected)


def series_of(*values: float | None) -> Series:
    """By the minute."""
    return {60 * at: float(value) for at, value in enumerate(values) if value is not None}


@pytest.mark.parametrize(
    "text",
    [
        "m1 +", "m3", "SUM(m1", "ANOMALY(m1)", "m1 $ 2", "(" * 60 + "m1", "", "m1 m2",
        "SUM(m1, m2)", "SUM()", "FILL(m1)", "FILL(m1, NEAREST)", "FILL(m1, METRICS())", "[1, m1]",
        "IF(m1)", "IF(METRICS(), 1)", "IF(m1, METRICS())", "METRICS(m1)", '"m1"', "REPEAT",
        "METRICS() + METRICS()", "m1 < 2 < 3", "* m1",
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput, match="expression"):
        evaluate_expression(text, QUERIES, timestamps=TIMES)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("RATE(m1)", "has the function 'RATE': ABS, AVG, .* are evaluated here"),
        ("m1 + TIME_SERIES (5)", "has the function 'TIME_SERIES'"),
        ("SEARCH('{AWS/SageMaker,EndpointName} Invocations', 'Sum')", "has the function 'SEARCH'"),
        ("sum(m1)", "has the unknown function 'sum': .* in capitals"),
        ('SELECT AVG(Invocations) FROM SCHEMA("AWS/SageMaker")', "a query of Metrics Insights"),
        ("MAX(m1, m2)", r"MAX with 2 arguments: several series go in brackets, MAX\(\[a, b\]\)"),
        ("MAX([m1, 5])", "a number where a series was expected"),
        ("m1 ^", "its end too early"),
        ("m1 ^ * 2", "has '\\*' where a value was expected"),
        ("m1 % 2", "has '.*' at position"),
        ("2 ^ " * 60 + "2", "more than 50 levels"),
    ],
)
def test_what_is_not_evaluated_is_told_from_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        evaluate_expression(text, QUERIES, timestamps=TIMES)


def test_several_series_may_be_named_and_used() -> None:
    queries = QUERIES | {"e1": {0: 50.0}}
    both = evaluate_expression("METRICS() * 2", queries, timestamps=TIMES, metrics=["m1", "m2"])
    assert both == [{0: 4, 60: 8, 120: 12}, {0: 2, 120: 0}]
    found = evaluate_expression("MAX([e2, m1 ^ 2])", {**queries, "e2": both}, timestamps=TIMES)
    assert found == {0: 4, 60: 16, 120: 36}


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
