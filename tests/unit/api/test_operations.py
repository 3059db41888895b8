"""Tables of operations, classes of members, pages, and policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zeropull.api import Operation, OperationTable, documented_members
from zeropull.api.listing import page
from zeropull.api.operations import merge_tables
from zeropull.api.sagemaker import sagemaker_table
from zeropull.api.sagemaker.deployments import deployment_of, policy_of
from zeropull.awsprotocol.faults import ApiFault
from zeropull.awsprotocol.members import MemberClass
from zeropull.errors import InvalidInput
from zeropull.resources.endpoint_configs import (
    CapacitySize,
    EndpointConfig,
    RollingPolicy,
    UpdatePolicy,
    VariantSpec,
)
from zeropull.resources.models import ContainerSpec, Model
from zeropull.statestore import Store


def test_every_member_of_every_operation_has_a_class(tmp_path: Path) -> None:
    with Store.open(tmp_path / "db") as store:
        rows = documented_members([sagemaker_table(store, instance_types=["ml.m5.large"])])
    classes = {(row.operation, row.path): row.member_class for row in rows}
    assert len(classes) == len(rows)
    assert classes["CreateModel", "ExecutionRoleArn"] is MemberClass.ACCEPTED
    assert classes["CreateEndpointConfig", "DataCaptureConfig"] is MemberClass.REFUSED
    assert classes["UpdateEndpoint", "RetainAllVariantProperties"] is MemberClass.SUPPORTED
    assert all(row.why for row in rows if row.member_class is not MemberClass.SUPPORTED)


def test_tables_of_one_service_add_up() -> None:
    def nothing(call: Any, members: Any) -> None:
        return None

    first = OperationTable("sagemaker", (Operation("ListTags", nothing),), {"E": frozenset("a")})
    second = OperationTable("sagemaker", (Operation("AddTags", nothing),), {"E": frozenset("b")})
    merged = merge_tables([first, second])["sagemaker"]
    assert {row.name for row in merged.operations} == {"ListTags", "AddTags"}
    assert merged.enum_extras == {"E": frozenset("ab")}
    with pytest.raises(AssertionError):
        merge_tables([first, first])


def test_pages_neither_repeat_nor_skip_when_items_come_and_go() -> None:
    items = list(range(0, 100, 10))

    def one(token: str | None) -> tuple[list[int], str | None]:
        members = {"MaxResults": 3} | ({"NextToken": token} if token else {})
        return page(items, members, lambda n: (float(n), ""), descending=False, default_size=10)

    first, token = one(None)
    items.remove(20)
    items.append(5)
    second, token = one(token)
    assert (first, second) == ([0, 10, 20], [30, 40, 50])
    rest = []
    while token:
        chosen, token = one(token)
        rest += chosen
    assert rest == [60, 70, 80, 90]


def test_tokens_of_other_filters_are_refused() -> None:
    def one(**members: Any) -> str | None:
        return page([1, 2], members, lambda n: (n, ""), descending=False, default_size=1)[1]

    token = one(NameContains="a")
    assert token is not None
    for members in ({"NameContains": "b", "NextToken": token}, {"NextToken": "é"}):
        with pytest.raises(ApiFault, match="NextToken is not valid"):
            one(**members)


def config(*names: str) -> EndpointConfig:
    variants = tuple(VariantSpec(name, "t", 4, 1.0, "m") for name in names)
    return EndpointConfig("0", "c", "arn", 0.0, variants)


def test_a_policy_that_cannot_shift_falls_back_to_all_at_once() -> None:
    model = Model("0", "m", "arn", 0.0, (ContainerSpec("image"),))
    rolling = UpdatePolicy(None, RollingPolicy(CapacitySize("INSTANCE_COUNT", 1)), ("alarm",))

    def deployed(policy: UpdatePolicy, before: EndpointConfig, after: EndpointConfig) -> Any:
        previous = deployment_of(before, lambda _: model, UpdatePolicy(), 0.0)
        return deployment_of(after, lambda _: model, policy, 1.0, previous=previous).policy

    assert deployed(rolling, config("a"), config("a")) == rolling
    for before, after in ((config("a"), config("b")), (config("a", "b"), config("a", "b"))):
        assert deployed(rolling, before, after) == UpdatePolicy(rollback_alarms=("alarm",))


@pytest.mark.parametrize(
    ("routing", "text"),
    [
        ({"Type": "CANARY", "WaitIntervalInSeconds": 1}, "CanarySize"),
        ({"Type": "LINEAR", "WaitIntervalInSeconds": 1}, "LinearStepSize"),
        (
            {
                "Type": "LINEAR",
                "WaitIntervalInSeconds": 1,
                "LinearStepSize": {"Type": "CAPACITY_PERCENT", "Value": 9},
            },
            "between 10 and 50",
        ),
        ({"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 3600}, "greater than the waits"),
    ],
)
def test_policies_that_contradict_themselves_are_refused(
    routing: dict[str, Any], text: str
) -> None:
    policy = {"TrafficRoutingConfiguration": routing, "MaximumExecutionTimeoutInSeconds": 600}
    with pytest.raises(InvalidInput, match=text):
        policy_of({"BlueGreenUpdatePolicy": policy})
