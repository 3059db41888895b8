"""Three classes of members: supported, accepted without effect, refused by name.

An operation states the last two; everything else of its input shape is supported. Paths join the
member names by dots and pass through lists and maps: `ProductionVariants.ServerlessConfig`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from botocore.model import OperationModel, Shape

from zeropull.awsprotocol.faults import VALIDATION, ApiFault


class MemberClass(StrEnum):
    SUPPORTED = "supported"
    ACCEPTED = "accepted without effect"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class MemberRules:
    """Path -> why. What stands below a path shares its class."""

    accepted: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def check(self, operation: str, members: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The accepted members that were given, as (path, why), for the log.

        Raises:
            ApiFault: a refused member was given; the text names it.
        """
        given = sorted(set(_paths(members)))
        for path in given:
            if path in self.refused:
                raise ApiFault(
                    VALIDATION,
                    f"{path} of {operation} is not supported here: {self.refused[path]}",
                )
        return [(path, self.accepted[path]) for path in given if path in self.accepted]


@dataclass(frozen=True, slots=True)
class MemberRow:
    """A line for the docs."""

    operation: str
    path: str
    member_class: MemberClass
    why: str = ""


def member_rows(operation: OperationModel, rules: MemberRules) -> list[MemberRow]:
    """Every member of the operation's input and its class, top-level members first in order.

    Raises:
        ValueError: a rule's path does not exist in the model.
    """
    rows: list[MemberRow] = []
    known: set[str] = set()
    if operation.input_shape is not None:
        for path in _shape_paths(operation.input_shape, "", ()):
            known.add(path)
            rows += _rows_of(operation.name, path, rules)
    missing = (rules.accepted.keys() | rules.refused.keys()) - known
    if missing:
        raise ValueError(f"{operation.name} has no members {sorted(missing)}")
    return rows


def _rows_of(operation: str, path: str, rules: MemberRules) -> list[MemberRow]:
    parents = [path.rsplit(".", depth)[0] for depth in range(1, path.count(".") + 1)]
    if any(parent in rules.accepted or parent in rules.refused for parent in parents):
        return []  # its parent's line says it
    if path in rules.refused:
        return [MemberRow(operation, path, MemberClass.REFUSED, rules.refused[path])]
    if path in rules.accepted:
        return [MemberRow(operation, path, MemberClass.ACCEPTED, rules.accepted[path])]
    return [MemberRow(operation, path, MemberClass.SUPPORTED)]


def _paths(members: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in members.items():
        path = f"{prefix}{name}"
        yield path
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield from _paths(item, path + ".")


def _shape_paths(shape: Shape, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    while shape.type_name in ("list", "map"):
        shape = shape.member if shape.type_name == "list" else shape.value
    if shape.type_name != "structure" or shape.name in above:
        return
    for name, member in shape.members.items():
        yield f"{prefix}{name}"
        yield from _shape_paths(member, f"{prefix}{name}.", (*above, shape.name))
