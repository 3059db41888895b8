"""containerd's filter expressions over snapshots.

Syntax of containerd's `filters` package: selectors joined by commas must all match; of several
expressions one must. A selector is a field path alone (the field is there), or a path, one of
`==`, `!=`, `~=` (regular expression) and a value; values and label names may be quoted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from zeropull.containerd.snapshots import SnapshotInfo
from zeropull.errors import InvalidInput

Predicate = Callable[[SnapshotInfo], bool]

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r"==|!=|~=")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_BARE_VALUE = re.compile(r"[^\s,\"]+")
_PATTERN = re.compile(r"/((?:[^/\\]|\\.)*)/|\|((?:[^|\\]|\\.)*)\|")


def parse_filters(expressions: Iterable[str]) -> Predicate:
    """A predicate that is true when any of the expressions matches, or when there is none.

    Raises:
        InvalidInput: an expression is not in containerd's syntax; the message says where.
    """
    alternatives = [_Parser(expression).selectors() for expression in expressions]
    if not alternatives:
        return lambda _: True
    return lambda info: any(
        all(selector.matches(info) for selector in selectors) for selectors in alternatives
    )


@dataclass(frozen=True, slots=True)
class _Selector:
    path: tuple[str, ...]
    operator: str = ""
    value: str = ""
    pattern: re.Pattern[str] | None = None

    def matches(self, info: SnapshotInfo) -> bool:
        found = _field(info, self.path)
        if self.operator == "==":
            return found is not None and found == self.value
        if self.operator == "!=":
            return found != self.value
        if self.pattern is not None:
            return found is not None and self.pattern.search(found) is not None
        return found is not None


class _Parser:
    """One expression, read from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def selectors(self) -> list[_Selector]:
        found = [self._selector()]
        while self._at < len(self._text):
            if self._text[self._at] != ",":
                raise self._error("expected a comma")
            self._at += 1
            found.append(self._selector())
        return found

    def _selector(self) -> _Selector:
        path = [self._field()]
        while self._text.startswith(".", self._at):
            self._at += 1
            path.append(self._field())
        operator = self._match(_OPERATOR)
        if operator is None:
            return _Selector(tuple(path))
        if operator == "~=":
            return _Selector(tuple(path), operator, pattern=self._regular_expression())
        return _Selector(tuple(path), operator, self._value())

    def _field(self) -> str:
        if self._text.startswith('"', self._at):
            return self._quoted()
        name = self._match(_FIELD)
        if name is None:
            raise self._error("expected a field")
        return name

    def _value(self) -> str:
        if self._text.startswith('"', self._at):
            return self._quoted()
        value = self._match(_BARE_VALUE)
        if value is None:
            raise self._error("expected a value")
        return value

    def _quoted(self) -> str:
        quoted = self._match(_QUOTED)
        if quoted is None:
            raise self._error("expected a closing quote")
        try:
            return str(json.loads(quoted, strict=False))
        except ValueError:
            raise self._error("bad escape in") from None

    def _regular_expression(self) -> re.Pattern[str]:
        delimited = _PATTERN.match(self._text, self._at)
        if delimited is not None:
            self._at = delimited.end()
            text = delimited[1] if delimited[1] is not None else delimited[2]
        else:
            text = self._value()
        try:
            return re.compile(text)
        except re.error as error:
            raise self._error(f"bad regular expression ({error}) in") from error

    def _match(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found[0]

    def _error(self, what: str) -> InvalidInput:
        return InvalidInput(f"filter {self._text!r}: {what} at character {self._at + 1}")


def _field(info: SnapshotInfo, path: tuple[str, ...]) -> str | None:
    match path:
        case ("name",):
            return info.name
        case ("parent",):
            return info.parent
        case ("kind",):
            return info.kind.value
        case ("labels", *rest) if rest:
            return info.labels.get(".".join(rest))
        case _:
            return None
