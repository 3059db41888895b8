"""CloudWatch's metrics and metric alarms."""

from zeropull.api.cloudwatch.table import cloudwatch_table

__all__ = ["cloudwatch_table"]
