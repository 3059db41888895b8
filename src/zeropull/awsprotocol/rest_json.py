"""The REST-JSON of SageMaker Runtime: which member travels in which header, and error answers.

https://smithy.io/2.0/aws/protocols/aws-restjson1-protocol.html
"""

from __future__ import annotations

from functools import cache
from types import MappingProxyType

from botocore.model import Shape

from zeropull.awsprotocol.services import load_service

RUNTIME = "sagemaker-runtime"


@cache
def request_headers(operation: str) -> MappingProxyType[str, str]:
    """Member -> header (lower case) of a runtime operation's input."""
    return _headers(load_service(RUNTIME).model.operation_model(operation).input_shape)


@cache
def response_headers(operation: str) -> MappingProxyType[str, str]:
    """Member -> header (as the model spells it, lower case) of a runtime operation's output."""
    return _headers(load_service(RUNTIME).model.operation_model(operation).output_shape)


def _headers(shape: Shape | None) -> MappingProxyType[str, str]:
    members = shape.members if shape is not None else {}
    return MappingProxyType(
        {
            name: str(member.serialization["name"]).lower()
            for name, member in members.items()
            if member.serialization.get("location") == "header"
        }
    )
