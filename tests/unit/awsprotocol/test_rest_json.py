"""REST-JSON of SageMaker Runtime."""

from __future__ import annotations

from zeropull.awsprotocol.rest_json import request_headers, response_headers


def test_the_headers_of_the_runtime_come_from_its_model() -> None:
    headers = request_headers("InvokeEndpoint")
    assert headers["TargetVariant"] == "x-amzn-sagemaker-target-variant"
    streaming = request_headers("InvokeEndpointWithResponseStream")
    assert streaming["Accept"] == "x-amzn-sagemaker-accept"
    assert response_headers("InvokeEndpoint")["InvokedProductionVariant"] == (
        "x-amzn-invoked-production-variant"
    )
