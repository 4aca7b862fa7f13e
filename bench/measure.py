"""All the measurements of one interpreter, as JSON. Runs in an environment that has the package and its peers."""

import argparse
import contextlib
import importlib.metadata
import io
import itertools
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tasks
from peers import CHUNK, LIBRARY, OURS, WITH_PROCESSES, WITH_THREADS
from tasks import WORKERS
from timing import SAME, Remote, Sample, calling, interleaved, row, settle, timed, timed_iteration

import progress_executor
from progress_executor._speedups import _updater

try:
    from progress_executor._speedups import _updater_c
except ImportError:  # then it is said in the table
    _updater_c = None  # type: ignore[assignment]

COMPILED = "ours compiled"
INTERPRETED = "ours interpreted"
ORIGINAL = "original 0.5"
SHOWN = {COMPILED: OURS, LIBRARY: LIBRARY}  # the interpreted form is no other here: these tasks take no step
PEERS = {
    "tqdm": "tqdm",
    "rich": "rich",
    "alive-progress": "alive_progress",
    "progressbar2": "progressbar",
    "enlighten": "enlighten",
    "mpire": "mpire",
    "pebble": "pebble",
    "loky": "loky",
    "joblib": "joblib",
    "deadpool-executor": "deadpool",
    "distributed": "distributed",
}
BARS = {16: 1.0, 100: 2.0, 1000: 5.0}  # percent of a core
MANY = 10**9  # a total that no sample reaches

Rows = list[dict[str, Any]]


class Session:
    """How long to measure, with whom, and what is not there."""

    def __init__(self, quick: bool, original: str | None, why_not: str) -> None:
        self.quick = quick
        self.missing: dict[str, str] = {}
        self._remotes: dict[str, Remote] = {}
        self.original = Remote(original, Path(__file__).with_name("original.py")) if original else None
        if original is None:
            self.missing[ORIGINAL] = why_not
        if _updater_c is None:
            self.missing[COMPILED] = "the extension is not built"
        for peer, module in PEERS.items():
            try:
                __import__(module)
            except Exception as error:
                self.missing[peer] = f"{type(error).__name__}: {error}"

    @property
    def sample_seconds(self) -> float:
        return 0.004 if self.quick else 0.015

    @property
    def items(self) -> int:
        return 10_000 if self.quick else 50_000

    def row(
        self, title: str, unit: str, contenders: dict[str, Sample], seconds: float, rounds: int = 5, **about: Any
    ) -> dict[str, Any]:
        """Measure a row, without those who are missing."""
        start = time.perf_counter()
        present = {name: sample for name, sample in contenders.items() if name not in self.missing}
        samples, errors = interleaved(present, seconds / 5 if self.quick else seconds, 3 if self.quick else rounds)
        errors |= {name: self.missing[name] for name in contenders if name in self.missing}
        rounds = len(next(iter(samples.values()), ()))
        print(f"  {title}: {rounds} rounds, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        return row(title, unit, samples, errors, **about)

    def remote(self, contender: str) -> Remote:
        """A process that has nobody's threads and modules but those of this contender."""
        if contender not in self._remotes:
            switch = {"PROGRESS_EXECUTOR_NO_EXTENSIONS": "1"} if contender == INTERPRETED else {}
            self._remotes[contender] = Remote(sys.executable, Path(__file__).with_name("tasks.py"), **switch)
        return self._remotes[contender]

    def close(self) -> None:
        for remote in self._remotes.values():
            remote.close()
        if self.original is not None:
            self.original.close()


def updaters() -> dict[str, Any]:
    found: dict[str, Any] = {INTERPRETED: _updater.Updater}
    return found if _updater_c is None else {COMPILED: _updater_c.Updater, **found}


# ns per step. The bars write into memory, as if it were a terminal or a file: whichever of the two they draw for. The limits
# with a literal make an object each time; those that are called `empty` are there before, and leave nothing but the call.


def _rich_console() -> Any:
    from rich.console import Console

    return Console(file=io.StringIO(), force_terminal=True)


def iterating_peers() -> dict[str, Callable[[Any, int], Any]]:
    """How each of the peers wraps an iterable of so many items."""

    def tqdm(items: Any, count: int) -> Any:
        from tqdm import tqdm

        return tqdm(items, total=count, file=io.StringIO())

    def rich(items: Any, count: int) -> Any:
        from rich.progress import track

        return track(items, total=count, console=_rich_console())

    def alive(items: Any, count: int) -> Any:
        from alive_progress import alive_it

        return alive_it(items, count, file=io.StringIO(), force_tty=True)

    def progressbar2(items: Any, count: int) -> Any:
        import progressbar

        return progressbar.progressbar(items, max_value=count, fd=io.StringIO())

    def enlighten(items: Any, count: int) -> Any:
        import enlighten

        return enlighten.Manager(stream=io.StringIO(), enabled=True).counter(total=count)(items)

    return {"tqdm": tqdm, "rich": rich, "alive-progress": alive, "progressbar2": progressbar2, "enlighten": enlighten}


@contextlib.contextmanager
def updating_peers(missing: dict[str, str]) -> Iterator[dict[str, tuple[str, Any]]]:
    """The statement with which each of the peers counts one, and the object that is called `bar` in it."""
    with contextlib.ExitStack() as stack:
        found: dict[str, tuple[str, Any]] = {}
        if "tqdm" not in missing:
            from tqdm import tqdm

            found["tqdm"] = "bar.update(1)", stack.enter_context(tqdm(total=MANY, file=io.StringIO()))
        if "rich" not in missing:
            from rich.progress import Progress

            progress = stack.enter_context(Progress(console=_rich_console()))
            found["rich"] = f"bar.advance({progress.add_task('', total=MANY)})", progress
        if "alive-progress" not in missing:
            from alive_progress import alive_bar

            found["alive-progress"] = (
                "bar()",
                stack.enter_context(alive_bar(MANY, file=io.StringIO(), force_tty=True)),
            )
        if "progressbar2" not in missing:
            import progressbar

            bar = progressbar.ProgressBar(max_value=MANY, fd=io.StringIO()).start()
            stack.callback(bar.finish)
            found["progressbar2"] = "bar.increment()", bar
        if "enlighten" not in missing:
            import enlighten

            manager = enlighten.Manager(stream=io.StringIO(), enabled=True)
            stack.callback(manager.stop)
            found["enlighten"] = "bar.update()", manager.counter(total=MANY)
        yield found


def iteration(session: Session) -> Rows:
    rows = []
    sources: dict[str, Callable[[int], Any]] = {
        "a range": range,
        "a list": lambda count: [None] * count,
        "a generator": lambda count: (None for _ in range(count)),
    }
    for name, source in sources.items():
        count = session.items
        contenders = {
            form: timed_iteration(lambda n, updater=updater, source=source: updater()(source(n), n), count)
            for form, updater in updaters().items()
        }
        contenders["itertools.chain"] = timed_iteration(lambda n, source=source: itertools.chain(source(n)), count)
        for peer, wrap in iterating_peers().items():
            if peer not in session.missing and (name == "a range" or peer == "tqdm"):
                contenders[peer] = timed_iteration(lambda n, wrap=wrap, source=source: wrap(source(n), n), count)
        if name != "a generator" and session.original is not None:  # it takes what has a length
            step, original = name.removeprefix("a "), session.original
            contenders[ORIGINAL] = lambda step=step, original=original, count=count: original("iterate", step, count)
        limit = session.row(
            f"iterate over {name}",
            "ns",
            contenders,
            4,
            against="itertools.chain",
            targets={COMPILED: 1.1},
        )
        rows += [limit, against_another(limit, "tqdm", {INTERPRETED: 1.0})]
    return rows


def against_another(line: dict[str, Any], against: str, targets: dict[str, float]) -> dict[str, Any]:
    """The same samples, judged against somebody else."""
    samples = line["raw"]
    chosen = {name: samples[name] for name in (COMPILED, INTERPRETED, against) if name in samples}
    errors = {name: line["errors"][name] for name in (COMPILED, INTERPRETED, against) if name in line["errors"]}
    return row(f"{SAME}, against {against}", line["unit"], chosen, errors, against=against, targets=targets)


def updates(session: Session) -> Rows:
    seconds = session.sample_seconds
    rows: Rows = []
    with updating_peers(session.missing) as peers:
        for statement in ("progress.update()", "progress.update(1)"):
            contenders = {
                form: timed(calling(statement, progress=updater()), seconds) for form, updater in updaters().items()
            }
            contenders["[].clear()"] = timed(calling("[].clear()"), seconds)
            contenders["empty.clear()"] = timed(calling("empty.clear()", empty=[]), seconds)
            chosen = peers if statement == "progress.update(1)" else {}
            for peer, (call, bar) in chosen.items():
                contenders[peer] = timed(calling(call, bar=bar), seconds)
            if session.original is not None:
                original = session.original
                contenders[ORIGINAL] = lambda statement=statement, original=original: original("step", statement, seconds)
            line = session.row(statement, "ns", contenders, 4, against="[].clear()", targets={COMPILED: 1.5})
            rows += [line, against_another(line, "empty.clear()", {})]
            if statement == "progress.update(1)":
                rows.append(against_another(line, "tqdm", {INTERPRETED: 0.7}))

    contenders = {form: timed(calling("progress(1)", progress=updater()), seconds) for form, updater in updaters().items()}
    contenders["{}.get(1)"] = timed(calling("{}.get(1)"), seconds)
    contenders["empty.get(1)"] = timed(calling("empty.get(1)", empty={}), seconds)
    line = session.row("progress(1)", "ns", contenders, 3, against="{}.get(1)", targets={COMPILED: 1.5})
    rows += [line, against_another(line, "empty.get(1)", {})]

    contenders = {COMPILED: timed(calling("current()", current=progress_executor.current_progress), seconds)}
    rows.append(session.row("current_progress()", "ns", contenders, 2, targets={COMPILED: 150}, kind="median"))

    amounts: dict[str, Any] = {"0.5": 0.5}
    try:
        import numpy
    except ImportError as error:
        rows.append(row("progress.update(numpy.int64(1))", "ns", {}, {"numpy": str(error)}))
    else:
        amounts["numpy.int64(1)"] = numpy.int64(1)
    for name, amount in amounts.items():
        contenders = {
            form: timed(calling("progress.update(amount)", progress=updater(), amount=amount), seconds)
            for form, updater in updaters().items()
        }
        if "tqdm" not in session.missing:
            from tqdm import tqdm

            bar = tqdm(total=MANY, file=io.StringIO())
            contenders["tqdm"] = timed(calling("progress.update(amount)", progress=bar, amount=amount), seconds)
        rows.append(session.row(f"progress.update({name})", "ns", contenders, 3, against="tqdm", targets={COMPILED: 0.5}))
    return rows


def steps_of_parts(session: Session) -> Rows:
    """A part's steps against a task's: the same path, as long as nobody else counts in between."""
    rows = []
    for form, updater in updaters().items():
        part = updater().sub(1, MANY).sub(1, MANY)
        contenders = {
            form: timed(calling("progress.update(1)", progress=part), session.sample_seconds),
            "in a task": timed(calling("progress.update(1)", progress=updater()), session.sample_seconds),
        }
        rows.append(
            session.row(f"update(1) in a part, {form}", "ns", contenders, 3, against="in a task", targets={form: 1.2})
        )
        contenders = {
            form: timed_iteration(lambda n, part=part: part(range(n)), session.items),
            "in a task": timed_iteration(lambda n, updater=updater: updater()(range(n)), session.items),
        }
        rows.append(session.row(f"iterate in a part, {form}", "ns", contenders, 3, against="in a task", targets={form: 1.2}))
    return rows


# Tasks

POOL_ROWS = (  # what is measured, of which kind of pool, how many tasks, limit, workers, who else
    ("no-op", "fork", 2000, 0.4, WORKERS, WITH_PROCESSES),
    ("no-op", "forkserver", 2000, 0.5, WORKERS, ()),
    ("one by one", "fork", 500, 0.6, WORKERS, WITH_PROCESSES),
    ("one by one", "forkserver", 500, 0.6, WORKERS, ()),
    ("1 ms", "fork", 400, 0.95, WORKERS, ()),
    ("1 ms", "forkserver", 400, 0.95, WORKERS, ()),
    ("no-op, caller computes", "fork", 500, 0.8, WORKERS, ()),
    ("no-op, caller computes", "forkserver", 500, 0.8, WORKERS, ()),
    ("1 ms, caller computes", "fork", 200, 1.0, WORKERS, ()),
    ("1 ms, caller computes", "forkserver", 200, 1.0, WORKERS, ()),
    ("1 MB", "fork", 50, 1.05, WORKERS, ()),
    ("50 MB", "fork", 3, 1.05, WORKERS, ()),
    ("no-op", "fork", 2000, 0.5, 8, ()),
    ("map", "fork", 20_000, None, WORKERS, (*WITH_THREADS, "loky")),
    ("no-op", "threads", 5000, 1.1, WORKERS, ()),
    ("no-op", tasks.ONE_CORE, 5000, 1.1, WORKERS, WITH_THREADS),
    ("one by one", "threads", 2000, 1.1, WORKERS, ()),
    ("one by one", tasks.ONE_CORE, 2000, 1.1, WORKERS, WITH_THREADS),
    ("awaited", "fork", 2000, 1.1, WORKERS, ()),
    ("awaited", tasks.ONE_CORE, 2000, 1.1, WORKERS, ()),
)
TITLES = {
    "no-op": "no-op tasks",
    "one by one": "no-op tasks one by one",
    "1 ms": "tasks of 1 ms",
    "no-op, caller computes": "no-op tasks while the caller computes",
    "1 ms, caller computes": "tasks of 1 ms while the caller computes",
    "1 MB": "1 MB as argument and result",
    "50 MB": "50 MB as argument and result",
    "map": f"no-op calls by map in chunks of {CHUNK}",
    "awaited": "create_task(check_for_progress()) or wrap_future",
}


def pools(session: Session) -> Rows:
    rows: Rows = []
    for scenario, kind, count, at_most, workers, others in POOL_ROWS:
        contenders: dict[str, Sample] = {}
        for shown, name in (*SHOWN.items(), *zip(others, others, strict=True)):
            few = scenario == "one by one" and name == "joblib"  # which sleeps for 10 ms each time
            about = "rate", name, kind, scenario, count // 20 if few else count, workers
            contenders[shown] = lambda shown=shown, about=about: session.remote(shown)(*about)
        title = f"{TITLES[scenario]}, {kind}{f', {workers} workers' if workers != WORKERS else ''}"
        targets = {} if at_most is None else {COMPILED: at_most}
        rows.append(session.row(title, "tasks/s", contenders, 12, 9, against=LIBRARY, targets=targets))
        measured = [name for name in others if name in rows[-1]["raw"]]
        if measured:  # who of them is the fastest is found in the same samples, which favours them
            fastest = max(measured, key=lambda name: rows[-1]["figures"][name]["median"])
            rows.append(against_another(rows[-1], fastest, {COMPILED: 1.0} if targets else {}))
    if session.original is not None:
        original = session.original
        for line in rows:
            kind = {f"{TITLES['no-op']}, fork": "fork", f"{TITLES['no-op']}, {tasks.ONE_CORE}": "threads"}.get(line["title"])
            if kind:
                samples, errors = interleaved({ORIGINAL: lambda kind=kind: original("rate", kind, 20)}, 3, 3, 3)
                line["figures"] |= row("", "tasks/s", samples)["figures"]
                line["errors"] |= errors
    return rows


# Memory, import, the event loop


def memory(session: Session) -> Rows:
    rows = []
    for kind in ("threads", "fork"):
        contenders = {
            shown: lambda shown=shown, name=name, kind=kind: session.remote(shown)("memory", name, kind)
            for shown, name in SHOWN.items()
        }
        title = f"memory of a pending task, {kind}"
        rows.append(session.row(title, "B", contenders, 0, against=LIBRARY, targets={COMPILED: 1.3}))
    return rows


def imports(session: Session) -> Rows:
    def sample(modules: str, **environment: str) -> Sample:
        code = f"from time import perf_counter as now\nstart = now()\nimport {modules}\nprint((now() - start) * 1e3)"
        base = {"PATH": "/usr/bin:/bin", **environment}
        return lambda: float(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=base).stdout
        )

    contenders = {
        COMPILED: sample("progress_executor"),
        INTERPRETED: sample("progress_executor", PROGRESS_EXECUTOR_NO_EXTENSIONS="1"),
        "concurrent.futures, asyncio": sample("concurrent.futures, asyncio"),
    }
    if "tqdm" not in session.missing:
        contenders["tqdm"] = sample("tqdm")
    if "rich" not in session.missing:
        contenders["rich"] = sample("rich.progress")
    return [
        session.row(
            "import",
            "ms",
            contenders,
            15,
            against="concurrent.futures, asyncio",
            targets={COMPILED: 15, INTERPRETED: 15},
            kind="more than",
        )
    ]


def loop_costs(session: Session) -> Rows:
    seconds = 0.5 if session.quick else 2.0
    ten, many = "10 watched", "10 000 watched"
    rows = []
    for reporting, grouped in ((True, False), (False, False), (True, True)):
        contenders = {
            name: lambda count=count, how=(reporting, grouped): tasks.loop_cost(count, seconds, 0.01, *how)
            for name, count in ((ten, 10), (many, 10_000))
        }
        what = f"3 running tasks that {'report' if reporting else 'report nothing'}{', one group' if grouped else ''}"
        rows.append(
            session.row(
                f"the loop's CPU per tick, {what}",
                "µs",
                contenders,
                12,
                against=ten,
                targets={many: 1.2},
            )
        )
    shares = {
        f"{COMPILED}, threads": lambda: tasks.idle_share("threads", seconds),
        f"{COMPILED}, processes": lambda: tasks.idle_share("fork", seconds),
    }
    targets = dict.fromkeys(shares, 0.5)
    rows.append(session.row("an idle watch", "% of a core", shares, 8, targets=targets, kind="median"))
    for count, at_most in BARS.items():
        shares = {
            COMPILED: lambda count=count: tasks.bars_share(count, seconds),
            "tqdm alone": lambda count=count: tasks.bare_bars_share(count, seconds),
        }
        title = f"{count} live bars on a terminal, 10 Hz"
        rows.append(session.row(title, "% of a core", shares, 12, targets={COMPILED: at_most}, kind="median"))
    return rows


def latencies(session: Session) -> Rows:
    cancels, writes = (30, 16) if session.quick else (200, 80)
    remote = session.remote(INTERPRETED)
    rows = []
    for kind, name in (("threads", "threads"), ("fork", "processes")):
        calls: dict[str, Callable[[], Sequence[float]]] = {
            COMPILED: lambda kind=kind: tasks.cancel_latencies(kind, cancels),
            INTERPRETED: lambda kind=kind: remote("cancel_latencies", kind, cancels),
        }
        if kind == "threads" and session.original is not None:
            original = session.original
            calls[ORIGINAL] = lambda original=original: original("cancel_latencies", 5)
        rows.append(_latency(session, f"from cancel() to noticing, steps of 1 ms, {name}", calls, 3.0))
        calls = {
            COMPILED: lambda kind=kind: tasks.progress_latencies(kind, writes),
            INTERPRETED: lambda kind=kind: remote("progress_latencies", kind, writes),
        }
        rows.append(_latency(session, f"from the write to the callback, {name}", calls, 120.0))
    return rows


def on_dask(session: Session) -> Rows:
    """A few figures of a cluster of processes on this machine."""
    if "distributed" in session.missing:
        return []
    import clusters

    from progress_executor import DaskProgressExecutor

    rows: Rows = []
    quick = session.quick
    plain = "plain Client.submit"
    with clusters.cluster(threads=2) as client:
        count = 200 if quick else 1000
        contenders: dict[str, Sample] = {
            COMPILED: lambda: clusters.rate(client, True, count),
            plain: lambda: clusters.rate(client, False, count),
        }
        rows.append(session.row("no-op tasks, Dask", "tasks/s", contenders, 30, against=plain, targets={COMPILED: 1.3}))
        untold, steps = "without progress", 100_000 if quick else 1_000_000
        contenders = {
            COMPILED: lambda: clusters.steps(client, True, 8, steps),
            untold: lambda: clusters.steps(client, False, 8, steps),
        }
        title = f"8 tasks of {steps} steps of a microsecond, Dask"
        samples, errors = interleaved(contenders, 0, at_least=5, at_most=5)
        rows.append(row(title, "ns", samples, errors, against=untold, targets={COMPILED: 1.1}))
    with clusters.cluster(threads=50) as client, DaskProgressExecutor(client) as executor:
        seconds, tasks_told = 1.0 if quick else 5.0, {COMPILED: True, untold: False}
        scheduler: dict[str, list[float]] = {name: [] for name in tasks_told}
        for _ in range(2 if quick else 4):
            for name, told in tasks_told.items():
                scheduler[name].append(clusters.shares(client, told, 100, 0, seconds)[0])
        title = "the scheduler, 100 running tasks that report, 10 Hz, Dask"
        rows.append(row(title, "% of a core", scheduler, targets={COMPILED: 2.0}, kind="median"))
        few, many = "100 running", "10 000 more pending"
        here: dict[str, list[float]] = {few: [], many: []}
        for _ in range(1 if quick else 3):
            for name, pending in ((few, 0), (many, 10_000)):
                here[name].append(clusters.shares(client, True, 100, pending, seconds)[1])
        rows.append(row("the caller, tasks watched, Dask", "% of a core", here, against=few, targets={many: 1.2}))
        cancels, writes = (30, 16) if quick else (200, 80)
        for title, at_most, latencies in (
            ("from cancel() to noticing, steps of 1 ms, Dask", 50.0, lambda: tasks.cancel_latencies_of(executor, cancels)),
            ("from the write to the callback, Dask", 250.0, lambda: tasks.progress_latencies_of(executor, writes, 4)),
        ):
            rows.append(_latency(session, title, {COMPILED: latencies}, at_most))
    return rows


def _latency(
    session: Session, title: str, calls: dict[str, Callable[[], Sequence[float]]], at_most: float
) -> dict[str, Any]:
    samples: dict[str, list[float]] = {}
    errors = {name: session.missing[name] for name in calls if name in session.missing}
    for _ in range(1 if session.quick else 2):  # turn by turn
        for name, call in calls.items():
            if name in errors:
                continue
            try:
                latencies = call()  # first: of one that fails there is no sample
                samples.setdefault(name, []).extend(latencies)
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {error}"
    targets = {COMPILED: at_most, INTERPRETED: at_most}
    return row(title, "ms", samples, errors, targets=targets, kind="p99")


PARTS = {
    part.__name__: part
    for part in (pools, iteration, updates, steps_of_parts, memory, imports, loop_costs, latencies, on_dask)
}


def versions() -> dict[str, str]:
    found = {}
    for peer in (*PEERS, "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[peer] = importlib.metadata.version(peer)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--original", help="the Python of the environment that has progress-executor 0.5")
    parser.add_argument("--why-not", default="not asked for", help="why there is no such environment")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()

    warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
    session = Session(options.quick, options.original, options.why_not)
    settle()
    rows: Rows = []
    try:
        for name in options.only:
            rows += PARTS[name](session)
    finally:
        session.close()
    for line in rows:
        line.pop("raw", None)
    result = {
        "python": sys.version,
        "implementation": progress_executor.IMPLEMENTATION,
        "package": progress_executor.__version__,
        "peers": versions(),
        "missing": session.missing,
        "rows": rows,
    }
    options.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
