"""The picture that the README shows, made from results.json and nothing else: `python bench/picture.py` draws it again."""

import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WIDTH, LEFT, RIGHT, BAR = 760, 170, 100, 18

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600; font-size: 14px }
.small { font-size: 11px }
.ours { fill: #1a7f37 } .limit { fill: #0969da } .peer { fill: #afb8c1 } .axis { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .ours { fill: #3fb950 } .limit { fill: #58a6ff } .peer { fill: #6e7681 } .axis { stroke: #30363d } }
"""


def _panel(line: Mapping[str, Any], heading: str, top: int) -> tuple[list[str], int]:
    """One row of the table as bars on a logarithmic scale, which starts at a power of ten."""
    better = "more is better" if line["unit"].endswith("/s") else "less is better"
    figures = sorted(line["figures"].items(), key=lambda item: item[1]["median"], reverse=better == "more is better")
    values = [figure["median"] for _, figure in figures]
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values))))
    scale = (WIDTH - LEFT - RIGHT) / (high - low)
    parts = [f'<text class="title" x="10" y="{top + 14}">{escape(heading)}, {escape(line["unit"])} ({better})</text>']
    y = top + 28
    bottom = y + len(figures) * (BAR + 6)
    for power in range(low, high + 1):
        x = LEFT + (power - low) * scale
        label = f"{10.0**power:,g}".replace(",", "\u2009") if power < 5 else f"10^{power}"
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="{y - 4}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="small" text-anchor="middle" x="{x:.1f}" y="{bottom + 12}">{label}</text>')
    for name, figure in figures:
        kind = "ours" if name.startswith("ours") else "limit" if name == line["against"] else "peer"
        length = max(2.0, (math.log10(figure["median"]) - low) * scale)
        value = figure["median"]
        text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        parts.append(f'<text text-anchor="end" x="{LEFT - 8}" y="{y + 13}">{escape(name)}</text>')
        parts.append(f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>')
        parts.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + 13}">{text}</text>')
        y += BAR + 6
    return parts, bottom + 30


def draw(report: Mapping[str, Any]) -> str:
    """The SVG: the newest interpreter's figures for a step and for a task."""
    version = max(report["interpreters"], key=lambda text: tuple(map(int, text.split("."))))
    rows = {line["title"]: line for line in report["interpreters"][version]["rows"]}
    panels = {
        "iterate over a range": "for x in progress(range(n)): time per item",
        "progress.update(1)": "progress.update(1): time per call",
        "no-op tasks, fork": "process pool: no-op tasks, all submitted, then all results",
        "no-op tasks one by one, fork": "process pool: no-op tasks, each when the one before has ended",
    }
    parts: list[str] = []
    top = 10
    for title, heading in panels.items():
        if rows.get(title, {}).get("figures"):
            panel, top = _panel(rows[title], heading, top)
            parts += panel
    machine = report["machine"]
    caption = f"CPython {version}, {machine['cpu']}, {machine['cores']} cores, {report['date']}. Logarithmic scale."
    if report["quick"]:
        caption += " A quick run: not to be quoted."
    parts.append(f'<text class="small" x="10" y="{top + 6}">{escape(caption)}</text>')
    height = top + 18
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="Benchmarks of progress_executor">\n<style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    (ROOT / "docs" / "bench.svg").write_text(draw(json.loads((ROOT / "bench" / "results.json").read_text())))
