"""A member that a request fills and nobody reads is a promise that is not kept.

A stored member must be read by some code outside `zeropull.api`, which only takes it and tells it
again, or stand below with the reason why telling it is all there is to do.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import zeropull
from zeropull import resources

SOURCE = Path(zeropull.__file__).parent
TOLD_ONLY = {
    "AlarmEvent.kind_of": "DescribeAlarmHistory filters and tells it",
    "AlarmEvent.summary": "DescribeAlarmHistory tells it",
    "InferenceComponent.endpoint_arn": "DescribeInferenceComponent tells it",
    "InferenceComponent.last_deployment_config": "DescribeInferenceComponent tells it",
    "VariantSpec.initial_instances": "the desired count of its variant begins with it",
    "VariantSpec.initial_weight": "the desired weight of its variant begins with it",
    "VariantSpec.volume_gb": "told again; docs/API.md says that it has no effect",
    "RollingPolicy.rollback_batch": "told again; docs/API.md says that it has no effect",
    "DeployedImage.resolved_s": "DescribeEndpoint tells it as ResolutionTime",
    "Deployment.config_request": "DescribeEndpoint tells the config's members from it",
    "Endpoint.last_deployment_config": "DescribeEndpoint tells it",
    "Variant.current_weight": "DescribeEndpoint tells it",
    "VariantStatus.phase": "DescribeEndpoint tells it",
    "ScalableTarget.role_arn": "DescribeScalableTargets tells it: there is no role to take on",
    "ScalingActivity.description": "DescribeScalingActivities tells it",
}


def stored_members() -> Iterator[str]:
    for found in pkgutil.iter_modules(resources.__path__):
        module = importlib.import_module(f"zeropull.resources.{found.name}")
        for kind in vars(module).values():
            if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__:
                for field in dataclasses.fields(kind):
                    yield f"{kind.__name__}.{field.name}"


def names_read() -> set[str]:
    """Attributes that are read anywhere but in the operations."""
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        if path.relative_to(SOURCE).parts[0] == "api" or "_generated" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
    return found


def test_every_stored_member_is_read_or_told_for_a_reason() -> None:
    read = names_read()
    unread = {member for member in stored_members() if member.partition(".")[2] not in read}
    assert unread - TOLD_ONLY.keys() == set(), "stored, and read by nobody"


def test_the_reasons_are_of_members_that_exist() -> None:
    assert TOLD_ONLY.keys() - set(stored_members()) == set()
