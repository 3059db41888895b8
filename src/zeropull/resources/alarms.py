"""CloudWatch metric alarms, and what happened to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

HISTORY_ITEMS = 200


@dataclass(frozen=True, slots=True)
class MetricAlarm:
    """`request` is what PutMetricAlarm was sent, without Tags: Describe gives it back.

    `state` OK, ALARM or INSUFFICIENT_DATA; `set_s` is when a user has set it (SetAlarmState), 0
    when it is that of an evaluation. `owner` is the ARN of the scaling policy that manages it,
    empty for the users' own alarms.
    """

    kind: ClassVar[str] = "metric_alarm"

    account: str
    name: str
    arn: str
    configured_s: float
    state_updated_s: float
    state_transitioned_s: float
    request: dict[str, Any] = field(default_factory=dict)
    state: str = "INSUFFICIENT_DATA"
    state_reason: str = "Unchecked: Initial alarm creation"
    state_reason_data: str = ""
    set_s: float = 0.0
    actions_enabled: bool = True
    owner: str = ""

    @property
    def key(self) -> str:
        return alarm_key(self.account, self.name)

    @property
    def is_alarm(self) -> bool:
        return self.state == "ALARM"


@dataclass(frozen=True, slots=True)
class AlarmEvent:
    """`kind_of` ConfigurationUpdate, StateUpdate or Action."""

    at_s: float
    kind_of: str
    summary: str
    data: str = ""


@dataclass(frozen=True, slots=True)
class AlarmHistory:
    """The newest events of one alarm, oldest first; outlives the alarm."""

    kind: ClassVar[str] = "alarm_history"

    account: str
    name: str
    events: tuple[AlarmEvent, ...] = ()

    @property
    def key(self) -> str:
        return alarm_key(self.account, self.name)


def alarm_key(account: str, name: str) -> str:
    """Alarm names are case-sensitive."""
    return f"{account}/{name}"
