"""The rows of `bench gateway` as the Markdown tables of docs/PERFORMANCE.md.

.venv/bin/python -m bench.gateway_tables FILE.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def tables(rows: list[Row]) -> Iterator[str]:
    by = {(r["gateway"], r["concurrency"], r["body_bytes"], r["streaming"]): r for r in rows}
    names = list(dict.fromkeys(r["gateway"] for r in rows))
    concurrencies = sorted({r["concurrency"] for r in rows})
    small, large = min(r["body_bytes"] for r in rows), max(r["body_bytes"] for r in rows)
    shapes = [("small", small, False)]
    if large != small:
        shapes += [("1 MB", large, False), ("stream", small, True)]
    columns = [
        (kind, c, size, streaming) for kind, size, streaming in shapes for c in concurrencies
    ]
    yield "| requests per second | " + " | ".join(f"{k}, c={c}" for k, c, *_ in columns) + " |"
    yield "|---|" + "---:|" * len(columns)
    for name in names:
        cells = [_rate(by.get((name, c, size, stream))) for _, c, size, stream in columns]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield (
        "| small bodies | c | median, ms | added, ms | p99, ms | CPU per request, µs | core busy "
        "| of HAProxy |"
    )
    yield "|---|" + "---:|" * 7
    for name in names:
        for concurrency in concurrencies:
            found = by.get((name, concurrency, small, False))
            if found is not None:
                shape = (concurrency, small, False)
                yield _small(found, by.get(("direct", *shape)), by.get(("haproxy", *shape)))


def _rate(row: Row | None) -> str:
    if row is None:
        return "–"
    if not row["requests_per_s"]:
        return "0"
    errors = f" ({row['errors']} errors)" if row["errors"] else ""
    return f"{row['requests_per_s']:,.0f}{errors}"


def _small(row: Row, direct: Row | None, haproxy: Row | None) -> str:
    if not row["requests_per_s"]:
        return f"| {row['gateway']} | {row['concurrency']} | no answer in time | | | | | 0.00 |"
    added = "" if direct is None else f"{row['p50_ms'] - direct['p50_ms']:.3f}"
    ratio = "" if haproxy is None else f"{row['requests_per_s'] / haproxy['requests_per_s']:.2f}"
    cpu, busy = row["cpu_us_per_request"], row["core_busy"]
    return (
        f"| {row['gateway']} | {row['concurrency']} | {row['p50_ms']:.3f} | {added} "
        f"| {row['p99_ms']:.2f} | {'–' if cpu is None else round(cpu)} "
        f"| {'–' if busy is None else busy} | {ratio} |"
    )


if __name__ == "__main__":
    document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(document["machine"]), "", *tables(document["runs"]), sep="\n")
