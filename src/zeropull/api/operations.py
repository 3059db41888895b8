"""Operations as tables: a service is a name of botocore's and a row per operation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zeropull.api.request_rates import Rate
from zeropull.awsprotocol.members import MemberRow, MemberRules, member_rows
from zeropull.awsprotocol.services import load_service
from zeropull.awsprotocol.validation import EnumExtras


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls what, and when. `now_s` is the only clock that an operation knows."""

    account: str
    region: str
    operation: str
    request_id: str
    now_s: float
    access_key_id: str = ""


Members = dict[str, Any]
Output = Mapping[str, Any] | None
# Gets the parsed members, and returns members of the output shape; None ones are left out.
# Raises errors of `zeropull.errors`, or an ApiFault where the code is a special one.
Handler = Callable[[Call, Members], Output | Awaitable[Output]]


# Pure work on the members before the handler sees them, which may take long: it runs in the thread
# that parses a large body. Raises as a handler does.
Preparation = Callable[[Call, Members], Members]


@dataclass(frozen=True, slots=True)
class Operation:
    """`rate` bounds the requests of each account; None: there is no bound.

    `has_large_output`: the answer is written in a thread. `runs_in_thread`: so is the handler run,
    which is no coroutine then; what it uses can be used from any thread.
    """

    name: str
    handler: Handler
    rules: MemberRules = field(default_factory=MemberRules)
    prepare: Preparation | None = None
    rate: Rate | None = None
    has_large_output: bool = False
    runs_in_thread: bool = False


@dataclass(frozen=True, slots=True)
class OperationTable:
    """All operations of one service. `enum_extras` widens enums of the model by shape name."""

    service: str
    operations: tuple[Operation, ...]
    enum_extras: EnumExtras = field(default_factory=dict)

    def operation(self, name: str) -> Operation | None:
        return next((row for row in self.operations if row.name == name), None)


def merge_tables(tables: Iterable[OperationTable]) -> dict[str, OperationTable]:
    """Tables by service; several of one service add up. A name given twice is an error of ours."""
    merged: dict[str, OperationTable] = {}
    for table in tables:
        before = merged.get(table.service, OperationTable(table.service, ()))
        operations = before.operations + table.operations
        names = [row.name for row in operations]
        assert len(names) == len(set(names)), f"{table.service} has an operation twice"
        extras = {
            shape: before.enum_extras.get(shape, frozenset())
            | table.enum_extras.get(shape, frozenset())
            for shape in {*before.enum_extras, *table.enum_extras}
        }
        merged[table.service] = OperationTable(table.service, operations, extras)
    return merged


def documented_members(tables: Iterable[OperationTable]) -> list[MemberRow]:
    """Every input member of every operation with its class: what the docs list."""
    rows: list[MemberRow] = []
    for table in merge_tables(tables).values():
        service = load_service(table.service)
        for row in table.operations:
            model = service.operation(row.name)
            assert model is not None, f"{table.service} has no operation {row.name}"
            rows += member_rows(model, row.rules)
    return rows
