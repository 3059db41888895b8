"""Smithy RPC v2 CBOR: bodies, timestamps and errors.

https://smithy.io/2.0/additional-specs/protocols/smithy-rpc-v2.html and RFC 8949. Timestamps are
tag 1 with a double. All other tags, simple values and keys that stand twice are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cbor2
from botocore.model import Shape

from zeropull.awsprotocol.faults import ApiFault
from zeropull.awsprotocol.limits import MAX_DEPTH, check_counts
from zeropull.awsprotocol.services import Service

CONTENT_TYPE = "application/cbor"
PROTOCOL = "rpc-v2-cbor"
_BYTES, _TEXT, _LIST, _MAP, _TAG, _SIMPLE = 2, 3, 4, 5, 6, 7
_INDEFINITE = -1
_BREAK = 0xFF
_EPOCH_TAG = 1
# False, true, null, undefined and the three lengths of floating-point numbers.
_ALLOWED_SIMPLE = frozenset({20, 21, 22, 23, 25, 26, 27})


def parse_body(body: bytes) -> Any:
    """The value of a request, timestamps as seconds since the epoch; an empty body is `{}`.

    Raises:
        ApiFault: SerializationException, or the body is too large to be decoded.
    """
    if not body:
        return {}
    _scan(body)
    try:
        return cbor2.loads(
            body,
            semantic_decoders={_EPOCH_TAG: _epoch_seconds},
            object_hook=_without_undefined,
            max_depth=MAX_DEPTH,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        )
    except (cbor2.CBORDecodeError, ValueError, OverflowError) as error:
        raise _invalid(str(error)) from error


def serialize_output(shape: Shape | None, output: Mapping[str, Any] | None) -> bytes:
    """The body of an answer, without what is None; b"" for no output shape."""
    if shape is None:
        return b""
    return cbor2.dumps(_to_cbor(shape, output or {}))


def serialize_fault(service: Service | None, fault: ApiFault, shape_name: str) -> bytes:
    """`__type` is an absolute shape ID, as the protocol asks for; `service` None: it is unknown."""
    namespace = f"com.amazonaws.{service.name.replace('-', '')}#" if service is not None else ""
    body = {"__type": namespace + shape_name, "message": fault.message, **fault.members}
    if service is not None and "Message" in service.error_members(shape_name):
        body["Message"] = fault.message
    return cbor2.dumps(body)


def _to_cbor(shape: Shape, value: Any) -> Any:
    match shape.type_name:
        case "structure":
            unknown = value.keys() - shape.members.keys()
            assert not unknown, f"{shape.name} has no members {unknown}"
            return {
                name: _to_cbor(member, value[name])
                for name, member in shape.members.items()
                if value.get(name) is not None
            }
        case "list":
            if shape.member.type_name == "double":
                return [float(item) for item in value]
            return [_to_cbor(shape.member, item) for item in value]
        case "map":
            return {key: _to_cbor(shape.value, item) for key, item in value.items()}
        case "timestamp":
            return cbor2.CBORTag(_EPOCH_TAG, round(float(value), 3))
        case "float" | "double":
            return float(value)
        case "string":
            return str(value)
    return value


def _epoch_seconds(value: Any, immutable: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a timestamp is not a number")
    return float(value)


def _without_undefined(members: Mapping[Any, Any], immutable: bool) -> dict[Any, Any]:
    """`undefined` means the same as null."""
    return {key: None if value is cbor2.undefined else value for key, value in members.items()}


def _scan(body: bytes) -> None:
    """Raises ApiFault unless `body` is one well-formed item within the bounds.

    The library decodes an item of any size in one go: what it must not see is refused here.
    """
    at, size = 0, len(body)
    items = containers = 0
    pending = [1]  # items that are still to come, by level; _INDEFINITE until a break
    while pending:
        left = pending[-1]
        if left == 0:
            pending.pop()
            continue
        if left > 0:
            pending[-1] = left - 1
        if at >= size:
            raise _invalid("it is cut short")
        head = body[at]
        if head == _BREAK and left == _INDEFINITE:
            pending.pop()
            at += 1
            continue
        major, value, at = _head(body, at)
        items += 1
        if major in (_BYTES, _TEXT):
            at = _end_of_string(body, at, major, value)
        elif major >= _LIST and major != _SIMPLE:
            containers += 1
            if major == _TAG and value != _EPOCH_TAG:
                raise _invalid(f"the tag {value} is not allowed")
            count = 1 if major == _TAG else value * 2 if major == _MAP else value
            # Each item has a byte at least: a list cannot promise more than the body holds.
            if value != _INDEFINITE and count > size - at:
                raise _invalid("it is cut short")
            pending.append(_INDEFINITE if value == _INDEFINITE else count)
            if len(pending) > MAX_DEPTH:
                raise _invalid(f"it is nested deeper than {MAX_DEPTH} levels")
        elif major == _SIMPLE and head & 31 not in _ALLOWED_SIMPLE:
            raise _invalid(f"the initial byte {head:#04x} is not allowed")
        if not items & 1023:
            check_counts(items, containers)
    check_counts(items, containers)
    if at != size:
        raise _invalid(f"{size - at} bytes follow its value")


def _head(body: bytes, at: int) -> tuple[int, int, int]:
    """(major type, argument, where the next byte is) of the item at `at`."""
    head = body[at]
    major, info = head >> 5, head & 31
    at += 1
    if info < 24:
        return major, info, at
    if info < 28:
        end = at + (1 << (info - 24))
        if end > len(body):
            raise _invalid("it is cut short")
        return major, int.from_bytes(body[at:end], "big"), end
    if info == 31 and major in (_BYTES, _TEXT, _LIST, _MAP):
        return major, _INDEFINITE, at
    raise _invalid(f"the initial byte {head:#04x} is not allowed")


def _end_of_string(body: bytes, at: int, major: int, length: int) -> int:
    """Where the string ends; one of indefinite length is made of chunks of its own type."""
    if length != _INDEFINITE:
        if at + length > len(body):
            raise _invalid("it is cut short")
        return at + length
    while at < len(body):
        if body[at] == _BREAK:
            return at + 1
        chunk_major, chunk_length, at = _head(body, at)
        if chunk_major != major or chunk_length == _INDEFINITE:
            raise _invalid("a string has a chunk of another type")
        at = _end_of_string(body, at, major, chunk_length)
    raise _invalid("it is cut short")


def _invalid(why: str) -> ApiFault:
    return ApiFault("SerializationException", f"The body is not valid CBOR: {why[:200]}.")
