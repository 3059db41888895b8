"""The launches of an endpoint as one self-contained HTML page, without scripts or resources."""

from __future__ import annotations

from html import escape

from zeropull.admin.messages import Timeline
from zeropull.cli.timeline import launch_seconds, stage_note, stage_seconds
from zeropull.resources.instances import TimelineRecord
from zeropull.resources.stages import Stage, StageRecord

TICKS = 6
SOURCE_NAMES = {
    "registry": "registry",
    "volume": "cache volume",
    "network_cache": "network cache",
    "node": "node's own cache",
    "model_store": "model store",
}

_STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #ffffff; --ink: #1d1f23;
  --soft: #666c75; --line: #e2e4e8;
  --detect: #8b93a1; --provision: #3b6fd4; --image: #23915a; --model: #0f9aa8;
  --start: #c08a12; --health: #a04fc0; --route: #5b6472; }
@media (prefers-color-scheme: dark) { :root { --ground: #14161a; --card: #1c1f25; --ink: #e8eaee;
  --soft: #9aa1ac; --line: #2e333c;
  --detect: #7d8593; --provision: #6c9af0; --image: #4cc38a; --model: #3fc6d3;
  --start: #e0b04a; --health: #c98ae3; --route: #9aa4b4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 72rem; background: var(--ground);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
p { margin: .15rem 0; } .soft { color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: .35rem 1.1rem; margin: 1rem 0 1.25rem; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px;
  margin-right: .4rem; vertical-align: -1px; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .9rem 1rem; margin: 0 0 .8rem; }
header { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: baseline; }
header b { font-variant-numeric: tabular-nums; }
header .total { margin-left: auto; font-size: 1.15rem; font-weight: 650; }
.rows { margin-top: .6rem; display: grid; grid-template-columns: 5.5rem 1fr 5.5rem;
  gap: 3px .6rem; align-items: center; }
.rows span { font-size: .82rem; color: var(--soft); font-variant-numeric: tabular-nums; }
.rows span:nth-child(3n) { text-align: right; }
.track { position: relative; height: 17px; background: linear-gradient(to right,
  var(--line) 1px, transparent 1px) 0 0 / calc(100% / var(--ticks)) 100%; }
.bar { position: absolute; top: 1px; bottom: 1px; min-width: 2px; border-radius: 3px; }
.bar:hover, .bar:focus { outline: 2px solid var(--ink); outline-offset: 1px; }
.tip { display: none; position: absolute; z-index: 2; top: 22px; left: 0; width: max-content;
  max-width: 26rem; padding: .5rem .7rem; border-radius: 6px; background: var(--ink);
  color: var(--ground); font-size: .82rem; pointer-events: none; }
.bar:hover .tip, .bar:focus .tip { display: block; }
.bar.late .tip { left: auto; right: 0; }
.facts { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin-top: .55rem; font-size: .88rem; }
.axis { display: grid; grid-template-columns: repeat(var(--ticks), 1fr); font-size: .78rem;
  color: var(--soft);
  margin: 0 6.1rem 0 6.1rem; font-variant-numeric: tabular-nums; }
"""


def render_page(data: Timeline, now_s: float) -> str:
    """The whole page. `data` is what `zeropull timeline --json` prints."""
    launches = data.launches
    longest_s = max((launch_seconds(one, now_s) for one in launches), default=1.0) or 1.0
    stages = dict.fromkeys(s.stage.value for one in launches for s in one.stages)
    legend = "".join(
        f'<span><i style="background:var(--{escape(s)})"></i>{escape(s)}</span>' for s in stages
    )
    cards = "".join(_card(number, one, longest_s, now_s) for number, one in enumerate(launches, 1))
    name = escape(data.endpoint)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: launches</title><style>{_STYLE}</style></head>"
        f'<body style="--ticks:{TICKS}"><h1>{name}</h1>'
        f'<p class="soft">{len(launches)} launches on one scale of {longest_s:.1f} s, from the '
        "decision until the copy took requests. Hover over a bar for its details.</p>"
        f'<div class="legend">{legend}</div>{cards}</body></html>\n'
    )


def _card(number: int, launch: TimelineRecord, longest_s: float, now_s: float) -> str:
    seconds = launch_seconds(launch, now_s)
    total = f"{seconds:.2f} s" if launch.ready_s else f"not ready, {seconds:.2f} s"
    rows = "".join(
        f"<span>{escape(s.stage)}</span>{_bar(s, launch.began_s, longest_s, now_s)}"
        f"<span>{stage_seconds(s, now_s):.3f} s</span>"
        for s in launch.stages
    )
    ticks = "".join(f"<span>{longest_s * tick / TICKS:.1f} s</span>" for tick in range(TICKS))
    facts = "".join(f"<span>{escape(fact)}</span>" for fact in _facts(launch))
    return (
        f"<article><header><b>{number}. {escape(launch.instance_id)}</b>"
        f'<span class="soft">{escape(launch.instance_type)}, variant '
        f'{escape(launch.variant)}</span><span class="total">{total}</span></header>'
        f'<p class="soft">{escape(launch.reason)}</p>'
        f'<div class="rows">{rows}</div><div class="axis">{ticks}</div>'
        f'<div class="facts">{facts}</div></article>'
    )


def _bar(stage: StageRecord, began_s: float, longest_s: float, now_s: float) -> str:
    left = min(100.0, max(0.0, (stage.began_s - began_s) / longest_s * 100))
    width = min(100.0 - left, stage_seconds(stage, now_s) / longest_s * 100)
    late = " late" if left > 55 else ""
    lines = [f"{stage.stage}: {stage_seconds(stage, now_s):.3f} s"]
    if stage.ended_s is None:
        lines[0] += ", not ended"
    if stage_note(stage):
        lines.append(stage_note(stage))
    lines += _bytes(stage)
    tip = "<br>".join(escape(line) for line in lines)
    label = escape("; ".join(lines), quote=True)
    return (
        f'<div class="track"><div class="bar{late}" tabindex="0" aria-label="{label}" '
        f'style="left:{left:.3f}%;width:{width:.3f}%;background:var(--{escape(stage.stage)})">'
        f'<div class="tip">{tip}</div></div></div>'
    )


def _facts(launch: TimelineRecord) -> list[str]:
    facts = []
    image = next((s for s in launch.stages if s.stage is Stage.IMAGE), None)
    if image is not None and image.layers_total:
        cached = image.layers_from_cache or 0
        facts.append(f"{cached} of {image.layers_total} layers from the cache")
        if image.path:
            facts.append(f"image path: {image.path}")
    totals: dict[str, int] = {}
    for stage in launch.stages:
        for source, count in stage.bytes_by_source.items():
            totals[source] = totals.get(source, 0) + count
    facts += [f"{SOURCE_NAMES.get(s, s)}: {n:,} B" for s, n in totals.items()]
    if launch.first_response_s:
        facts.append(f"first answer after {launch.first_response_s - launch.began_s:.2f} s")
    return facts


def _bytes(stage: StageRecord) -> list[str]:
    return [
        f"{count:,} B from the {SOURCE_NAMES.get(source, source)}"
        for source, count in stage.bytes_by_source.items()
    ]
