"""Answers of the gateway itself: error codes and texts of the SageMaker Runtime API.

Codes and statuses follow botocore's service model 2017-05-13, texts what AWS is seen to answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from zeropull.errors import ZeropullError

MAX_ORIGINAL_MESSAGE = 4096  # bytes of a container's error that are handed on to the caller

_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Payload Too Large",
    424: b"Failed Dependency",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
}


@dataclass(slots=True, eq=False)
class Refusal(ZeropullError):
    """A request is answered with this AWS error instead of by a container."""

    status: int
    code: str
    message: str
    members: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> bytes:
        return json.dumps({"Message": self.message, **self.members}).encode()


def response(
    status: int,
    body: bytes,
    *,
    request_id: bytes,
    content_type: bytes = b"application/json",
    headers: bytes = b"",
    close: bool = False,
) -> bytes:
    """One complete answer; `headers` are whole lines."""
    reason = _REASONS.get(status, b"Error")
    return b"".join(
        (
            b"HTTP/1.1 %d %b\r\nx-amzn-RequestId: %b\r\n" % (status, reason, request_id),
            b"Content-Type: %b\r\nContent-Length: %d\r\n" % (content_type, len(body)),
            headers,
            b"Connection: close\r\n\r\n" if close else b"\r\n",
            body,
        )
    )


def error_headers(code: str) -> bytes:
    return b"x-amzn-ErrorType: %b\r\n" % code.encode("latin-1", "replace")


def validation_error(message: str) -> Refusal:
    return Refusal(400, "ValidationError", message)


def endpoint_not_found(name: str, account: str) -> Refusal:
    return validation_error(f"Endpoint {name} of account {account} not found.")


def component_required() -> Refusal:
    return validation_error(
        "Inference Component Name header is required for endpoints to which you plan to deploy "
        "inference components. Please include Inference Component Name header or consider using "
        "SageMaker models."
    )


def component_not_allowed() -> Refusal:
    return validation_error(
        "Inference Component Name header is not allowed for endpoints to which you dont plan to "
        "deploy inference components. Please remove the Inference Component Name header and try "
        "again."
    )


def component_without_copies() -> Refusal:
    return validation_error(
        "Inference Component has no capacity to process this request. ApplicationAutoScaling may "
        "be in-progress (if configured) or try to increase the capacity by invoking "
        "UpdateInferenceComponentRuntimeConfig API."
    )


def service_unavailable(message: str) -> Refusal:
    return Refusal(503, "ServiceUnavailable", message)


def metrics_not_allowed() -> Refusal:
    return Refusal(
        403,
        "AccessDeniedException",
        "Only clients on the server's machine may read /metrics, and those that show the bearer "
        "token of the setting gateway.metrics_token.",
    )


def bodies_fill_memory() -> Refusal:
    return service_unavailable("Too many request bodies are in memory.")


def no_healthy_copy(variant: str, endpoint: str) -> Refusal:
    return service_unavailable(f"Variant {variant} of endpoint {endpoint} has no healthy copy.")


def no_healthy_component(component: str, endpoint: str) -> Refusal:
    """Copies are wanted, and none serves: no ValidationError, which no SDK sends again."""
    return service_unavailable(
        f"Inference Component {component} of endpoint {endpoint} has no healthy copy."
    )


def queue_full(name: str, limit: int) -> Refusal:
    return service_unavailable(
        f"{limit} requests already wait for a slot of {name}, which is its limit."
    )


def still_starting(held_s: float) -> Refusal:
    """HTTP 429, which boto3 sends again by itself."""
    return Refusal(
        429,
        "ModelNotReadyException",
        f"The model is still starting after {held_s:.0f} s; send the request again.",
    )


def too_large(limit_bytes: int) -> Refusal:
    return Refusal(
        413,
        "RequestEntityTooLargeException",
        f"The request body is larger than the limit of {limit_bytes} bytes.",
    )


def model_error(
    *, status: int, original: bytes, container: str, endpoint: str, account: str, region: str
) -> Refusal:
    """The container answered `status` outside 2xx; 0 stands for no usable answer at all."""
    text = original[:MAX_ORIGINAL_MESSAGE].decode("utf-8", "replace")
    kind = "client" if 400 <= status < 500 else "server"
    return Refusal(
        424,
        "ModelError",
        f'Received {kind} error ({status}) from {container} with message "{text}". See the log of '
        f"endpoint {endpoint} (zeropull logs {endpoint}) in account {account} for more "
        "information.",
        {
            "OriginalStatusCode": status,
            "OriginalMessage": text,
            "LogStreamArn": f"arn:aws:logs:{region}:{account}"
            f":log-group:/aws/sagemaker/Endpoints/{endpoint}",
        },
    )


def timed_out_text(container: str) -> bytes:
    return (
        "Your invocation timed out while waiting for a response from container "
        f"{container}. Review the latency metrics for each container in Amazon CloudWatch, "
        "resolve the issue, and try again."
    ).encode()


PROCESS_EXITED = b"An error occurred while handling request as the model process exited."
MALFORMED = b"The model's answer is not valid HTTP/1.1."
