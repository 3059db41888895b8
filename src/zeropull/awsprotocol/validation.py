"""Parse a request's members by the model, and check every constraint that the model states.

The texts follow the framework that AWS's control planes share: "2 validation errors detected:
Value '...' at 'productionVariants.1.member.instanceType' failed to satisfy constraint: ...; ...".
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from botocore.model import ListShape, MapShape, Shape, StringShape, StructureShape

from zeropull.awsprotocol.faults import VALIDATION, ApiFault
from zeropull.awsprotocol.patterns import compile_pattern

# A pattern is not tried on longer values: their length fails already, and backtracking costs.
_PATTERN_LIMIT = 65_536
_SHOWN_CHARACTERS = 512
_MAX_SHOWN = 20

EnumExtras = Mapping[str, frozenset[str]]


@dataclass(slots=True)
class _Check:
    """What one walk through a request collects. `is_text`: values came as text (query protocol)."""

    enum_extras: EnumExtras
    is_text: bool
    failures: list[str] = field(default_factory=list)
    count: int = 0

    def fail(self, value: Any, path: str, rule: str) -> None:
        self.count += 1
        if len(self.failures) < _MAX_SHOWN:
            self.failures.append(
                f"{_shown(value)} at '{path}' failed to satisfy constraint: {rule}"
            )


def parse_members(
    shape: Shape | None,
    raw: Any,
    *,
    enum_extras: EnumExtras | None = None,
    is_text: bool = False,
) -> dict[str, Any]:
    """`raw` as a dict of Python values: timestamps as Unix seconds, blobs as bytes.

    `enum_extras` adds values to enums by shape name. Members that are null are left out.

    Raises:
        ApiFault: SerializationException for wrong types, ValidationException for broken
            constraints (all of them in one text) and unknown members.
    """
    if not isinstance(raw, dict):
        raise _serialization("the request", "an object", raw)
    if shape is None:
        return {}
    check = _Check(enum_extras or {}, is_text)
    parsed = _structure(shape, raw, "", check)
    if check.failures:
        noun = "error" if check.count == 1 else "errors"
        raise ApiFault(
            VALIDATION, f"{check.count} validation {noun} detected: " + "; ".join(check.failures)
        )
    return parsed


def _structure(shape: StructureShape, raw: Any, path: str, check: _Check) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise _serialization(path or "the request", "an object", raw)
    members = shape.members
    for name in raw:
        if name not in members:
            where = f"'{path}.{_lower(name)}'" if path else f"'{_lower(name)}'"
            raise ApiFault(
                VALIDATION, f"Unknown member at {where}: {shape.name} has no member '{name[:128]}'"
            )
    parsed: dict[str, Any] = {}
    for name, member in members.items():
        below = f"{path}.{_lower(name)}" if path else _lower(name)
        value = raw.get(name)
        if value is None:
            if name in shape.required_members:
                check.fail(None, below, "Member must not be null")
        else:
            parsed[name] = _value(member, value, below, check)
    if shape.is_tagged_union and len(parsed) != 1:
        check.fail(raw, path, "Exactly one member must be set")
    return parsed


def _value(shape: Shape, raw: Any, path: str, check: _Check) -> Any:
    match shape.type_name:
        case "structure":
            return _structure(shape, raw, path, check)
        case "list":
            return _list(shape, raw, path, check)
        case "map":
            return _map(shape, raw, path, check)
    value = _scalar(shape, raw, path, check.is_text)
    for rule in _broken_rules(shape, value, check.enum_extras):
        check.fail(value, path, rule)
    return value


def _list(shape: ListShape, raw: Any, path: str, check: _Check) -> list[Any]:
    if not isinstance(raw, list):
        raise _serialization(path, "a list", raw)
    _check_length(shape, len(raw), raw, path, check)
    member = shape.member
    if member.type_name in ("structure", "list", "map"):
        return [
            _value(member, item, f"{path}.{number}.member", check)
            for number, item in enumerate(raw, start=1)
        ]
    values = [_scalar(member, item, path, check.is_text) for item in raw]
    broken = dict.fromkeys(
        rule for value in values for rule in _broken_rules(member, value, check.enum_extras)
    )
    if broken:
        check.fail(values, path, f"Member must satisfy constraint: [{', '.join(broken)}]")
    return values


def _map(shape: MapShape, raw: Any, path: str, check: _Check) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise _serialization(path, "an object", raw)
    _check_length(shape, len(raw), raw, path, check)
    is_flat = shape.value.type_name not in ("structure", "list", "map")
    parsed: dict[str, Any] = {}
    bad_keys: dict[str, None] = {}
    bad_values: dict[str, None] = {}
    for key, item in raw.items():
        if not isinstance(key, str):
            raise _serialization(path, "an object with text keys", raw)
        bad_keys.update(dict.fromkeys(_broken_rules(shape.key, key, check.enum_extras)))
        if is_flat:
            parsed[key] = _scalar(shape.value, item, path, check.is_text)
            rules = _broken_rules(shape.value, parsed[key], check.enum_extras)
            bad_values.update(dict.fromkeys(rules))
        elif item is not None:
            parsed[key] = _value(shape.value, item, f"{path}.{key}.member", check)
    if bad_keys:
        check.fail(raw, path, f"Map keys must satisfy constraint: [{', '.join(bad_keys)}]")
    if bad_values:
        check.fail(raw, path, f"Map value must satisfy constraint: [{', '.join(bad_values)}]")
    return parsed


def _check_length(shape: Shape, length: int, raw: Any, path: str, check: _Check) -> None:
    for rule in _length_rules(shape, length):
        check.fail(raw, path, rule)


def _length_rules(shape: Shape, length: int) -> list[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    rules = []
    if high is not None and length > high:
        rules.append(f"Member must have length less than or equal to {high}")
    if low is not None and length < low:
        rules.append(f"Member must have length greater than or equal to {low}")
    return rules


def _broken_rules(shape: Shape, value: Any, enum_extras: EnumExtras) -> list[str]:
    if isinstance(value, str):
        return _text_rules(shape, value, enum_extras)
    if isinstance(value, bytes):
        return _length_rules(shape, len(value))
    if isinstance(value, bool) or shape.type_name not in ("integer", "long", "float", "double"):
        return []
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    rules = []
    if high is not None and value > high:
        rules.append(f"Member must have value less than or equal to {high}")
    if low is not None and value < low:
        rules.append(f"Member must have value greater than or equal to {low}")
    return rules


def _text_rules(shape: StringShape, value: str, enum_extras: EnumExtras) -> list[str]:
    rules = _length_rules(shape, len(value))
    allowed = shape.metadata.get("enum")
    extras = enum_extras.get(shape.name, frozenset())
    if allowed and value not in allowed and value not in extras:
        names = ", ".join([*allowed, *sorted(extras - set(allowed))])
        rules.append(f"Member must satisfy enum value set: [{names}]")
    pattern = shape.metadata.get("pattern")
    if pattern and len(value) <= _PATTERN_LIMIT and not compile_pattern(pattern).fullmatch(value):
        rules.append(f"Member must satisfy regular expression pattern: {pattern}")
    return rules


def _scalar(shape: Shape, raw: Any, path: str, is_text: bool) -> Any:
    kind = shape.type_name
    if is_text and isinstance(raw, str):
        raw = _from_text(kind, raw, path)
    is_number = isinstance(raw, int | float) and not isinstance(raw, bool) and _is_finite(raw)
    match kind:
        case "string" | "character" if isinstance(raw, str):
            return raw
        case "boolean" if isinstance(raw, bool):
            return raw
        case "integer" | "long" if is_number and raw == int(raw):
            bits = 31 if kind == "integer" else 63
            if -(2**bits) <= raw < 2**bits:
                return int(raw)
        case "float" | "double" if is_number:
            return float(raw)
        case "float" | "double" if raw in ("NaN", "Infinity", "-Infinity"):
            return float(raw)
        case "float" | "double" if isinstance(raw, float):
            return raw  # CBOR has numbers that are not finite; JSON spells them as above
        case "timestamp":
            return _timestamp(raw, path)
        case "blob" if isinstance(raw, bytes):
            return raw  # CBOR has bytes of its own
        case "blob" if isinstance(raw, str):
            try:
                return base64.b64decode(raw, validate=True)
            except binascii.Error as error:
                raise _serialization(path, "base64", raw) from error
    raise _serialization(path, _KIND_NAMES.get(kind, kind), raw)


_KIND_NAMES = {
    "string": "a string",
    "boolean": "true or false",
    "integer": "an integer",
    "long": "an integer",
    "float": "a number",
    "double": "a number",
    "timestamp": "a time in seconds since the epoch",
    "blob": "base64 text",
}


def _is_finite(raw: float) -> bool:
    """As a double: JSON can spell integers that no double holds."""
    try:
        return math.isfinite(raw)
    except OverflowError:
        return False


def _from_text(kind: str, text: str, path: str) -> Any:
    try:
        if kind == "boolean" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind in ("integer", "long"):
            return int(text)
        if kind in ("float", "double"):
            return float(text)
    except ValueError as error:
        raise _serialization(path, _KIND_NAMES[kind], text) from error
    return text


def _timestamp(raw: Any, path: str) -> float:
    if isinstance(raw, int | float) and not isinstance(raw, bool) and abs(raw) < 1e11:
        return float(raw)
    if isinstance(raw, str):
        try:
            moment = datetime.fromisoformat(raw)
        except ValueError:
            pass
        else:
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    raise _serialization(path, _KIND_NAMES["timestamp"], raw)


def _serialization(path: str, expected: str, raw: Any) -> ApiFault:
    return ApiFault(
        "SerializationException", f"{path} must be {expected}, not {_json_kind(raw)}", 400
    )


def _json_kind(raw: Any) -> str:
    match raw:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return f"the number {raw!r:.40}"
        case str():
            return f"the text {raw[:40]!r}"
        case bytes():
            return "bytes"
        case list():
            return "a list"
    return "an object"


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]


def _shown(value: Any) -> str:
    if value is None:
        return "Value null"
    if isinstance(value, dict):
        text = "{" + ", ".join(f"{key}={_plain(item)}" for key, item in value.items()) + "}"
    else:
        text = _plain(value)
    if len(text) > _SHOWN_CHARACTERS:
        text = text[:_SHOWN_CHARACTERS] + "..."
    return f"Value '{text}'"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
