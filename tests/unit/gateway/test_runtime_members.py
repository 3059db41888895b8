"""What is checked of a request's members is what the service model says."""

from __future__ import annotations

import botocore.session
import pytest

from zeropull.gateway.invocation_head import InvocationHead
from zeropull.gateway.refusals import Refusal
from zeropull.gateway.runtime_members import MEMBERS, STREAM_SESSION

OPERATIONS = ("InvokeEndpoint", "InvokeEndpointWithResponseStream")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_limits_and_patterns_are_those_of_the_model(operation: str) -> None:
    service = botocore.session.get_session().get_service_model("sagemaker-runtime")
    ours = {(member.name, member.header): member for member in MEMBERS}
    for name, shape in service.operation_model(operation).input_shape.members.items():
        if shape.serialization.get("location") != "header":
            continue
        member = ours[name, shape.serialization["name"].lower().encode()]
        if operation != "InvokeEndpoint" and name == "SessionId":
            member = STREAM_SESSION
        limits = shape.metadata
        assert (member.shortest, member.longest) == (limits.get("min", 0), limits["max"]), name
        assert member.pattern == limits.get("pattern", ""), name
        assert member.is_sensitive == limits.get("sensitive", False), name


@pytest.mark.parametrize(
    ("header", "value", "says"),
    [
        (b"Content-Type", b"a" * 1025, "'contentType' .* less than or equal to 1024"),
        (b"Accept", "\u00e4".encode("latin-1"), "'accept' .* regular expression"),
        (b"X-Amzn-SageMaker-Custom-Attributes", b"a" * 1025, "Value at 'customAttributes'"),
        (b"X-Amzn-SageMaker-Custom-Attributes", b"\xe4", "Value at 'customAttributes'"),
        (b"X-Amzn-SageMaker-Inference-Id", b"i" * 65, "'inferenceId' .* less than or equal to 64"),
        (b"X-Amzn-SageMaker-Inference-Id", b"", "'inferenceId' .* greater than or equal to 1"),
        (b"X-Amzn-SageMaker-Session-Id", b"a_b", "'a_b' at 'sessionId' .* regular expression"),
        (b"X-Amzn-SageMaker-Session-Id", b"a" * 257, "'sessionId' .* less than or equal to 256"),
        (b"X-Amzn-SageMaker-Target-Variant", b"-a", "'targetVariant' .* regular expression"),
        (b"X-Amzn-SageMaker-Target-Model", b"m.tar.gz", "Endpoint e is not a multi-model endpoint"),
        (b"X-Amzn-SageMaker-Target-Container-Hostname", b"c", "not a multi-container endpoint"),
        (b"X-Amzn-SageMaker-Enable-Explanations", b"`true`", "has no explainer"),
    ],
)
def test_a_member_that_is_unfit_or_not_served_is_refused_by_name(
    header: bytes, value: bytes, says: str
) -> None:
    head = InvocationHead([(b"Host", b"h"), (header, value)])
    assert not head.is_plain
    with pytest.raises(Refusal, match=says) as refused:
        head.refuse_unfit("e")
    assert (refused.value.status, refused.value.code) == (400, "ValidationError")


def test_what_the_model_allows_is_taken() -> None:
    head = InvocationHead(
        [
            (b"Content-Type", b"a" * 1024),
            (b"X-Amzn-SageMaker-Custom-Attributes", b"a" * 1024),
            (b"X-Amzn-SageMaker-Inference-Id", b"one id/2"),
            (b"X-Amzn-SageMaker-Target-Variant", b"a-1"),
            (b"X-Amzn-SageMaker-Prefix-Aware-Id", b"p"),
        ]
    )
    head.refuse_unfit("e")
    assert head.is_plain
