"""From readings to capacity with a virtual clock: both ways of deciding, schedules, activities."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.unit.scaling.scaling_world import RESOURCE, START_S, ScalingWorld
from zeropull.autoscaler.readings import NotScaled
from zeropull.resources.endpoints import EndpointStatus

FAST = {"Tags": {"zeropull:scaling": "fast"}}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ScalingWorld]:
    made = ScalingWorld(tmp_path)
    yield made
    made.close()


def step_policy(world: ScalingWorld, name: str, *steps: dict[str, Any], **config: Any) -> str:
    """Returns the policy's ARN."""
    answer = world.call(
        "PutScalingPolicy", **RESOURCE, PolicyName=name, PolicyType="StepScaling",
        StepScalingPolicyConfiguration={
            "AdjustmentType": "ChangeInCapacity", "StepAdjustments": list(steps), **config,
        },
    )  # fmt: skip
    return str(answer["PolicyARN"])


def alarm(world: ScalingWorld, arn: str, **change: Any) -> None:
    members: dict[str, Any] = {
        "AlarmName": "mine", "Namespace": "own", "MetricName": "failures", "Statistic": "Sum",
        "Period": 60, "EvaluationPeriods": 1, "Threshold": 1.0,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold", "AlarmActions": [arn],
    }  # fmt: skip
    world.call("PutMetricAlarm", **(members | change))


def put_metric(world: ScalingWorld, name: str, value: float, **more: Any) -> None:
    datum = {"MetricName": name, "Value": value, "Timestamp": world.now_s, **more}
    world.call("PutMetricData", Namespace="own", MetricData=[datum])


def test_scale_out_comes_after_three_periods_of_ten_seconds_and_not_before(
    world: ScalingWorld,
) -> None:
    world.endpoint_with(1).track(5.0)
    world.seconds(60, load=3.0)
    world.load = 18.0
    waited = world.seconds_until(4)
    assert 30 <= waited <= 33
    assert world.alarm_states()["High"] == "ALARM"
    done = world.seconds(2).activities()[-1]
    assert (done.status, done.description) == ("Successful", "Setting desired instance count to 4.")
    assert done.cause.startswith(
        "monitor alarm TargetTracking-endpoint/demo/variant/main-AlarmHigh"
    )
    assert done.cause.endswith("in state ALARM triggered policy track")


def test_two_periods_above_the_target_are_not_enough(world: ScalingWorld) -> None:
    world.endpoint_with(1).track(5.0)
    world.seconds(60, load=3.0).seconds(20, load=18.0).seconds(60, load=3.0)
    assert world.desired == 1
    assert world.activities() == []


def test_scale_in_waits_for_fifteen_minutes(world: ScalingWorld) -> None:
    world.endpoint_with(4).track(5.0)
    world.seconds(880, load=4.0)
    assert world.desired == 4
    assert 10 <= world.seconds_until(1) <= 40
    world.seconds(3)
    assert world.activities()[-1].status == "Successful"


def test_without_readings_nothing_is_scaled_in(world: ScalingWorld) -> None:
    world.endpoint_with(4).track(5.0)
    world.seconds(300, load=1.0)
    world.silent = True
    world.seconds(1300)
    assert world.desired == 4
    assert set(world.alarm_states().values()) == {"INSUFFICIENT_DATA"}


def test_during_the_cooldown_only_a_larger_scale_out_passes(world: ScalingWorld) -> None:
    world.endpoint_with(1).track(5.0, ScaleOutCooldown=200)
    world.seconds(30, load=8.0)
    world.seconds_until(2)
    world.load = 14.0
    world.seconds_until(3, limit=60)  # more than the two that the first one made
    world.seconds(30)
    assert world.target.out_to == 3
    assert world.target.out_cooldown_s == 200


def test_a_scale_in_has_to_wait_for_the_last_one(world: ScalingWorld) -> None:
    world.endpoint_with(8).track(5.0, ScaleInCooldown=400)
    world.seconds(910, load=20.0)
    world.seconds_until(4)
    at_s = world.now_s
    world.load = 4.0
    world.seconds_until(1)
    assert world.now_s - at_s >= 400


def test_a_policy_by_the_minute_keeps_the_other_from_scaling_in(world: ScalingWorld) -> None:
    world.endpoint_with(4).track(5.0)
    kind = "SageMakerVariantInvocationsPerInstance"
    world.track(62.0, "per-minute", PredefinedMetricSpecification={"PredefinedMetricType": kind})
    world.invocations = 4  # 60 a minute and instance, between 0.9 × 62 and 62
    world.seconds(1020, load=0.5)
    assert world.desired == 4
    world.invocations = 0
    assert world.seconds_until(1, limit=1100) >= 850


def test_a_policy_by_the_minute_votes_with_its_last_whole_minute(world: ScalingWorld) -> None:
    world.endpoint_with(4).track(5.0)
    kind = "SageMakerVariantInvocationsPerInstance"
    world.track(100.0, "per-minute", PredefinedMetricSpecification={"PredefinedMetricType": kind})
    world.invocations = 4  # 60 a minute and instance: three would do, whatever the other says
    world.seconds(20, load=20.0)  # the other's quarter of an hour ends within a minute
    world.seconds(920, load=0.5)
    assert world.desired == 3


def test_metric_math_is_tracked(world: ScalingWorld) -> None:
    world.endpoint_with(1)
    metric = {"Namespace": "own", "MetricName": "queue"}
    queries = [
        {"Id": "q", "MetricStat": {"Metric": metric, "Stat": "Maximum"}, "ReturnData": False},
        {"Id": "half", "Expression": "q / 2", "ReturnData": True},
    ]
    world.track(5.0, CustomizedMetricSpecification={"Metrics": queries})
    for _ in range(4):
        put_metric(world, "queue", 30.0)
        world.seconds(60)
    assert world.desired == 3


def test_a_step_policy_follows_the_users_alarm_and_its_cooldown(world: ScalingWorld) -> None:
    world.endpoint_with(1)
    arn = step_policy(
        world, "up", {"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 2}, Cooldown=150
    )
    alarm(world, arn)
    put_metric(world, "failures", 5.0)
    world.seconds_until(3, limit=80)
    assert "monitor alarm mine in state ALARM triggered policy up" in world.activities()[-1].cause
    for _ in range(2):  # +2 again within the cooldown: they count as added already
        put_metric(world, "failures", 5.0)
        world.seconds(60)
    assert world.desired == 3
    assert world.decision is not None
    assert world.decision.not_scaled is NotScaled.COOLING_DOWN
    put_metric(world, "failures", 5.0)
    world.seconds(70)
    assert world.desired == 5


def set_alarm(world: ScalingWorld, name: str, datapoints: list[Any] | None) -> None:
    data = {} if datapoints is None else {
        "StateReasonData": json.dumps({"version": "1.0", "recentDatapoints": datapoints})
    }  # fmt: skip
    world.call("SetAlarmState", AlarmName=name, StateValue="ALARM", StateReason="a try", **data)


def test_an_alarm_that_is_set_acts_at_once_and_by_the_datapoints_it_is_given(
    world: ScalingWorld,
) -> None:
    world.endpoint_with(1)
    arn = step_policy(
        world, "up",
        {"MetricIntervalLowerBound": 0.0, "MetricIntervalUpperBound": 5.0, "ScalingAdjustment": 1},
        {"MetricIntervalLowerBound": 5.0, "ScalingAdjustment": 3},
        Cooldown=0,
    )  # fmt: skip
    alarm(world, arn, TreatMissingData="notBreaching")
    put_metric(world, "failures", 0.0)
    world.seconds(65)
    assert world.desired == 1
    set_alarm(world, "mine", [9.0])
    assert world.seconds_until(4, limit=3) <= 2
    world.seconds(1)
    set_alarm(world, "mine", [9.0])  # as it is already: no transition, no action
    world.seconds(4)
    assert world.desired == 4
    world.seconds(120)  # evaluated since: it is not in ALARM
    assert world.desired == 4
    for nonsense in (None, [], ["9"], [None], [float("nan")]):  # then the readings count
        set_alarm(world, "mine", nonsense)
        world.seconds(61)
    assert world.desired == 4


def test_a_target_tracking_alarm_can_be_set_too(world: ScalingWorld) -> None:
    world.endpoint_with(1).track(5.0)
    world.seconds(60, load=3.0)
    alarms = world.call("DescribeAlarms")["MetricAlarms"]
    name = next(each["AlarmName"] for each in alarms if "AlarmHigh" in each["AlarmName"])
    set_alarm(world, name, [8.0, 12.0])
    assert world.seconds_until(3, limit=3) <= 2


def test_alarms_with_their_actions_off_scale_nothing(world: ScalingWorld) -> None:
    world.endpoint_with(1)
    arn = step_policy(world, "up", {"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 2})
    alarm(world, arn, ActionsEnabled=False)
    put_metric(world, "failures", 5.0)
    world.seconds(130)
    assert world.desired == 1


def test_suspended_scaling_is_named_and_resumes(world: ScalingWorld) -> None:
    world.endpoint_with(1, SuspendedState={"DynamicScalingOutSuspended": True}).track(5.0)
    world.seconds(90, load=18.0)
    assert world.desired == 1
    assert world.decision is not None
    assert "scale-out is suspended" in world.decision.reason
    world.call(
        "RegisterScalableTarget", **RESOURCE, SuspendedState={"DynamicScalingOutSuspended": False}
    )
    world.seconds_until(4, limit=30)


def test_new_bounds_move_the_capacity_at_once(world: ScalingWorld) -> None:
    world.endpoint_with(2).seconds(3)
    world.call("RegisterScalableTarget", **RESOURCE, MinCapacity=5)
    world.seconds(2)
    assert world.desired == 5
    world.call("RegisterScalableTarget", **RESOURCE, MinCapacity=1, MaxCapacity=3)
    world.seconds(2)
    assert world.desired == 3
    causes = [activity.cause for activity in world.activities()]
    assert causes == ["minimum capacity was set to 5", "maximum capacity was set to 3"]
    assert {activity.status for activity in world.activities()} == {"Successful"}


def test_an_endpoint_that_is_updating_is_unscalable_and_that_is_said_once(
    world: ScalingWorld,
) -> None:
    world.endpoint_with(1).track(5.0)
    world.seconds(30, load=18.0)
    world.set_status(EndpointStatus.UPDATING, pending=world.endpoint.current)
    world.seconds(60)
    reasons = [activity.not_scaled for activity in world.activities()]
    assert reasons == [({"Code": "TargetServicePutResourceAsUnscalable"},)]
    world.set_status(EndpointStatus.IN_SERVICE)
    world.seconds_until(4, limit=20)


def test_the_maximum_is_recorded_once_even_across_a_restart(world: ScalingWorld) -> None:
    world.endpoint_with(2, MaxCapacity=2).track(5.0)
    world.seconds(90, load=40.0)
    world.start()
    world.seconds(60)
    assert [a.not_scaled for a in world.activities()] == [
        ({"Code": "AlreadyAtMaxCapacity", "MaxCapacity": 2},)
    ]


def test_an_activity_is_in_progress_until_the_instances_serve(world: ScalingWorld) -> None:
    world.endpoint_with(1, **FAST).track(5.0)
    world.settles = False
    world.seconds(30, load=2.0).seconds(3, load=8.0)
    assert [a.status for a in world.activities()] == ["InProgress"]
    world.seconds(3, load=30.0)
    assert [a.status for a in world.activities()][:1] == ["Overridden"]
    assert world.activities()[-1].status == "InProgress"
    world.settle()
    world.seconds(1)
    assert world.activities()[-1].status == "Successful"


def test_instances_that_cannot_be_had_are_seen_and_asked_for_again_later(
    world: ScalingWorld,
) -> None:
    world.endpoint_with(1, **FAST).track(5.0)
    world.settles = False
    world.seconds(30, load=2.0).seconds(3, load=8.0)
    world.lack("3 of 3 instances are in use")
    world.seconds(2)
    assert world.activities()[-1].details == "3 of 3 instances are in use"
    world.give_up(1, "Unable to provision requested ML compute capacity")
    world.seconds(5)
    failed = world.activities()[-1]
    assert failed.status == "Failed"
    assert "Unable to provision requested ML compute capacity" in failed.message
    assert world.desired == 1
    assert world.decision is not None
    assert world.decision.not_scaled is NotScaled.NO_CAPACITY
    assert "Unable to provision" in world.decision.reason
    assert 50 <= world.seconds_until(2, limit=90) <= 60
    world.give_up(1, "Unable to provision requested ML compute capacity")
    world.seconds(1)
    assert 100 <= world.seconds_until(2, limit=150) <= 120  # twice as long


def test_a_minimum_that_cannot_be_had_is_asked_for_again_later(world: ScalingWorld) -> None:
    world.endpoint_with(1)
    world.settles = False
    world.call("RegisterScalableTarget", **RESOURCE, MinCapacity=3)
    world.seconds_until(3, limit=3)
    world.give_up(1, "no capacity")
    world.seconds(30)
    assert world.desired == 1
    assert world.decision is not None
    assert "minimum capacity was set to 3; the last attempt failed" in world.decision.reason
    world.seconds_until(3, limit=40)


def schedule(world: ScalingWorld, name: str, text: str, **more: Any) -> None:
    bounds = {"MinCapacity": more.pop("minimum", None), "MaxCapacity": more.pop("maximum", None)}
    world.call(
        "PutScheduledAction", **RESOURCE, ScheduledActionName=name, Schedule=text,
        ScalableTargetAction={key: value for key, value in bounds.items() if value is not None},
        **more,
    )  # fmt: skip


def test_a_schedule_runs_at_its_time_in_its_zone_and_once(world: ScalingWorld) -> None:
    world.endpoint_with(1)
    at = datetime.fromtimestamp(START_S + 7200 + 20, UTC)  # Berlin is two hours ahead in summer
    schedule(world, "up", f"at({at:%Y-%m-%dT%H:%M:%S})", minimum=4, Timezone="Europe/Berlin")
    world.seconds(19)
    assert world.desired == 1
    world.seconds(3)
    assert world.desired == 4
    world.call("RegisterScalableTarget", **RESOURCE, MinCapacity=1)
    world.start()
    world.seconds(60)
    assert world.target.minimum == 1


def test_what_was_missed_while_the_control_plane_was_away_runs_once(world: ScalingWorld) -> None:
    world.endpoint_with(1)
    schedule(world, "every", "rate(1 minute)", minimum=3)
    world.now_s += 600
    world.start()
    world.seconds(2)
    assert world.target.minimum == 3
    world.call("RegisterScalableTarget", **RESOURCE, MinCapacity=1)
    world.start()
    world.seconds(20)
    assert world.target.minimum == 1
    world.seconds(60)
    assert world.target.minimum == 3


def test_of_several_missed_schedules_the_last_due_wins(world: ScalingWorld) -> None:
    world.endpoint_with(1)
    soon, later = (datetime.fromtimestamp(START_S + offset, UTC) for offset in (30, 60))
    schedule(world, "z-first", f"at({soon:%Y-%m-%dT%H:%M:%S})", minimum=5)
    schedule(world, "a-second", f"at({later:%Y-%m-%dT%H:%M:%S})", minimum=2)
    world.now_s += 600
    world.seconds(2)
    assert world.target.minimum == 2


def test_a_run_is_an_activity_and_so_is_the_move_into_the_new_bounds(world: ScalingWorld) -> None:
    world.endpoint_with(1)
    schedule(world, "often", "rate(1 minute)", minimum=2, maximum=6)
    world.seconds(200)
    first, second = sorted(world.activities(), key=lambda each: each.desired is not None)
    assert first.description == "Setting min capacity to 2 and max capacity to 6"
    assert first.cause == "scheduled action name often was triggered"
    assert first.message == "Successfully set min capacity to 2 and max capacity to 6"
    assert (first.status, second.cause) == ("Successful", "minimum capacity was set to 2")


def test_a_time_that_comes_twice_is_not_due_when_it_comes_again(world: ScalingWorld) -> None:
    world.now_s = datetime(2026, 10, 25, 1, 10, tzinfo=UTC).timestamp()  # 02:10 again in Berlin
    world.endpoint_with(1)
    schedule(world, "up", "cron(30 2 * * ? *)", minimum=4, Timezone="Europe/Berlin")
    world.seconds(5)
    assert world.target.minimum == 1


def test_suspended_schedules_are_skipped(world: ScalingWorld) -> None:
    world.endpoint_with(1, SuspendedState={"ScheduledScalingSuspended": True})
    schedule(world, "every", "rate(1 minute)", minimum=3)
    world.seconds(65)
    assert world.target.minimum == 1


def test_fast_decides_within_two_seconds_of_a_sustained_overload(world: ScalingWorld) -> None:
    world.endpoint_with(1, **FAST).track(5.0)
    world.settles = False
    world.seconds(30, load=3.0)
    world.load = 18.0
    world.seconds(2)
    assert world.desired >= 4
    assert "18.0 requests in flight for 2 s" in world.activities()[-1].cause


def test_fast_decides_on_half_of_the_second_second(world: ScalingWorld) -> None:
    world.endpoint_with(1, **FAST).track(5.0)
    world.settles = False
    world.seconds(30, load=3.0)
    world.half_second(load=18.0)  # as a burst of half a second would look
    assert world.desired == 1
    world.seconds(1, load=18.0).half_second(load=18.0)
    assert world.desired >= 4
    assert "18.0 requests in flight for 1.5 s" in world.activities()[-1].cause


def test_half_a_second_is_not_counted_twice(world: ScalingWorld) -> None:
    world.endpoint_with(1, **FAST).track(5.0)
    world.seconds(30, load=3.0).half_second(load=18.0)
    world.seconds(1, load=18.0)
    assert world.desired == 1
    world.half_second(load=2.0)
    world.seconds(5, load=4.0)
    assert world.desired == 1


def test_fast_counts_what_is_starting_and_says_so(world: ScalingWorld) -> None:
    world.endpoint_with(1, **FAST).track(5.0)
    world.settles = False
    world.seconds(40, load=12.0)
    asked = world.desired
    world.seconds(15)
    assert world.desired == asked
    assert world.decision is not None
    assert world.decision.not_scaled is NotScaled.STARTING
    assert len(world.activities()) == 1


def test_a_request_that_waits_calls_for_one_more(world: ScalingWorld) -> None:
    world.endpoint_with(1, **FAST).track(5.0)
    world.seconds(20, load=4.0)
    world.queue_age_s = 2.5
    world.seconds(1)
    assert world.desired == 2
    assert "the oldest waits for 2.5 s" in world.activities()[-1].cause


def test_fast_scales_in_after_fifteen_minutes_and_does_not_flap(world: ScalingWorld) -> None:
    world.endpoint_with(3, **FAST).track(5.0)
    world.seconds(890, load=4.0)
    assert world.desired == 3
    world.seconds_until(1, limit=20)
    world.seconds(300, load=4.4)
    assert world.desired == 1  # 0.9 of the target is 4.5
    assert len(world.activities()) == 1


def test_fast_gives_back_whole_what_it_took_too_early(world: ScalingWorld) -> None:
    world.endpoint_with(4, **FAST).track(5.0)
    world.seconds(890, load=4.0)
    world.seconds_until(1, limit=20)
    world.seconds(60, load=4.0)
    world.start()
    world.seconds(4, load=7.0)
    assert world.desired == 4
    assert "2 wanted, and there were 4 " in world.activities()[-1].cause
    world.seconds(1000, load=3.0)
    assert world.desired == 1


def test_fast_keeps_the_cooldown_of_the_policy(world: ScalingWorld) -> None:
    world.endpoint_with(1, **FAST).track(5.0, ScaleOutCooldown=1200)
    world.seconds(60, load=4.0).seconds(5, load=14.0)
    assert world.desired >= 3
    world.seconds(1150, load=2.0)
    assert world.desired >= 3
    assert world.decision is not None
    assert world.decision.not_scaled is NotScaled.COOLING_DOWN
    world.seconds_until(1, limit=60)


def not_scaled(world: ScalingWorld) -> list[dict[str, Any]]:
    return [reason for activity in world.activities() for reason in activity.not_scaled]


def test_fast_records_the_maximum_once_even_across_a_restart(world: ScalingWorld) -> None:
    world.endpoint_with(2, MaxCapacity=2, **FAST).track(5.0)
    world.seconds(30, load=3.0).seconds(1, load=40.0)
    assert not_scaled(world) == []
    world.seconds(60).half_second(load=40.0)
    world.start()
    world.seconds(60)
    assert not_scaled(world) == [{"Code": "AlreadyAtMaxCapacity", "MaxCapacity": 2}]
    attempt = world.activities()[0]
    assert (attempt.description, attempt.status) == (
        "Attempting to scale due to alarm triggered", "Failed",
    )  # fmt: skip
    assert attempt.cause.startswith("policy track in the fast mode: 40.0 requests in flight")
    described = world.call("DescribeScalingActivities", **RESOURCE)["ScalingActivities"]
    assert described == []
    described = world.call(
        "DescribeScalingActivities", **RESOURCE, IncludeNotScaledActivities=True
    )["ScalingActivities"]
    assert [each["NotScaledReasons"] for each in described] == [not_scaled(world)]


def test_fast_records_the_minimum_after_fifteen_quiet_minutes(world: ScalingWorld) -> None:
    world.endpoint_with(1, **FAST).track(5.0)
    world.seconds(895, load=0.0)
    assert not_scaled(world) == []
    world.seconds(60)
    assert not_scaled(world) == [{"Code": "AlreadyAtMinCapacity", "MinCapacity": 1}]


def test_fast_does_not_try_what_is_switched_off(world: ScalingWorld) -> None:
    world.endpoint_with(1, **FAST).track(5.0, DisableScaleIn=True)
    world.seconds(960, load=0.0)
    assert not_scaled(world) == []
    assert world.decision is not None
    assert world.decision.not_scaled is NotScaled.SUSPENDED


def test_bursts_on_a_fixed_capacity_are_one_attempt_in_fast(world: ScalingWorld) -> None:
    """Of two seconds each, which the highest five seconds hardly show: fewer would do again."""
    world.endpoint_with(4, MinCapacity=4, MaxCapacity=4, **FAST).track(5.0)
    world.seconds(905, load=1.0)
    minimum = {"Code": "AlreadyAtMinCapacity", "MinCapacity": 4}
    maximum = {"Code": "AlreadyAtMaxCapacity", "MaxCapacity": 4}
    assert not_scaled(world) == [minimum]
    for _ in range(20):
        world.seconds(3, load=22.0).seconds(30, load=1.0)
    assert not_scaled(world) == [minimum, maximum]


def test_fast_says_once_that_an_endpoint_is_updating(world: ScalingWorld) -> None:
    world.endpoint_with(1, **FAST).track(5.0)
    world.seconds(30, load=3.0)
    world.set_status(EndpointStatus.UPDATING, pending=world.endpoint.current)
    world.seconds(30, load=18.0)
    assert not_scaled(world) == [{"Code": "TargetServicePutResourceAsUnscalable"}]
    world.set_status(EndpointStatus.IN_SERVICE)
    world.seconds_until(4, limit=5)


def test_after_a_restart_fast_still_knows_the_last_fifteen_minutes(world: ScalingWorld) -> None:
    world.endpoint_with(3, **FAST).track(5.0)
    world.seconds(300, load=12.0).seconds(300, load=2.0)
    world.start()
    world.seconds(310)
    assert world.desired == 3  # the load of 12 is ten minutes old
    world.start()
    assert world.seconds_until(1, limit=400) >= 250


def test_a_restart_neither_repeats_nor_loses_a_decision(world: ScalingWorld) -> None:
    world.endpoint_with(1).track(5.0)
    world.seconds(60, load=3.0).seconds(25, load=18.0)
    world.start()
    world.seconds_until(4, limit=12)
    world.start()
    world.seconds(60, load=18.0)
    assert world.desired == 4
    changes = [a for a in world.activities() if a.desired is not None]
    assert [change.desired for change in changes] == [4]
