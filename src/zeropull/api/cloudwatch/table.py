"""The operations of CloudWatch as one table."""

from __future__ import annotations

from zeropull.api.cloudwatch.alarm_tags import AlarmTagOperations
from zeropull.api.cloudwatch.alarms import AlarmOperations
from zeropull.api.cloudwatch.metrics import MetricOperations
from zeropull.api.operations import OperationTable
from zeropull.metricstore.store import MetricStore
from zeropull.statestore import Store


def cloudwatch_table(store: Store, metrics: MetricStore) -> OperationTable:
    """Metrics come from `metrics`, alarms from `store`; the reconcilers evaluate them."""
    return OperationTable(
        "cloudwatch",
        (
            *MetricOperations(metrics).operations(),
            *AlarmOperations(store).operations(),
            *AlarmTagOperations(store).operations(),
        ),
    )
