"""Metric math gives what CloudWatch's documentation says it gives."""

from __future__ import annotations

import pytest

from zeropull.errors import InvalidInput
from zeropull.metricstore.expressions import Series, evaluate_expression, names_in

QUERIES = {"m1": {0: 2.0, 60: 4.0, 120: 6.0}, "m2": {0: 1.0, 120: 0.0}}
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
    ],
)
def test_expressions_give_the_documented_series(text: str, expected: Series) -> None:
    assert evaluate_expression(text, QUERIES, timestamps=TIMES) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text", ["m1 +", "m3", "SUM(m1", "ANOMALY(m1)", "m1 $ 2", "[m1, m2]", "(" * 60 + "m1", ""]
)
def test_what_cannot_be_understood_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput, match="expression"):
        evaluate_expression(text, QUERIES, timestamps=TIMES)


def test_ids_of_an_expression_are_told_from_functions() -> None:
    assert names_in("IF(m1 > 3, SUM([m2, e1]), 0)") == {"m1", "m2", "e1"}
