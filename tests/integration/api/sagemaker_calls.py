"""What tests of SageMaker's control plane ask for; they play the reconcilers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.fixtures.aws_api import ACCOUNT, REGION, Served
from zeropull.resources.endpoints import Endpoint, EndpointStatus, endpoint_key

ROLE = "arn:aws:iam::000000000000:role/service-role"
IMAGE = "127.0.0.1:5000/team/server:1"


def arn(kind: str, name: str) -> str:
    return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{name}"


def make_model(sagemaker: Any, name: str = "m1", **container: Any) -> None:
    sagemaker.create_model(
        ModelName=name,
        PrimaryContainer={"Image": IMAGE, "Environment": {"A": "1"}, **container},
        ExecutionRoleArn=ROLE,
    )


def variant(**changes: Any) -> dict[str, Any]:
    return {
        "VariantName": "v1",
        "ModelName": "m1",
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 2,
        **changes,
    }


def make_config(sagemaker: Any, name: str = "c1", **changes: Any) -> None:
    sagemaker.create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[variant(**changes)]
    )


def make_endpoint(served: Served, sagemaker: Any, name: str = "ep") -> None:
    """A model, a config and an endpoint that is in service."""
    make_model(sagemaker)
    make_config(sagemaker)
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName="c1")
    settle(served, name)


def settle(served: Served, name: str) -> None:
    """What reconcilers do when everything went well."""

    def change(endpoint: Endpoint) -> Endpoint:
        wanted = endpoint.newest
        assert wanted is not None
        variants = tuple(
            replace(v, current_instances=v.desired_instances, current_weight=v.desired_weight)
            for v in wanted.variants
        )
        return replace(
            endpoint,
            status=EndpointStatus.IN_SERVICE,
            current=replace(wanted, variants=variants),
            pending=None,
        )

    served.store.update(Endpoint, endpoint_key(ACCOUNT, name), change)


def set_status(served: Served, name: str, status: EndpointStatus, reason: str = "") -> None:
    served.store.update(
        Endpoint,
        endpoint_key(ACCOUNT, name),
        lambda e: replace(e, status=status, failure_reason=reason),
    )
