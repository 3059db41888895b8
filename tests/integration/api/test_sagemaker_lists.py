"""Lists, tags and accounts of SageMaker as unmodified boto3 sees them."""

from __future__ import annotations

import time
from typing import Any

from tests.fixtures.aws_api import ACCOUNT, Served, refusal
from tests.integration.api.sagemaker_calls import (
    arn,
    make_config,
    make_endpoint,
    make_model,
)
from zeropull.api.keys import create_key
from zeropull.resources.accounts import Account


def test_lists_are_paged_filtered_and_sorted(served: Served, sagemaker: Any) -> None:
    for number in range(25):
        # Within the skew that signatures allow, and far enough apart to be told from each other.
        served.clock = _offset_clock(number)
        make_model(sagemaker, f"model-{number:02}")
    served.clock = _offset_clock(0)
    default = sagemaker.list_models()
    assert [m["ModelName"] for m in default["Models"]] == [
        f"model-{n:02}" for n in range(24, 14, -1)
    ]
    assert default["NextToken"]
    pages = sagemaker.get_paginator("list_models").paginate(
        SortBy="Name", SortOrder="Ascending", PaginationConfig={"PageSize": 7}
    )
    names = [m["ModelName"] for page in pages for m in page["Models"]]
    assert names == [f"model-{n:02}" for n in range(25)]
    assert len(sagemaker.list_models(NameContains="L-1", MaxResults=100)["Models"]) == 10
    middle = sagemaker.describe_model(ModelName="model-10")["CreationTime"]
    after = sagemaker.list_models(CreationTimeAfter=middle, MaxResults=100)["Models"]
    before = sagemaker.list_models(CreationTimeBefore=middle, MaxResults=100)["Models"]
    assert len(after) + len(before) == 25
    for token in ("nonsense", default["NextToken"]):
        assert (
            "NextToken is not valid"
            in refusal(sagemaker.list_models, NextToken=token, SortBy="Name")[1]
        )


def _offset_clock(offset_s: float) -> Any:
    return lambda: time.time() + offset_s


def test_endpoints_are_listed_by_status(served: Served, sagemaker: Any) -> None:
    make_endpoint(served, sagemaker, "one")
    sagemaker.create_endpoint(EndpointName="two", EndpointConfigName="c1")
    listed = sagemaker.list_endpoints(StatusEquals="Creating")["Endpoints"]
    assert [e["EndpointName"] for e in listed] == ["two"]
    by_status = sagemaker.list_endpoints(SortBy="Status", SortOrder="Ascending")["Endpoints"]
    assert [e["EndpointStatus"] for e in by_status] == ["Creating", "InService"]


def test_tags_are_added_listed_and_deleted(sagemaker: Any) -> None:
    make_model(sagemaker)
    resource = arn("model", "m1")
    added = sagemaker.add_tags(
        ResourceArn=resource,
        Tags=[{"Key": f"k{n:02}", "Value": "ä ü"} for n in range(50)],
    )
    assert len(added["Tags"]) == 50
    assert (
        "at most 50"
        in refusal(sagemaker.add_tags, ResourceArn=resource, Tags=[{"Key": "more", "Value": ""}])[1]
    )
    pages = sagemaker.get_paginator("list_tags").paginate(ResourceArn=resource)
    assert sum(len(page["Tags"]) for page in pages) == 50
    sagemaker.delete_tags(ResourceArn=resource, TagKeys=[f"k{n:02}" for n in range(49)])
    assert sagemaker.list_tags(ResourceArn=resource)["Tags"] == [{"Key": "k49", "Value": "ä ü"}]
    assert refusal(sagemaker.list_tags, ResourceArn=arn("endpoint", "no"))[1] == (
        f'Could not find endpoint "{arn("endpoint", "no")}".'
    )
    other = resource.replace(ACCOUNT, "999999999999")
    assert "Could not find model" in refusal(sagemaker.list_tags, ResourceArn=other)[1]
    assert refusal(sagemaker.add_tags, ResourceArn=resource, Tags=[{"Key": "aws:x", "Value": ""}])[
        0
    ] == ("ValidationException")


def test_accounts_do_not_see_each_other(served: Served, sagemaker: Any) -> None:
    make_endpoint(served, sagemaker)
    served.store.put(Account("111111111111", "other", 0.0))
    served.key = create_key(served.store, "111111111111", time.time())
    other = served.client("sagemaker")
    assert other.list_models()["Models"] == []
    assert other.list_endpoint_configs()["EndpointConfigs"] == []
    assert other.list_endpoints()["Endpoints"] == []
    assert "Could not find" in refusal(other.describe_endpoint, EndpointName="ep")[1]
    assert "Could not find" in refusal(other.delete_model, ModelName="m1")[1]
    assert "Could not find" in refusal(other.list_tags, ResourceArn=arn("endpoint", "ep"))[1]
    make_model(other)
    make_config(other)
    other.create_endpoint(EndpointName="ep", EndpointConfigName="c1")
    assert sagemaker.describe_endpoint(EndpointName="ep")["EndpointStatus"] == "InService"
