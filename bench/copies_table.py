"""The table of `./run bench copies`, as docs/PERFORMANCE.md has it."""

from __future__ import annotations

from typing import Any


def table(results: dict[str, Any]) -> str:
    """For docs/PERFORMANCE.md, section "Copies"."""
    second, zero, placed = (results[name] for name in ("second_copy", "from_zero", "placement"))
    new = results["new_instance"]
    both = second["stages_s"]["image"] + second["stages_s"]["model"]

    def stages(facts: dict[str, Any]) -> str:
        return ", ".join(f"{name} {took:.2f}" for name, took in facts["stages_s"].items())

    rows = [
        (
            "second copy on a running instance: image and model together",
            f"{both:.3f} s, {second['registry_bytes']:.0f} B from the registry, "
            f"{second['model_store_bytes']:.0f} B from the model store",
            "0.3 s, 0 B, 0 B",
        ),
        ("the same, until it serves", f"{second['total_s']:.2f} s ({stages(second)})", ""),
        *(
            (
                f"copy on a new instance, {path}",
                f"{facts['total_s']:.2f} s ({stages(facts)}), {facts['registry_bytes']:,.0f} B "
                "from the registry",
                "",
            )
            for path, facts in new.items()
        ),
        (
            "from zero to the answer of a held request, `fast`",
            f"{zero['answer_s']:.2f} s ({stages(zero)})",
            "",
        ),
        (
            "of it above the container's own start",
            f"{zero['above_start_s']:.2f} s, worst {zero['worst_above_start_s']:.2f} s",
            "1.5 s",
        ),
        (
            f"placing {placed['copies']:,} copies on {placed['instances']:,} instances",
            f"{placed['full_s']:.3f} s",
            "1 s",
        ),
        ("one decision more at that size", f"{placed['incremental_ms']:.2f} ms", "5 ms"),
        *(
            (f"a round of planning over {int(copies):,} copies that serve", f"{took:.0f} ms", "")
            for copies, took in placed["planning_round_ms"].items()
        ),
    ]
    lines = [f"| {what} | {found} | {goal} |" for what, found, goal in rows]
    return "\n".join(["| what | measured | goal |", "|---|---|---|", *lines])
