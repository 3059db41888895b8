"""AWS query protocol: forms in, XML out.

https://smithy.io/2.0/aws/protocols/aws-query-protocol.html
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from botocore.model import OperationModel, Shape

from zeropull.awsprotocol.faults import ApiFault
from zeropull.awsprotocol.services import Service

CONTENT_TYPE = "text/xml"
MAX_FIELDS = 50_000
MAX_DEPTH = 16
_ROUTING = ("Action", "Version")


def parse_form(body: bytes) -> dict[str, str]:
    """The fields of a form.

    Raises:
        ApiFault: not a form, or a field stands twice.
    """
    try:
        text = body.decode("ascii")
        pairs = parse_qsl(
            text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=MAX_FIELDS
        )
    except ValueError as error:
        raise ApiFault("MalformedQueryString", f"The body is not a form: {error}") from error
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ApiFault("MalformedQueryString", "A field stands twice in the form")
    return fields


def members_of(shape: Shape | None, fields: Mapping[str, str]) -> dict[str, Any]:
    """`X.member.N.Y` fields as nested dicts and lists of text, for `validation.parse_members`."""
    tree: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _ROUTING:
            continue
        parts = name.split(".")
        if len(parts) > MAX_DEPTH:
            raise ApiFault("MalformedQueryString", f"'{name[:128]}' is nested too deep")
        node = tree
        for part in parts[:-1]:
            below = node.setdefault(part, {})
            if not isinstance(below, dict):
                raise ApiFault("MalformedQueryString", f"'{name[:128]}' contradicts another field")
            node = below
        if parts[-1] in node:
            raise ApiFault("MalformedQueryString", f"'{name[:128]}' contradicts another field")
        node[parts[-1]] = value
    result = tree if shape is None else _shaped(shape, tree, "the request")
    assert isinstance(result, dict)
    return result


def serialize_output(
    service: Service,
    operation: OperationModel,
    output: Mapping[str, Any] | None,
    request_id: str,
) -> bytes:
    name = operation.name
    shape = operation.output_shape
    result = ""
    if shape is not None:
        wrapper = shape.serialization.get("resultWrapper", f"{name}Result")
        result = f"<{wrapper}>{_xml_members(shape, output or {})}</{wrapper}>"
    return (
        f'<?xml version="1.0"?>\n<{name}Response xmlns="{service.xml_namespace}">{result}'
        f"<ResponseMetadata><RequestId>{escape(request_id)}</RequestId></ResponseMetadata>"
        f"</{name}Response>"
    ).encode()


def serialize_fault(service: Service | None, fault: ApiFault, code: str, request_id: str) -> bytes:
    """`service` None: the form did not say which."""
    side = "Sender" if fault.status < 500 else "Receiver"
    namespace = f' xmlns="{service.xml_namespace}"' if service else ""
    return (
        f'<?xml version="1.0"?>\n<ErrorResponse{namespace}>'
        f"<Error><Type>{side}</Type><Code>{escape(code)}</Code>"
        f"<Message>{_text(fault.message)}</Message></Error>"
        f"<RequestId>{escape(request_id)}</RequestId></ErrorResponse>"
    ).encode()


def _shaped(shape: Shape, node: Any, path: str) -> Any:
    match shape.type_name:
        case "structure":
            if not isinstance(node, dict):
                raise _contradiction(path)
            by_wire_name = {
                member.serialization.get("name", name): (name, member)
                for name, member in shape.members.items()
            }
            shaped: dict[str, Any] = {}
            for wire_name, below in node.items():
                # An unknown member is left as it is: validation refuses it by name.
                name, member = by_wire_name.get(wire_name, (wire_name, None))
                shaped[name] = below if member is None else _shaped(member, below, wire_name)
            return shaped
        case "list":
            if node == "":
                return []  # `Dimensions=`: how an empty list is sent
            if not isinstance(node, dict):
                raise _contradiction(path)
            flat = shape.serialization.get("flattened", False)
            items = node if flat else node.get(shape.member.serialization.get("name", "member"))
            if not isinstance(items, dict) or (not flat and len(node) != 1):
                raise _contradiction(path)
            return [_shaped(shape.member, item, path) for item in _in_order(items, path)]
        case "map":
            if not isinstance(node, dict) or not isinstance(node.get("entry", {}), dict):
                raise _contradiction(path)
            entries = _in_order(node.get("entry", {}), path)
            return {str(e.get("key")): _shaped(shape.value, e.get("value"), path) for e in entries}
    if not isinstance(node, str):
        raise _contradiction(path)
    return node


def _in_order(items: dict[str, Any], path: str) -> list[Any]:
    """The items of `.1`, `.2`, ... by number; gaps do not matter."""
    if not all(number.isascii() and number.isdigit() and len(number) < 9 for number in items):
        raise _contradiction(path)
    return [items[number] for number in sorted(items, key=int)]


def _contradiction(path: str) -> ApiFault:
    return ApiFault(
        "MalformedQueryString", f"'{path[:128]}' has a form that its type does not have"
    )


def _xml_members(shape: Shape, value: Mapping[str, Any]) -> str:
    unknown = value.keys() - shape.members.keys()
    assert not unknown, f"{shape.name} has no members {unknown}"
    return "".join(
        _xml(member, value[name], member.serialization.get("name", name))
        for name, member in shape.members.items()
        if value.get(name) is not None
    )


def _xml(shape: Shape, value: Any, name: str) -> str:
    match shape.type_name:
        case "structure":
            inner = _xml_members(shape, value)
        case "list":
            member_name = shape.member.serialization.get("name", "member")
            if shape.serialization.get("flattened"):
                return "".join(_xml(shape.member, item, name) for item in value)
            inner = "".join(_xml(shape.member, item, member_name) for item in value)
        case "map":
            inner = "".join(
                f"<entry><key>{_text(key)}</key>{_xml(shape.value, item, 'value')}</entry>"
                for key, item in value.items()
            )
        case "timestamp":
            moment = datetime.fromtimestamp(float(value), UTC)
            inner = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case "boolean":
            inner = "true" if value else "false"
        case "blob":
            inner = base64.b64encode(value).decode()
        case _:
            inner = _text(str(value))
    return f"<{name}>{inner}</{name}>"


def _text(text: str) -> str:
    """Escaped; characters that XML 1.0 cannot carry at all are replaced."""
    clean = "".join(c if c >= " " or c in "\t\n\r" else "\ufffd" for c in text)
    return escape(clean)
