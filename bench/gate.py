"""The regression gate: instructions per step and calls per task, against bench/baseline.json. Measures no time.

Instructions are counted by callgrind, as the difference between a long and a short run, which start-up and imports are not
in, and compared as a ratio to the path's limit, counted in the same run: another compiler or processor moves both. Calls
are counted by the interpreter's profiler and compared as the difference from the standard library's in the same scenario.
What exceeds the baseline by more than the tolerance written down there fails.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from environments import ROOT, chosen, processors, with_package
from paths import LIMITS, LONG, NAMES, SHORT

BASELINE = ROOT / "bench" / "baseline.json"
RENEW = "if it is meant: `python bench/gate.py --renew`, and say why in the commit"
TOLERANCE = {
    "instructions": {
        "same build": 0.05,
        "other build": 0.25,
        "reason": "Two runs of one build agree but for where memory lies (below 1 %); another Cython or C compiler "
        "moves the ratio by a few. Another build of the same Python version changes the interpreter's share of a step, and "
        "with it the ratio to the limit.",
    },
    "calls": {
        "more": 0.7,
        "reason": "Counted in one thread while the others wait, on a virtual clock. Only between two processes there is "
        "chance, as in whether two messages are read at once: up to half a call. A call more per task is seen.",
    },
}
IDENTIFY = """
import platform, sysconfig
options = [o for o in ("--enable-optimizations", "--with-lto", "--enable-shared")
           if o in (sysconfig.get_config_var("CONFIG_ARGS") or "")]
print(platform.python_version(), platform.python_compiler(), platform.machine(), *options)
"""
FORM = "import progress_executor as p; print(p.IMPLEMENTATION)"


class Subject:
    """One interpreter with the package, and how to run a script of ours in it."""

    def __init__(self, version: str, python: str | Path, scripts: Path, source: Path | None) -> None:
        self.version = version
        self._python = python
        self._scripts = scripts
        # Fixed: what is in the environment changes what start-up does, and hashing what a dictionary does.
        self._environment = {"PATH": os.defpath, "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
        if source is not None:
            self._environment["PYTHONPATH"] = str(source)
        self.identity = self.run("-c", IDENTIFY).strip()
        self.implementations = ["python"]
        if self.run("-c", FORM).strip() == "cython":
            self.implementations.insert(0, "cython")

    def run(self, *arguments: str | Path, before: tuple[str | Path, ...] = (), **environment: str) -> str:
        command = [*before, self._python, *arguments]
        answer = subprocess.run(
            command, capture_output=True, text=True, cwd=self._scripts, env={**self._environment, **environment}
        )
        if answer.returncode:
            sys.exit(f"CPython {self.version}: {arguments[0]} failed:\n{answer.stderr[-3000:]}")
        return answer.stdout

    def count(self, valgrind: str | None) -> dict[str, Any]:
        return {
            "instructions": self.instructions(valgrind) if valgrind else None,
            "calls": {implementation: self.calls(implementation) for implementation in self.implementations},
        }

    def calls(self, implementation: str) -> dict[str, dict[str, float]]:
        switch = {"PROGRESS_EXECUTOR_NO_EXTENSIONS": "1"} if implementation == "python" else {}
        counted = json.loads(self.run("calls.py", **switch))
        return {
            name: {"calls": round(ours, 2), "reference": round(reference, 2), "more": round(ours - reference, 2)}
            for name, (ours, reference) in counted.items()
        }

    def instructions(self, valgrind: str) -> dict[str, dict[str, float]]:
        self.run("-c", "import progress_executor")  # its bytecode is written then
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "callgrind"
            triggers = [f"--dump-before={name}" for name in ("getpgid", "__getpgid")]
            self.run("paths.py", before=(valgrind, "--tool=callgrind", f"--callgrind-out-file={output}", *triggers))
            totals = []
            while (dump := output.with_name(f"callgrind.{len(totals) + 1}")).exists():
                found = re.search(r"^summary: (\d+)", dump.read_text(errors="replace"), re.MULTILINE)
                totals.append(int(found[1]) if found else 0)
        names = NAMES if "cython" in self.implementations else [n for n in NAMES if not n.startswith("compiled")]
        if len(totals) != 3 * len(names):
            sys.exit(f"callgrind wrote {len(totals)} dumps, not {3 * len(names)}: getpgid has another name here")
        per_step = {name: (totals[3 * i + 2] - totals[3 * i + 1]) / (LONG - SHORT) for i, name in enumerate(names)}
        figures = {}
        for name, count in per_step.items():
            if name not in LIMITS.values():
                limit = LIMITS[name.split(" ", 1)[1]]
                figures[name] = {
                    "instructions": round(count, 1),
                    "limit": round(per_step[limit], 1),
                    "ratio": round(count / per_step[limit], 3),
                }
        return figures


def compared(new: dict[str, Any], old: dict[str, Any], key: str, allowed: Any, what: str) -> list[str]:
    """Print each figure beside its baseline; returns those that exceed it."""
    failures = []
    for name, figures in new.items():
        value = figures[key]
        known = old.get(name)
        if known is None:
            print(f"  {name:45} {value:8.2f} {what}, not in the baseline: {RENEW}")
            failures.append(name)
            continue
        before = known[key]
        text = f"  {name:45} {value:8.2f} {what}, baseline {before:.2f}"
        if value > allowed(before) + 1e-9:
            text += f" FAILED, at most {allowed(before):.2f} ({before and (value / before - 1) * 100:+.1f} %)"
            failures.append(name)
        elif value < before - (allowed(before) - before) - 1e-9:
            text += ", better: renew it, so that it stays so"
        print(text)
    for name in old.keys() - new.keys():
        print(f"  {name:45} in the baseline only, it was not counted: FAILED")
        failures.append(name)
    return failures


def checked(subject: Subject, entry: dict[str, Any], baseline: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    same = entry["interpreter"] == subject.identity
    tolerance = baseline["tolerance"]
    share = tolerance["instructions"]["same build" if same else "other build"]
    if not same:
        print(f"  another build than the baseline's ({entry['interpreter']}): ratios may differ by {share:.0%}")
    failures = []
    if "cython" not in subject.implementations:  # what cannot be counted is no failure, and is said at the end
        shared = {name: f for name, f in entry["instructions"].items() if not name.startswith("compiled")}
        entry = {**entry, "instructions": shared}
    if measured["instructions"] is not None:
        failures += compared(
            measured["instructions"],
            entry["instructions"],
            "ratio",
            lambda before: before * (1 + share),
            "x the limit's instructions",
        )
    more = tolerance["calls"]["more"]
    for implementation, figures in measured["calls"].items():
        print(f"  {implementation}:")
        known = entry["calls"].get(implementation, {})
        failures += compared(figures, known, "more", lambda before: before + more, "calls more than the reference")
    return failures


def count(found: dict[str, str], source: Path | None, valgrind: str | None) -> list[tuple[str, Subject, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(processors()) as pool:
        scripts = shutil.copytree(ROOT / "bench", Path(folder) / "bench", ignore=shutil.ignore_patterns("__pycache__"))
        counting = []
        for version, interpreter in found.items():
            python = interpreter if source else with_package(version, interpreter)
            subject = Subject(version, python, scripts, source and source.resolve())
            counting.append((version, subject, pool.submit(subject.count, valgrind)))
    return [(version, subject, future.result()) for version, subject, future in counting]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python", nargs="+", default=["all"], metavar="X.Y", help='versions; "all" (the default) that are here'
    )
    parser.add_argument("--renew", action="store_true", help="write what is counted as the new baseline")
    parser.add_argument("--source", type=Path, help="a tree built in place, for the interpreter that runs this, instead")
    options = parser.parse_args()

    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"python": {}}
    if options.renew:
        baseline = {**baseline, "tolerance": TOLERANCE}
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print("valgrind is not installed: NO INSTRUCTIONS ARE COUNTED, only calls")
        if options.renew:
            sys.exit("a baseline needs both: install valgrind")
    if options.source:
        found, absent = {"{}.{}".format(*sys.version_info[:2]): sys.executable}, []
    else:
        found, absent = chosen(options.python)
    notes, failed = [f"CPython {version}: not checked, it is not on this machine" for version in absent], []
    for version, subject, measured in count(found, options.source, valgrind):
        print(f"\nCPython {version}: {subject.identity}", flush=True)
        if "cython" not in subject.implementations:
            notes.append(f"CPython {version}: THE SPEEDUPS WERE NOT BUILT, only the interpreted form is checked")
        entry = baseline["python"].get(version)
        if options.renew:
            if "cython" not in subject.implementations:
                sys.exit("a baseline needs both forms: the extension was not built")
            baseline["python"][version] = {"interpreter": subject.identity, **measured}
            print(json.dumps(measured, indent=1))
        elif entry is None:
            notes.append(
                f"CPython {version}: NOT CHECKED, the baseline has nothing for it; `python bench/gate.py --renew` adds it"
            )
        else:
            failed += [f"CPython {version}: {name}" for name in checked(subject, entry, baseline, measured)]
    if options.renew:
        BASELINE.write_text(json.dumps(baseline, indent=1) + "\n")
        print(f"{BASELINE.relative_to(ROOT)} written")
    print(
        "\n"
        + "\n".join(notes + [f"FAILED {name}" for name in failed] or ["renewed" if options.renew else "nothing got slower"])
    )
    if failed:
        print(RENEW)
    return 1 if failed or not found else 0


if __name__ == "__main__":
    sys.exit(main())
