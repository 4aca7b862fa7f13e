"""Interleaved samples and what is said about them; asking a process of another environment for its samples.

Only what ran in the same minute on the same machine is compared: each round takes one sample of every contender, in an
order that rotates, and a ratio is the median of the rounds' own ratios. pyperf spends a process per contender and runs
them one after the other, so that a machine that slows down meanwhile changes the ratio: hence a loop of our own.
"""

import gc
import json
import os
import select
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

Sample = Callable[[], float]

UNROLLED = 20
SAME = "the same"  # how the title of a row begins that judges the row before it by somebody else
PATIENCE = 120  # seconds for one sample of another process


def calling(statement: str, **names: Any) -> Callable[[int], None]:
    """A function of a count that executes `statement` so often, with `names` as its local variables.

    The statement is written out many times, so that the loop around it does not count: it would make any two alike.
    """
    body = "".join(f"        {statement}\n" for _ in range(UNROLLED))
    source = f"def run({', '.join(['rounds', *names])}):\n    for _ in repeat(None, rounds):\n{body}"
    space: dict[str, Any] = {"repeat": repeat}
    exec(source, space)
    run = space["run"]
    return lambda count: run(count // UNROLLED, *names.values())


def exhaust(iterable: Any) -> None:
    for _ in iterable:
        pass


def timed(run: Callable[[int], None], seconds: float, most: int = 1_000_000) -> Sample:
    """A sample of `run(count)`, ns per step, with a count that takes about so many seconds.

    Of this process's CPU time: a step waits for nothing, and what else the machine does matters less then.
    """
    count = UNROLLED * 10
    while count < most:
        start = process_time()
        run(count)
        if (taken := process_time() - start) > seconds / 4:
            count = int(count * seconds / taken)
            break
        count *= 4
    count = max(UNROLLED, min(count, most) // UNROLLED * UNROLLED)

    def sample() -> float:
        start = process_time()
        run(count)
        return (process_time() - start) / count * 1e9

    return sample


def timed_iteration(make: Callable[[int], Any], count: int) -> Sample:
    """A sample of a `for` loop over `make(count)`, ns per item; making it does not count.

    What a bar spends at its first and last item does, so `count` is the same for all and large.
    """

    def sample() -> float:
        iterable = make(count)
        start = process_time()
        exhaust(iterable)
        return (process_time() - start) / count * 1e9

    return sample


def interleaved(
    contenders: Mapping[str, Sample], seconds: float, at_least: int = 5, at_most: int = 41
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Samples of each, by rounds, and what went wrong with those that raised. The first round warms up and is dropped."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    errors: dict[str, str] = {}
    names = list(contenders)
    deadline = perf_counter() + seconds
    for number in range(at_most + 1):
        if number > at_least and perf_counter() > deadline:
            break
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if name in errors:
                continue
            try:
                samples[name].append(contenders[name]())
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {error}"[:200]
    return {name: values[1:] for name, values in samples.items() if name not in errors and values[1:]}, errors


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, the 99th percentile (the smallest value that 99 % do not exceed) and how many there were."""
    ordered = sorted(values)
    low, middle, high = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    p99 = ordered[-(-len(ordered) * 99 // 100) - 1]
    return {"median": middle, "q1": low, "q3": high, "p99": p99, "samples": len(ordered)}


def row(
    title: str,
    unit: str,
    samples: Mapping[str, Sequence[float]],
    errors: Mapping[str, str] | None = None,
    *,
    against: str | None = None,
    targets: Mapping[str, float] | None = None,
    kind: str = "ratio",
) -> dict[str, Any]:
    """One row of the table.

    `targets` has at most how much for whom: of the ratio to `against` (kind "ratio"), of the difference from it ("more
    than"), of the median ("median") or of the 99th percentile ("p99"). A unit per second is better when it is higher, and
    its ratio is turned round, so that lower is better for all of them.
    """
    figures = {name: spread(values) for name, values in samples.items()}
    base = samples.get(against or "", ())
    for name, values in samples.items():
        if base and name != against:
            pairs = list(zip(values, base, strict=False))
            if kind == "more than":
                figures[name]["judged"] = spread([ours - theirs for ours, theirs in pairs])
            elif unit.endswith("/s"):
                figures[name]["judged"] = spread([theirs / ours for ours, theirs in pairs])
            else:
                figures[name]["judged"] = spread([ours / theirs for ours, theirs in pairs])
    return {
        "title": title,
        "unit": unit,
        "kind": kind,
        "against": against,
        "targets": dict(targets or {}),
        "figures": figures,
        "errors": dict(errors or {}),
        "raw": {name: list(values) for name, values in samples.items()},
    }


def judged(line: Mapping[str, Any], name: str) -> float | None:
    """The number that the row's target is about, for one contender; None if it was not measured."""
    figures = line["figures"].get(name)
    if figures is None:
        return None
    if line["kind"] in ("median", "p99"):
        return float(figures[line["kind"]])
    return float(figures["judged"]["median"]) if "judged" in figures else None


def settle() -> None:
    """Begin alike, wherever this runs.

    The garbage collector is kept from walking through all that was imported, in whoever's sample it happens to start; and
    SIGINT is handled, which a shell ignores in the background, and then there is less to do.
    """
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Remote:
    """Functions of another process, whose environment has another package, or another form of ours."""

    def __init__(self, python: str | Path, script: Path, **environment: str) -> None:
        self._process = subprocess.Popen(
            [python, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
            start_new_session=True,
        )

    def __call__(self, name: str, *args: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([name, *args]), file=self._process.stdin, flush=True)
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise RuntimeError(f"it hangs: no answer in {PATIENCE} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("its process has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def close(self) -> None:
        self._process.communicate()


def serve(functions: Mapping[str, Callable[..., Any]]) -> None:
    """The other end of `Remote`: answer until the asking process closes the pipe."""
    settle()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is no answer
    for line in sys.stdin:
        name, *args = json.loads(line)
        try:
            answer = {"value": functions[name](*args)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
