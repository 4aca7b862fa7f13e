"""`make bench`: what a step and a task cost, against their limits and against what a user would pick instead.

Prints one table per interpreter, and writes bench/results.json and, made from it, docs/bench.svg. All contenders of a row
take turns in one run (see timing.py for why that is not pyperf; only the original, with its 20 tasks a second, is apart), so
the ratios hold on any machine that is not too busy; a ratio is the median of the rounds' ratios, what follows in brackets is
its quartiles.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from environments import ROOT, chosen, with_original, with_peers
from picture import draw
from timing import SAME, judged

RESULTS = ROOT / "bench" / "results.json"
PICTURE = ROOT / "docs" / "bench.svg"
COMPILED, INTERPRETED = "ours compiled", "ours interpreted"
MISSED = "MISSED"


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:  # not Linux
        pass
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load before": None if load is None else round(load, 2),
    }


def measured(version: str, interpreter: str, options: argparse.Namespace) -> dict[str, Any]:
    print(f"CPython {version}: making its environments", flush=True)
    python = with_peers(version, interpreter)
    original, why_not = with_original(version, interpreter)
    with tempfile.TemporaryDirectory() as folder:
        # A copy beside nothing, so that the installed package is found and not the checkout.
        scripts = shutil.copytree(ROOT / "bench", Path(folder) / "bench", ignore=shutil.ignore_patterns("__pycache__"))
        output = Path(folder) / "results.json"
        command: list[Any] = [python, scripts / "measure.py", output]
        command += ["--quick"] if options.quick else []
        command += ["--only", *options.only] if options.only else []
        command += ["--original", original] if original else ["--why-not", why_not]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PROGRESS_"))}
        subprocess.run(command, check=True, cwd=folder, env=environment)
        return dict(json.loads(output.read_text()))


def number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(line: Mapping[str, Any], name: str) -> str:
    """Median and half the distance of the quartiles; for a latency the median and the 99th percentile."""
    figures = line["figures"].get(name)
    if figures is None:
        return "-"
    if line["kind"] == "p99":
        return f"{number(figures['median'])}, p99 {number(figures['p99'])}"
    return f"{number(figures['median'])} ±{number((figures['q3'] - figures['q1']) / 2)}"


def verdict(line: Mapping[str, Any], name: str) -> str:
    """The judged number, its quartiles and what it may be at most."""
    value = judged(line, name)
    at_most = line["targets"].get(name)
    if value is None:
        return "" if at_most is None else "not measured"
    text = number(value)
    if line["kind"] in ("ratio", "more than"):
        spread = line["figures"][name]["judged"]
        text += f" [{number(spread['q1'])} {number(spread['q3'])}]"
        text = text + " x" if line["kind"] == "ratio" else "+" + text
    if at_most is not None:
        text += f" <= {at_most:g}" if value <= at_most else f" > {at_most:g} {MISSED}"
    return text


def table(results: Mapping[str, Any], width: int) -> str:
    """The rows: ours, the limit, the judgement of whoever has a target, then everybody else."""
    heads = ("", "unit", "compiled", "interpreted", "limit", "ratio to the limit: at most")
    rows = []
    for line in results["rows"]:
        against = line["against"]
        judgements = [
            (f"{name.removeprefix('ours ')}: " if name != COMPILED else "") + verdict(line, name)
            for name in (*line["targets"], *([] if line["targets"] else [COMPILED]))
            if verdict(line, name)
        ]
        limit = f"{against}: {cell(line, against)}" if against else ""
        cells = (line["title"], line["unit"], cell(line, COMPILED), cell(line, INTERPRETED), limit, "; ".join(judgements))
        others = [f"{name} {cell(line, name)}" for name in line["figures"] if name not in (COMPILED, INTERPRETED, against)]
        others += [f"{name}: not measured ({reason})" for name, reason in line["errors"].items()]
        rows.append((cells, others))
    limits = (62, 11, 16, 16, 40, 60)
    widths = [min(limits[i], max(len(heads[i]), *(len(cells[i]) for cells, _ in rows))) for i in range(len(heads))]
    lines = ["  ".join(head.ljust(size) for head, size in zip(heads, widths, strict=True)).rstrip()]
    lines.append("  ".join("-" * size for size in widths))
    for cells, others in rows:
        lines.append("  ".join(text.ljust(size) for text, size in zip(cells, widths, strict=True)).rstrip())
        if others:
            lines += textwrap.wrap(" | ".join(others), width, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python", nargs="+", default=[], metavar="X.Y", help='versions, or "all"; else the one that runs this'
    )
    parser.add_argument(
        "--quick", action="store_true", help="few and short samples: to try the benchmarks, not to quote them"
    )
    parser.add_argument("--only", nargs="+", metavar="PART", help="pools, updates, memory, ...: nothing is written then")
    parser.add_argument("--strict", action="store_true", help="fail if a limit is missed")
    options = parser.parse_args()

    start = time.monotonic()
    found, absent = chosen(options.python)
    report: dict[str, Any] = {
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "quick": options.quick,
        "interpreters": {},
    }
    for version, interpreter in found.items():
        report["interpreters"][version] = measured(version, interpreter, options)
    about = report["machine"]
    width = max(100, shutil.get_terminal_size((160, 50)).columns)
    for results in report["interpreters"].values():
        peers = ", ".join(f"{name} {number}" for name, number in results["peers"].items())
        print(f"\n{about['cpu']}, {about['cores']} cores, {about['system']}, load before {about['load before']}")
        print(f"CPython {results['python']}, progress_executor {results['package']}; {peers}")
        print("medians ± half the distance of the quartiles; a ratio is the rounds' median [quartiles], lower is better\n")
        print(table(results, width))
    for version in absent:
        print(f"CPython {version}: not measured, it is not on this machine")
    if not found:
        return 1
    report["seconds"] = round(time.monotonic() - start)
    if not options.only:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
        PICTURE.write_text(draw(report))
        print(f"\n{RESULTS.relative_to(ROOT)} and {PICTURE.relative_to(ROOT)} written")
    missed, before = [], ""
    for version, results in report["interpreters"].items():
        for line in results["rows"]:
            before = line["title"] if SAME not in line["title"] else before
            title = line["title"].replace(SAME, before)
            over = [said for name in line["targets"] if MISSED in (said := verdict(line, name))]
            missed += [f"CPython {version}: {title}: {said}" for said in over]
    print(f"\n{report['seconds']} s, {len(missed)} limits missed", *missed, sep="\n")
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
