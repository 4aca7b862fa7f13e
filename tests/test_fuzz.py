"""Security: who can get at the shared memory, what is unpickled, and that no bytes in a slot harm the caller."""

import asyncio
import io
import itertools
import json
import os
import random
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from progress_executor import ProgressGroup
from progress_executor._speedups._layout import (
    CALLER_BYTE,
    FLOAT,
    INSIDE,
    INSIDE_KIND_BYTE,
    INT,
    NO_FLOAT,
    NONE,
    PAUSE_BYTE,
    SEQUENCE,
    SLOT_SIZE,
    STARTED_AT,
    STATUS_BYTE,
    STATUS_LENGTH_BYTE,
    TAKEN_BACK_BYTE,
    TOTAL,
    TOTAL_KIND_BYTE,
    N,
)

from . import jobs
from .conftest import DEADLINE, START_METHODS, make_executor, open_gate, until
from .test_slots import check_validity

# Who can get at the shared memory


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("method", START_METHODS)
def test_the_memory_that_a_worker_shares_has_no_name(method):
    """Only who may look into one of the two processes can get at it."""
    with make_executor(method, 1) as executor:
        processes = ["self", executor.submit(os.getpid).result()]
        maps = [Path(f"/proc/{process}/maps").read_text().splitlines() for process in processes]
    ours, theirs = ({tuple(line.split()[3:]) for line in lines if line.split()[1] == "rw-s"} for lines in maps)
    assert ours & theirs
    assert all(path[-1] == "(deleted)" for _, _, *path in ours & theirs)


# What is unpickled

UNPICKLED = """
import json, os, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from operator import add
from progress_executor import ProcessPoolProgressExecutor

_, cls, folder = sys.argv

def note(event, arguments):
    if event == "pickle.find_class":
        with open(os.path.join(folder, "caller" if os.getpid() == caller else "worker"), "a") as file:
            print(json.dumps(arguments), file=file)

caller = os.getpid()
sys.addaudithook(note)
with {"stock": ProcessPoolExecutor, "ours": ProcessPoolProgressExecutor}[cls](1, get_context("fork")) as executor:
    assert executor.submit(add, 1, 2).result() == 3
    assert isinstance(executor.submit(add, 1, "2").exception(), TypeError)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers do not inherit the hook")
def test_nothing_is_unpickled_but_what_the_standard_librarys_pool_unpickles(tmp_path):
    found = {}
    for cls in ("stock", "ours"):
        folder = tmp_path / cls
        folder.mkdir()
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", UNPICKLED, cls, folder]
        subprocess.run(command, check=True, timeout=DEADLINE)
        for side in ("caller", "worker"):
            found[cls, side] = [json.loads(line) for line in (folder / side).read_text().splitlines()]
    assert found["ours", "caller"] == [["builtins", "TypeError"]]
    assert found["ours", "worker"] == [["_operator", "add"]] * 2
    for side in ("caller", "worker"):
        assert all(name in found["stock", side] for name in found["ours", side])


# Any bytes in a slot

INTS = [0, 1, -1, 7, 1000, 2**63 - 1, -(2**63)]
FLOATS = [0.0, -0.0, 5e-324, -5e-324, 1e-300, 0.7, 1.0, -1.0, 1e18, 1e300, 1.7e308, -1.7e308]
NO_FLOATS = [float("nan"), float("inf"), float("-inf")]
TIMES = [*NO_FLOATS, 0.0, -5.0, 5e-324, 1.0, 1e300]
TEXTS = [
    *(b"", b"x", b"done", b"\x1b[2J\r\n", b"a" * 256, b"[red]", b"%s{0}", b"\0", b"\xff\xfe", b"\xed\xa0\x80"),
    "\u202eabc\u0301".encode(),
    "💥".encode() * 64,
]


def put_number(chance, record, word, kind_byte):
    kind = record[kind_byte] = chance.choice([INT, FLOAT, NONE, FLOAT + 1])
    if kind == FLOAT:
        struct.pack_into("d", record, 8 * word, chance.choice(FLOATS + NO_FLOATS))
    else:
        struct.pack_into("q", record, 8 * word, chance.choice(INTS))


def garbage(chance):
    """Bytes for a slot: random ones, or such that most of them pass for what an Updater writes."""
    record = bytearray(chance.randbytes(SLOT_SIZE))
    if chance.random() < 0.9:
        struct.pack_into("q", record, 8 * SEQUENCE, 2 * chance.randrange(1000))
        struct.pack_into("d", record, 8 * STARTED_AT, chance.choice([*TIMES, *[time.time()] * 4, time.time() + 1e9]))
        struct.pack_into("q", record, 8 * N, chance.choice(INTS))
        if chance.random() < 0.5:
            struct.pack_into("q", record, 8 * N + 8, NO_FLOAT)
        else:
            struct.pack_into("d", record, 8 * N + 8, chance.choice(FLOATS * 9 + NO_FLOATS))
        put_number(chance, record, INSIDE, INSIDE_KIND_BYTE)
        put_number(chance, record, TOTAL, TOTAL_KIND_BYTE)
        text = chance.choice(TEXTS)
        record[STATUS_LENGTH_BYTE : STATUS_LENGTH_BYTE + 2] = len(text).to_bytes(2, "little")
        record[STATUS_BYTE : STATUS_BYTE + len(text)] = text
    return bytes(record)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Watch:
    """Callbacks, bars on a terminal and in a file, and rows of rich's, for futures and groups. What they log is an error."""

    def __init__(self, caplog):
        self._caplog = caplog
        self._terminal = Terminal()
        console = Console(file=Terminal(), force_terminal=True, width=200)
        columns = [
            *(TextColumn("{task.fields[status]}", markup=False), *Progress.get_default_columns(), TimeElapsedColumn()),
            *(MofNCompleteColumn(), DownloadColumn(), TransferSpeedColumn()),
        ]
        self._rich = Progress(*columns, console=console, auto_refresh=False)
        self.told = 0

    def add(self, watched):
        watched.add_progress_callback(self._tell)
        watched.add_tqdm_callback(init_kwargs={"file": self._terminal, "mininterval": 0, "ncols": 100})
        watched.add_tqdm_callback(init_kwargs={"file": io.StringIO(), "unit_scale": True})
        watched.add_rich_callback(self._rich)

    def _tell(self, old, new):
        for state in (old, new):
            check_validity({name: state[name] for name in ("n", "total", "status")})
        self.told += 1

    def check(self):
        self._rich.console.print(self._rich.get_renderable())
        assert not [record for record in self._caplog.records if record.name == "progress_executor"]


@contextmanager
def opened_in_the_end(gate):
    """Where an assertion fails, leaving the executor must not wait for tasks that wait for the gate."""
    try:
        yield
    finally:
        open_gate(gate)


def wait_with_progress(gate, progress):
    return jobs.wait_for(gate)


def fuzz_resting_slots(seed, rounds, gate, caplog):
    chance = random.Random(seed)
    watch = Watch(caplog)
    with make_executor("process", 3) as executor, opened_in_the_end(gate):
        futures = [executor.submit(wait_with_progress, gate) for _ in range(3)]
        group = ProgressGroup(futures)
        for watched in (*futures, group):
            watch.add(watched)
        until(lambda: all(future.state["status"] == "running" for future in futures))
        for _ in range(rounds):
            for future in futures:
                future._task.slot.buffer[1:] = garbage(chance)[1:]
            for watched in (*futures, group):
                source = watched._source()
                executor._monitor.deliver(source.subscriptions[0], now=True)
            watch.check()
        told = watch.told
        open_gate(gate)
        assert group.result(DEADLINE) == ["waited"] * 3
    watch.check()
    return told


def test_any_bytes_in_a_slot_are_harmless_to_whatever_shows_them(gate, caplog):
    assert fuzz_resting_slots(1, 40, gate, caplog) > 40


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_many_bytes_in_a_slot_are_harmless_to_whatever_shows_them(seed, gate, caplog):
    assert fuzz_resting_slots(seed, 400, gate, caplog) > 400


# The same while tasks run and write there, too

SUMMED = range(50)


def report_on(gate, progress):
    while not os.path.exists(gate):
        with suppress(OverflowError):  # the largest int that there is, and one
            progress.update()
            progress.update(0.5)
            progress.total = 10**6
        progress.status = f"at {progress.n} of {progress.total}, {progress.status}"
    return "reported"


def step_until(gate, progress):
    while not os.path.exists(gate):
        with suppress(OverflowError):
            progress.update()


def sum_up(progress):
    with suppress(OverflowError):
        return sum(progress(SUMMED))
    return sum(SUMMED)


# What the caller asks of a task, and the beginning: by those they agree whether it begins or is taken back.
AGREED = [CALLER_BYTE, PAUSE_BYTE, *range(8 * STARTED_AT, 8 * STARTED_AT + 8), TAKEN_BACK_BYTE]
NOT_AGREED = [slice(at + 1, end) for at, end in itertools.pairwise([*AGREED, SLOT_SIZE]) if at + 1 < end]


class Scribbler(threading.Thread):
    """Writes garbage into every slot of a pool, all the time; only what caller and worker agree by stays."""

    def __init__(self, executor, seed):
        super().__init__()
        chance = random.Random(seed)
        self._garbage = [garbage(chance) for _ in range(1999)]
        self._links = executor._workers.links
        self._stopped = threading.Event()
        self.written = 0

    def run(self):
        while not self._stopped.is_set():
            for slot in [slot for link in tuple(self._links) for slot in link._slots]:
                piece = self._garbage[self.written % len(self._garbage)]
                for part in NOT_AGREED:
                    slot.buffer[part] = piece[part]
                self.written += 1
            time.sleep(0)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc_info):
        self._stopped.set()
        self.join()


async def awaited(futures):
    return await asyncio.gather(*(future.check_for_progress(0.01) for future in futures))


def fuzz_live_slots(method, seed, tasks, states, written, gate, caplog):
    watch = Watch(caplog)
    with make_executor(method, 3) as executor, opened_in_the_end(gate):
        assert executor.submit(jobs.add, 1).result() == 2
        with Scribbler(executor, seed) as scribbler:
            reporting = [executor.submit(report_on, gate) for _ in range(2)]
            short = [executor.submit(sum_up) for _ in range(tasks)]
            plain = [executor.submit(jobs.add, n) for n in range(tasks)]
            doomed = [executor.submit(step_until, gate) for _ in range(tasks)]
            groups = [ProgressGroup(reporting + doomed), ProgressGroup(short)]
            for watched in (*reporting, *short[:20], *groups):
                watch.add(watched)
            for _ in range(states):
                for watched in (*reporting, *groups):
                    state = watched.state
                    check_validity({name: state[name] for name in ("n", "total", "status")})
            assert asyncio.run(awaited(short)) == [sum(SUMMED)] * tasks
            assert [future.result(DEADLINE) for future in plain] == [n + 1 for n in range(tasks)]
            for future in doomed:
                assert future.cancel()
            until(lambda: all(future.cancelled() for future in doomed))
            open_gate(gate)
            assert [future.result(DEADLINE) for future in reporting] == ["reported"] * 2
            assert groups[0].state["cancelled"] == tasks
            until(lambda: scribbler.written > written)
        watch.check()
    watch.check()
    for future in (*reporting, *short, *plain):
        check_validity(future.state)
        assert future.state["status"] == "done"


def test_any_bytes_in_the_slots_of_a_pool_that_runs_are_harmless(gate, caplog):
    fuzz_live_slots("process", 1, 20, 300, 1000, gate, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("method", START_METHODS)
def test_many_bytes_in_the_slots_of_a_pool_that_runs_are_harmless(method, gate, caplog):
    fuzz_live_slots(method, START_METHODS.index(method), 100, 2000, 10_000, gate, caplog)
