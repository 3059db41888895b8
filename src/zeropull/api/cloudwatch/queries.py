"""MetricDataQuery -> Query: of GetMetricData, of alarms and of scaling policies.

Each of these has its own error code for what is wrong with a query: InvalidInput becomes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from zeropull.errors import InvalidInput
from zeropull.metricstore.alarm_specs import query_from
from zeropull.metricstore.points import PERCENTILE
from zeropull.metricstore.queries import Query

_ID = re.compile(r"[a-z][a-zA-Z0-9_]*")
_STATISTICS = frozenset({"Sum", "Average", "Minimum", "Maximum", "SampleCount"})
_SHORT_PERIODS = frozenset({1, 5, 10, 20, 30})


def query_of(raw: Mapping[str, Any], path: str, account: str) -> Query:
    """A MetricDataQuery.

    Raises:
        InvalidInput: names the member by `path`.
    """
    name = raw["Id"]
    if not _ID.fullmatch(name):
        raise InvalidInput(
            f"The value {name} for parameter {path}.Id is not matching the expected pattern "
            f"^{_ID.pattern}$."
        )
    stat, expression = raw.get("MetricStat"), raw.get("Expression")
    if (stat is None) == (expression is None):
        raise InvalidInput(
            f"The parameters {path}.MetricStat and {path}.Expression are mutually exclusive, and "
            "exactly one of them is required."
        )
    if raw.get("AccountId") not in (None, account):
        raise InvalidInput(
            f"The value {raw['AccountId']} for parameter {path}.AccountId is not your own account: "
            "metrics of other accounts are not read here."
        )
    if raw.get("Period") is not None:
        check_period(raw["Period"])
    if stat is not None:
        for member in ("Namespace", "MetricName"):
            if not stat["Metric"].get(member):
                raise InvalidInput(f"The parameter {path}.MetricStat.Metric.{member} is required.")
        check_statistic(stat["Stat"])
        check_period(stat.get("Period", 60))
    return query_from(raw)


def check_statistic(name: str) -> None:
    """Raises InvalidInput for trimmed means and everything else that is not kept here."""
    if name not in _STATISTICS and not PERCENTILE.fullmatch(name):
        raise InvalidInput(
            f"The value {name} for parameter Stat is not supported: Sum, Average, Minimum, "
            "Maximum, SampleCount or a percentile such as p99.9."
        )


def check_period(value: int) -> int:
    """`value`. Raises InvalidInput for one that CloudWatch does not have."""
    if value in _SHORT_PERIODS or (value > 0 and value % 60 == 0):
        return int(value)
    raise InvalidInput(
        f"The value {value} for parameter Period is invalid: 1, 5, 10, 20, 30 or a multiple of 60."
    )
