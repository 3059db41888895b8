"""awsJson1.0 and 1.1: https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

from botocore.model import Shape

from zeropull.awsprotocol.faults import ApiFault
from zeropull.awsprotocol.limits import check_counts

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_body(body: bytes) -> Any:
    """The JSON value of a request; an empty body is `{}`.

    Raises:
        ApiFault: SerializationException, or the body is too large to be parsed.
    """
    if not body:
        return {}
    containers = body.count(b"[") + body.count(b"{")
    check_counts(containers + body.count(b","), containers)
    try:
        value = json.loads(body, object_pairs_hook=_without_doubles, parse_constant=_no_constant)
        if _ESCAPED_SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()  # half a pair is no character
        return value
    except (ValueError, RecursionError) as error:
        raise ApiFault("SerializationException", f"The body is not valid JSON: {error}") from error


def serialize_output(shape: Shape | None, output: Mapping[str, Any] | None) -> bytes:
    """The body of an answer: by the model, without what is None; b"" for no output shape."""
    if shape is None:
        return b""
    return json.dumps(to_json(shape, output or {}), separators=(",", ":")).encode()


def serialize_fault(fault: ApiFault, shape_name: str) -> bytes:
    body = {"__type": shape_name, "message": fault.message, **fault.members}
    return json.dumps(body, separators=(",", ":")).encode()


def to_json(shape: Shape, value: Any) -> Any:
    """`value` with times as epoch seconds (fraction = milliseconds) and blobs as base64."""
    match shape.type_name:
        case "structure":
            unknown = value.keys() - shape.members.keys()
            assert not unknown, f"{shape.name} has no members {unknown}"
            return {
                name: to_json(member, value[name])
                for name, member in shape.members.items()
                if value.get(name) is not None
            }
        case "list":
            return [to_json(shape.member, item) for item in value]
        case "map":
            return {key: to_json(shape.value, item) for key, item in value.items()}
        case "timestamp":
            return round(float(value), 3)
        case "blob":
            return base64.b64encode(value).decode()
        case "float" | "double" if value != value or value in (float("inf"), float("-inf")):
            return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
        case "string":
            return str(value)
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a member stands twice in one object")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
