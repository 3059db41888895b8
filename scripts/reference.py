"""Writes docs/API.md and docs/CONFIGURATION.md from the code; `--check` only compares."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from zeropull.api.applicationautoscaling import autoscaling_table
from zeropull.api.cloudwatch import cloudwatch_table
from zeropull.api.operations import OperationTable, documented_members
from zeropull.api.sagemaker import sagemaker_table
from zeropull.awsprotocol.members import MemberClass
from zeropull.gateway.runtime_members import MEMBERS
from zeropull.metricstore.store import MetricStore
from zeropull.resources import settings as settings_module
from zeropull.resources.settings import Settings
from zeropull.statestore import Store

DOCS = Path(__file__).resolve().parents[1] / "docs"
_FIELD = re.compile(r"^    (\w+): .*?(?:  # (.*))?$")


def main() -> int:
    pages = {DOCS / "API.md": api_page(), DOCS / "CONFIGURATION.md": configuration_page()}
    if "--check" in sys.argv:
        stale = [p.name for p, text in pages.items() if not p.exists() or p.read_text() != text]
        if stale:
            print(f"{', '.join(stale)} are not as the code says: run scripts/reference.py")
        return 1 if stale else 0
    for path, text in pages.items():
        path.write_text(text)
    return 0


def tables() -> list[OperationTable]:
    """Every operation that the control plane serves."""
    with TemporaryDirectory() as folder, Store.open(Path(folder) / "s.db") as store:
        metrics = MetricStore(Path(folder) / "m.db")
        found = [
            sagemaker_table(store, instance_types=(), with_components=True),
            autoscaling_table(store),
            cloudwatch_table(store, metrics),
        ]
        metrics.close()
    return found


def api_page() -> str:
    lines = [
        "# Operations and their members",
        "",
        "Written from the code by `scripts/reference.py`. *Accepted* members have no effect here,",
        "which the log notes; *refused* ones give an error that names them; all others of each",
        "operation are supported.",
        "",
        "CloudWatch speaks smithy-rpc-v2-cbor, awsJson1.0 and the query protocol, the other two",
        "services awsJson1.1. A body has at most 4 MiB, also when it is unzipped. PutMetricData is",
        "bounded for each account: more than 100 requests a second are answered with Throttling,",
        "and each 16 KiB of a body count as one request more.",
        "",
    ]
    lines += runtime_lines()
    for table in tables():
        lines += [f"## {table.service}", ""]
        for operation in table.operations:
            rows = documented_members([dataclasses.replace(table, operations=(operation,))])
            special = [row for row in rows if row.member_class is not MemberClass.SUPPORTED]
            supported = sum(row.member_class is MemberClass.SUPPORTED for row in rows)
            lines.append(f"**{operation.name}**: {supported} members supported")
            lines.append("")
            if special:
                lines += ["| member | | why |", "|---|---|---|"]
                for row in special:
                    lines.append(f"| `{row.path}` | {row.member_class.value} | {row.why} |")
                lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def runtime_lines() -> list[str]:
    """The runtime's operations, which the gateway serves."""
    lines = [
        "## sagemaker-runtime",
        "",
        "The gateway serves **InvokeEndpoint** and **InvokeEndpointWithResponseStream**, and",
        "checks values as the service model says. InvokeEndpointAsync is not served.",
        "",
        "| member | | header |",
        "|---|---|---|",
    ]
    for member in MEMBERS:
        kind = MemberClass.SUPPORTED.value
        if member.without_effect:
            kind = f"{MemberClass.ACCEPTED.value}: {member.without_effect}"
        elif member.refusal:
            kind = f"{MemberClass.REFUSED.value}: {member.refusal.format(endpoint='NAME')}"
        lines.append(f"| `{member.name}` | {kind} | `{member.header.decode()}` |")
    return [
        *lines,
        "",
        "A request with the `SessionId` that a container has begun goes to that container's copy,",
        "also when it has no free slot. When the copy has gone, or the gateway was replaced, the",
        "session is not known any more: another copy gets the request, and says so itself.",
        "",
    ]


def configuration_page() -> str:
    lines = [
        "# Configuration",
        "",
        "Written from the code by `scripts/reference.py`. A flag wins over an environment variable",
        "(`ZEROPULL_<TABLE>_<KEY>`), that over the TOML file, that over the default.",
        "An unknown key is an error.",
        "",
    ]
    source = inspect.getsource(settings_module)
    comments = _comments(source)
    for name, kind in typing.get_type_hints(Settings).items():
        table = kind
        if typing.get_origin(kind) is dict:
            table = typing.get_args(kind)[1]
        if not dataclasses.is_dataclass(table):
            continue
        doc = (inspect.getdoc(table) or "").replace("\n", " ")
        lines += [f"## {name}", "", doc, "", "| key | default | meaning |", "|---|---|---|"]
        for field in dataclasses.fields(table):
            meaning = comments.get((table.__name__, field.name), "")
            lines.append(f"| `{field.name}` | {_default(field)} | {meaning} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _comments(source: str) -> dict[tuple[str, str], str]:
    """The comment beside each field."""
    found: dict[tuple[str, str], str] = {}
    owner = ""
    for line in source.splitlines():
        if line.startswith("class "):
            owner = line.split()[1].rstrip(":").partition("(")[0]
        elif match := _FIELD.match(line):
            found[owner, match[1]] = match[2] or ""
    return found


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required" if field.default_factory is dataclasses.MISSING else "empty"
    return f"`{field.default!r}`"


if __name__ == "__main__":
    raise SystemExit(main())
