"""Security: who can read a segment, what is unpickled, and that no bytes in a slot harm the caller."""

import asyncio
import io
import json
import os
import random
import re
import stat
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from rich.console import Console
from rich.progress import DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from progress_executor import ProcessPoolProgressExecutor, ProgressGroup, arena
from progress_executor._speedups._layout import (
    ALONE,
    BIG,
    FLOAT,
    INT,
    MODE_BYTE,
    N_KIND_BYTE,
    NONE,
    NUMBER_SIZE,
    PART_BYTE,
    PLUS,
    SCALE,
    SCALED,
    SEQUENCE,
    SLOT_SIZE,
    STARTED_AT,
    STATUS_BYTE,
    STATUS_LENGTH_BYTE,
    TOTAL,
    TOTAL_KIND_BYTE,
    N,
)

from . import jobs
from .conftest import DEADLINE, SHM, START_METHODS, make_executor, open_gate, segments, until
from .test_slots import check_validity

needs_shm = pytest.mark.skipif(not os.path.isdir(SHM), reason=f"{SHM} is where Linux shows shared memory")


# Who can get at a segment


@needs_shm
def test_a_segment_is_readable_by_its_owner_only_whatever_the_umask_is():
    before = os.umask(0)
    try:
        with ProcessPoolProgressExecutor(1) as executor:
            executor.submit(jobs.add, 1).result()
            (name,) = segments()
            found = os.stat(os.path.join(SHM, name))
    finally:
        os.umask(before)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_uid == os.geteuid()


def test_the_name_of_a_segment_has_64_random_bits(monkeypatch):
    names = []

    class Memory:
        _fd = 0

        def __init__(self, name, create, size):
            names.append(name)

    monkeypatch.setattr(arena, "SharedMemory", Memory)
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: None, raising=False)
    for _ in range(200):
        arena._create(SLOT_SIZE)
    tails = {re.fullmatch(rf"psm_{os.getpid()}_([0-9a-f]{{16}})", name)[1] for name in names}
    assert len(tails) == 200
    for column in zip(*tails, strict=True):
        assert set(column) == set("0123456789abcdef")


def test_a_segment_that_is_there_already_is_not_taken(monkeypatch):
    taken = arena._create(SLOT_SIZE)
    try:
        monkeypatch.setattr(arena.secrets, "token_hex", lambda _: taken.name.rpartition("_")[2])
        with (
            ProcessPoolProgressExecutor(1) as executor,
            pytest.raises(FileExistsError, match="no shared memory for the progress"),
        ):
            executor.submit(jobs.add, 1)
    finally:
        taken.close()
        taken.unlink()


# What is unpickled

UNPICKLED = """
import json, os, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from operator import add
from progress_executor import ProcessPoolProgressExecutor
from progress_executor.executors.process import RemoteTask

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


@needs_shm
def test_nothing_is_unpickled_but_what_the_standard_librarys_pool_unpickles(tmp_path):
    found = {}
    for cls in ("stock", "ours"):
        folder = tmp_path / cls
        folder.mkdir()
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", UNPICKLED, cls, folder]
        subprocess.run(command, check=True, timeout=DEADLINE)
        for side in ("caller", "worker"):
            found[cls, side] = [tuple(json.loads(line)) for line in (folder / side).read_text().splitlines()]
    assert found["ours", "caller"] == found["stock", "caller"]
    # The same, and a class of ours that has the call in it; the call is unpickled apart, and so comes behind.
    remote = ("progress_executor.executors.process", "RemoteTask")
    assert sorted(set(found["ours", "worker"]) - {remote}) == sorted(set(found["stock", "worker"]))
    assert len(found["ours", "worker"]) == len(found["stock", "worker"]) + 2


# Any bytes in a slot

INTS = [0, 1, -1, 7, 1000, 2**63 - 1, -(2**63)]
BIGS = [2**255 - 1, -(2**255), 2**64, 0, -1, 10**40]
FLOATS = [0.0, -0.0, 5e-324, -5e-324, 1e-300, 0.7, 1.0, -1.0, 1e18, 1e300, 1.7e308, -1.7e308]
NO_FLOATS = [float("nan"), float("inf"), float("-inf")]
TIMES = [*NO_FLOATS, 0.0, -5.0, 5e-324, 1.0, 1e300]
TEXTS = [
    *(b"", b"x", b"done", b"\x1b[2J\r\n", b"a" * 256, b"[red]", b"%s{0}", b"\0", b"\xff\xfe", b"\xed\xa0\x80"),
    "\u202eabc\u0301".encode(),
    "💥".encode() * 64,
]


def put_number(chance, record, word, kind_byte):
    kind = record[kind_byte] = chance.choice([INT, FLOAT, BIG, NONE, NONE + 1])
    if kind == FLOAT:
        struct.pack_into("d", record, 8 * word, chance.choice(FLOATS + NO_FLOATS))
    elif kind == BIG:
        record[8 * word : 8 * word + NUMBER_SIZE] = chance.choice(BIGS).to_bytes(NUMBER_SIZE, sys.byteorder, signed=True)
    else:
        struct.pack_into("q", record, 8 * word, chance.choice(INTS))


def garbage(chance):
    """Bytes for a slot: random ones, or such that most of them pass for what an Updater writes."""
    record = bytearray(chance.randbytes(SLOT_SIZE))
    if chance.random() < 0.9:
        struct.pack_into("q", record, 8 * SEQUENCE, 2 * chance.randrange(1000))
        struct.pack_into("d", record, 8 * STARTED_AT, chance.choice([*TIMES, *[time.time()] * 4, time.time() + 1e9]))
        put_number(chance, record, N, N_KIND_BYTE)
        put_number(chance, record, TOTAL, TOTAL_KIND_BYTE)
        record[PART_BYTE] = chance.choice([ALONE, ALONE, PLUS, SCALED, SCALED, SCALED + 1])
        struct.pack_into("4d", record, 8 * SCALE, *chance.choices(FLOATS * 9 + NO_FLOATS, k=4))
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
                executor._board.deliver(source.feed, now=True)
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


class Scribbler(threading.Thread):
    """Writes garbage into every slot of a pool, all the time; only the caller's own bytes stay."""

    def __init__(self, executor, seed):
        super().__init__()
        chance = random.Random(seed)
        self._garbage = [garbage(chance)[1:] for _ in range(1999)]
        self._memory = executor._arena._memory.buf
        self._stopped = threading.Event()
        self.written = 0

    def run(self):
        while not self._stopped.is_set():
            for at in range(0, len(self._memory) - SLOT_SIZE + 1, SLOT_SIZE):
                piece = self._garbage[self.written % len(self._garbage)]
                self._memory[at + MODE_BYTE] = piece[0]
                self._memory[at + 3 : at + SLOT_SIZE] = piece[2:]
                self.written += 1
            time.sleep(0)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc_info):
        self._stopped.set()
        self.join()
        self._memory = None


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
