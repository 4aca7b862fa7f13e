"""The caller's side of a slot: consistent snapshots, and cancelling through it."""

import importlib
import multiprocessing
import sys
import threading
import time
from asyncio import CancelledError
from contextlib import suppress
from math import isfinite

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from progress_executor import _slots
from progress_executor._executors.process.memory import SharedMemory
from progress_executor._executors.process.worker import _end_with_caller
from progress_executor._monitor import Monitor
from progress_executor._slots import EMPTY, Slot
from progress_executor._speedups._layout import (
    ASKED,
    CALLER_BYTE,
    CANCEL,
    FLOAT,
    INSIDE,
    INSIDE_KIND_BYTE,
    MESSAGE_BYTE,
    MESSAGE_LENGTH_BYTE,
    MESSAGE_SIZE,
    MESSAGES_TAKEN,
    NONE,
    OPEN_BYTE,
    RECORD_BYTE,
    RECORD_END,
    SEQUENCE,
    SLOT_SIZE,
    STARTED_AT,
    STATUS_BYTE,
    STATUS_LENGTH_BYTE,
    STATUS_SIZE,
    TAKEN,
    TAKEN_BACK_BYTE,
    TASK_BYTE,
    TOTAL,
    TOTAL_KIND_BYTE,
    N,
)
from progress_executor._tasks import Task

from .conftest import DEADLINE, IMPLEMENTATIONS, until

PENDING = {"n": 0, "total": None, "status": "pending"}


@pytest.fixture
def module(updater):
    """The name of the module that has `Updater`, in each form."""
    return updater.__module__


@pytest.fixture
def switching():
    """Threads switch as often as Python can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_the_layout_has_room_for_all_its_fields():
    assert 8 * N + 16 <= RECORD_BYTE == TOTAL_KIND_BYTE < INSIDE_KIND_BYTE < OPEN_BYTE < STATUS_LENGTH_BYTE < 8 * TOTAL
    assert 8 * TOTAL + 8 <= 8 * INSIDE < 8 * INSIDE + 8 <= STATUS_BYTE
    assert (
        STATUS_BYTE + STATUS_SIZE
        <= RECORD_END
        <= 8 * STARTED_AT
        < 8 * MESSAGES_TAKEN + 8
        <= MESSAGE_LENGTH_BYTE
        < MESSAGE_BYTE
    )
    assert MESSAGE_BYTE + MESSAGE_SIZE <= SLOT_SIZE
    assert MESSAGE_SIZE < 256  # its length is a byte
    assert MESSAGE_LENGTH_BYTE % 64 == SLOT_SIZE % 64 == 0
    assert len(EMPTY) == SLOT_SIZE


def test_an_empty_slot_is_pending():
    assert Slot().snapshot() == PENDING
    assert Slot(bytearray(EMPTY)).snapshot() == PENDING


def test_a_slot_is_pending_until_it_starts(updater):
    slot = Slot()
    progress = updater(slot.buffer)
    progress.n, progress.total, progress.status = 3, 5, "x"
    assert slot.snapshot() == PENDING
    slot.start(time.time())
    assert slot.snapshot() == {"n": 3, "total": 5, "status": "x"}


def test_a_snapshot_says_running_where_the_task_says_nothing(slot, updater):
    assert slot.snapshot() == {"n": 0, "total": None, "status": "running"}
    progress = updater(slot.buffer)
    progress.status = "x"
    progress.status = ""
    assert slot.snapshot()["status"] == "running"


@pytest.mark.parametrize("n", [0, -1, 2**63 - 1, -(2**63), 0.5, -1e300, 5e-324])
@pytest.mark.parametrize("total", [None, 0, 7, 0.5, 2**63 - 1, 1e30])
def test_a_snapshot_has_the_numbers_as_they_were_written(slot, updater, n, total):
    progress = updater(slot.buffer)
    progress.n, progress.total = n, total
    snapshot = slot.snapshot()
    assert (type(snapshot["n"]), snapshot["n"]) == (type(n), n)
    assert (type(snapshot["total"]), snapshot["total"]) == (type(total), total)


def test_a_snapshot_does_not_change_afterwards(slot, updater):
    progress = updater(slot.buffer)
    progress.update(1)
    snapshot = slot.snapshot()
    progress.update(1)
    assert snapshot["n"] == 1
    snapshot["n"] = 99
    slot.buffer.cast("q")[SEQUENCE] = 1
    assert slot.snapshot()["n"] == 1


def test_a_write_that_never_ends_gives_the_last_consistent_snapshot(slot, updater):
    progress = updater(slot.buffer)
    progress._write(3, 5, "x")
    before = slot.snapshot()
    progress._write(4, 6, "y")
    slot.buffer.cast("q")[SEQUENCE] |= 1
    assert slot.snapshot() == before == {"n": 3, "total": 5, "status": "x"}


def test_the_final_state_waits_for_a_write_whose_thread_waits_for_a_processor(slot, updater, monkeypatch):
    task = Task(Monitor(), None)
    task.start(slot, time.time())
    updater(slot.buffer).n = 42
    slot.buffer.cast("q")[SEQUENCE] |= 1
    pauses = []

    def end_the_write_at_last(seconds):
        pauses.append(seconds)
        if len(pauses) == 300:
            slot.buffer.cast("q")[SEQUENCE] += 1

    monkeypatch.setattr(_slots, "sleep", end_the_write_at_last)
    task.finish("done")
    assert task.snapshot() == {"n": 42, "total": None, "status": "done"}
    assert pauses[-1] > 0  # and not only the GIL


def test_a_write_that_never_ended_says_running_if_there_was_no_snapshot_before(slot):
    slot.buffer.cast("q")[SEQUENCE] = 1
    assert slot.snapshot() == {"n": 0, "total": None, "status": "running"}


@pytest.mark.parametrize("n", [5, 0.5])
def test_a_count_is_seen_though_nothing_else_changed_and_what_is_broken_off_then_too(slot, updater, n):
    progress = updater(slot.buffer)
    progress._write(n, 101, "x")
    slot.snapshot()
    progress.update(1)
    assert slot.snapshot() == {"n": n + 1, "total": 101, "status": "x"}
    slot.buffer.cast("q")[SEQUENCE] |= 1
    assert slot.snapshot() == {"n": n + 1, "total": 101, "status": "x"}


def test_the_next_write_ends_one_that_was_broken_off(slot, updater):
    words = slot.buffer.cast("q")
    words[SEQUENCE] = 7
    updater(slot.buffer)._write(4, 6, "y")
    assert words[SEQUENCE] == 8
    assert slot.snapshot() == {"n": 4, "total": 6, "status": "y"}


@pytest.mark.parametrize("field", ["n", "total", "status"])
def test_a_write_that_fails_leaves_the_slot_readable(slot, updater, field):
    progress = updater(slot.buffer)
    progress._write(1, 2, "x")
    with pytest.raises((OverflowError, TypeError)):
        setattr(progress, field, 10**400)
    assert slot.snapshot() == {"n": 1, "total": 2, "status": "x"}


def check_validity(state):
    assert set(state) == {"n", "total", "status"}
    assert type(state["n"]) in (int, float)
    assert isfinite(state["n"])
    assert state["total"] is None or (type(state["total"]) in (int, float) and 0 <= state["total"] < float("inf"))
    assert type(state["status"]) is str
    assert state["status"].encode()


kinds = st.integers(0, 4)


@settings(deadline=None, max_examples=150, database=None)
@given(
    content=st.binary(min_size=SLOT_SIZE, max_size=SLOT_SIZE),
    fields=st.none() | st.tuples(kinds, kinds, st.integers(0, STATUS_SIZE + 1), st.binary(max_size=STATUS_SIZE)),
)
def test_any_bytes_give_a_valid_state(content, fields):
    slot = Slot(bytearray(content))
    if fields is not None:
        inside_kind, total_kind, length, text = fields
        slot.start(time.time())
        slot.buffer[8 * SEQUENCE] &= 0xFE
        slot.buffer[INSIDE_KIND_BYTE], slot.buffer[TOTAL_KIND_BYTE] = inside_kind, total_kind
        slot.buffer[STATUS_LENGTH_BYTE : STATUS_LENGTH_BYTE + 2] = length.to_bytes(2, "little")
        slot.buffer[STATUS_BYTE : STATUS_BYTE + len(text)] = text
    check_validity(slot.snapshot())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("word", [N + 1, TOTAL])
def test_numbers_that_no_updater_writes_are_not_shown(slot, updater, word, value):
    updater(slot.buffer)._write(1.0, 2.0, "x")
    before = slot.snapshot()
    slot.buffer.cast("d")[word] = value
    for _ in range(2):
        assert slot.snapshot() == before
        slot.buffer.cast("q")[SEQUENCE] += 2


def test_a_status_longer_than_its_room_is_not_shown(slot, updater):
    updater(slot.buffer)._write(1, 2, "x")
    before = slot.snapshot()
    slot.buffer[STATUS_BYTE : STATUS_BYTE + STATUS_SIZE + 1] = b"y" * (STATUS_SIZE + 1)
    slot.buffer[STATUS_LENGTH_BYTE : STATUS_LENGTH_BYTE + 2] = (STATUS_SIZE + 1).to_bytes(2, "little")
    slot.buffer.cast("q")[SEQUENCE] += 2
    assert slot.snapshot() == before


@pytest.mark.parametrize(("writes", "shown"), [(3, 4), (1_000_000, 1)])
def test_a_write_during_the_reading_makes_it_read_again(slot, updater, writes, shown):
    class Words:
        """The words of the slot; whoever reads n finds a write right behind it."""

        def __init__(self, words):
            self.words, self.value = words, 1

        def __getitem__(self, index):
            found = self.words[index]
            if index == N and self.value <= writes:
                self.value += 1
                progress._write(self.value, self.value, str(self.value))
            return found

    progress = updater(slot.buffer)
    progress._write(1, 1, "1")
    slot.snapshot()
    slot._words = Words(slot._words)
    assert slot.snapshot() == {"n": shown, "total": shown, "status": str(shown)}


def test_cancelling_is_seen_by_the_task_and_by_the_slot(slot, updater):
    progress = updater(slot.buffer)
    assert slot.may_begin()
    slot.cancel()
    assert not slot.may_begin()
    assert progress.cancelled
    with pytest.raises(CancelledError):
        progress.update()
    assert slot.snapshot()["n"] == 1


def test_renewed_it_is_the_slot_of_a_new_task(slot, updater):
    progress = updater(slot.buffer)
    progress._write(1e70, 0.5, "x")
    progress.sub(3, total=2).update(1)
    slot.cancel()
    slot.take_back()
    slot.snapshot()
    progress._detach()
    slot = slot.renewed()
    assert slot.buffer == EMPTY
    assert slot.may_begin()
    slot.buffer.cast("q")[SEQUENCE] = 1
    assert slot.snapshot() == PENDING
    slot.start(time.time())
    assert slot.snapshot() == {"n": 0, "total": None, "status": "running"}


def test_a_started_slot_differs_from_an_empty_one_in_the_time_only():
    slot = Slot()
    assert slot.started_at is None
    slot.start(12.5)
    assert slot.started_at == 12.5
    content = bytearray(slot.buffer)
    content[8 * STARTED_AT : 8 * STARTED_AT + 8] = bytes(8)
    assert content == EMPTY
    assert (content[TOTAL_KIND_BYTE], content[INSIDE_KIND_BYTE]) == (NONE, NONE)


# What keeps the stores and loads in their order, where a processor would not


def test_the_writer_has_a_fence_before_and_behind_what_it_writes(slot, module, monkeypatch):
    writer = importlib.import_module(module)
    seen = []
    monkeypatch.setattr(writer, "fence", lambda: seen.append((slot.buffer.cast("q")[SEQUENCE], slot.buffer[STATUS_BYTE])))
    progress = writer.Updater(slot.buffer)
    progress.status = "a"
    seen.append(slot.buffer.cast("q")[SEQUENCE])
    assert seen == [(1, 0), (1, ord("a")), 2]


def test_the_reader_has_a_fence_before_and_behind_what_it_reads(slot, monkeypatch):
    class Words:
        def __init__(self, words):
            self.words = words

        def __getitem__(self, index):
            seen.append(index)
            return self.words[index]

    seen = []
    monkeypatch.setattr(_slots, "fence", lambda: seen.append("fence"))
    slot._words = Words(slot._words)
    slot.snapshot()
    assert seen == [SEQUENCE, "fence", N, N + 1, "fence", SEQUENCE]


@pytest.mark.parametrize(
    ("stop", "byte", "asks", "stopped"),
    [(Slot.cancel, CALLER_BYTE, CANCEL, CANCEL), (Slot.take_back, TAKEN_BACK_BYTE, ASKED, TAKEN)],
)
def test_who_stops_a_task_and_who_starts_it_fence_before_a_look(slot, monkeypatch, stop, byte, asks, stopped):
    monkeypatch.setattr(_slots, "fence", lambda: slot.buffer.__setitem__(byte, stopped))
    assert not slot.may_begin()
    seen = []
    slot = slot.renewed()
    monkeypatch.setattr(_slots, "fence", lambda: seen.append(slot.buffer[byte]) or slot.start(time.time()))
    assert not stop(slot)  # it has begun meanwhile
    assert seen == [asks]


def test_a_start_and_a_take_back_that_see_each_other_agree(monkeypatch):
    slot, waits, began = Slot(), [], []
    worker = threading.Thread(target=lambda: began.append(slot.may_begin()))

    def start_meanwhile():
        monkeypatch.setattr(_slots, "fence", lambda: None)
        slot.start(time.time())
        worker.start()
        until(lambda: waits or began)

    monkeypatch.setattr(_slots, "fence", start_meanwhile)
    monkeypatch.setattr(_slots, "sleep", lambda seconds: waits.append(seconds) or time.sleep(seconds))
    taken = slot.take_back()
    worker.join(DEADLINE)
    assert (taken, began) == (False, [True])


# What somebody else has written there


@pytest.mark.parametrize("double", [float("nan"), float("inf"), float("-inf"), -1.0, 0.0])
def test_a_start_at_no_time_is_none(double):
    slot = Slot()
    slot.start(double)
    assert slot.started_at is None
    assert slot.snapshot() == PENDING


@pytest.mark.parametrize(("kind", "word"), [(FLOAT, float("nan")), (FLOAT, float("inf")), (NONE, 1.0), (77, 1.0)])
def test_an_updater_counts_on_from_zero_where_there_is_no_number(slot, updater, kind, word):
    progress = updater(slot.buffer)
    for field in (INSIDE_KIND_BYTE, TOTAL_KIND_BYTE, TASK_BYTE):
        slot.buffer[field] = kind
    slot.buffer[STATUS_BYTE] = 0xFF
    slot.buffer[STATUS_LENGTH_BYTE] = 1
    for field in (N + 1, TOTAL):
        slot.buffer.cast("d")[field] = word if kind == FLOAT or field == TOTAL else float("nan")
    assert (progress.n, progress.total, progress.status) == (0, None, "\ufffd")
    progress.update(2)
    assert progress.n == 2


# Reading while the task writes


def write_alike(progress, stop):
    """Writes in which all three fields are equal, in every form a number may have."""
    value = 0
    while not stop():
        value += 1
        for number in (value, value + 0.5, value + 1e30):
            progress._write(number, number, str(number))


def check_alike(state):
    assert str(state["n"]) == str(state["total"]) == state["status"]
    return state["n"]


def restart(progress, stop):
    """n is never more than total, and total belongs to the status."""
    while not stop():
        for size in (50, 5):
            progress._write(0, size, str(size))
            for _ in range(size):
                progress.update()


def check_restart(state):
    assert 0 <= state["n"] <= state["total"] == int(state["status"])
    return state["total"], state["n"]


def iterate(progress, stop):
    """n is never more than total."""
    while not stop():
        for size in (50, 5):
            for _ in progress(range(size)):
                pass
            progress.reset(total=3 * size)
            progress.update(3 * size)


def check_iterate(state):
    assert 0 <= state["n"] <= state["total"]
    return state["total"], state["n"]


WRITERS = {
    "all fields": (write_alike, check_alike),
    "restart": (restart, check_restart),
    "iterate": (iterate, check_iterate),
}


def sample(slot, check, samples=20_000, different=10):
    """Check so many snapshots, and more until so many of them differ: a reader is not kept from seeing progress."""
    seen = set()
    for _ in range(samples):
        seen.add(check(slot.snapshot()))
    until(lambda: seen.add(check(slot.snapshot())) or len(seen) >= different, "different snapshots")


A_MILLION = 1_000_000  # in the four ways to combine the forms of writer and reader


@pytest.fixture
def read_with(monkeypatch):
    """Have snapshots taken with the fence of the other form, too."""

    def set_(reader):
        module = pytest.importorskip(IMPLEMENTATIONS[reader], reason="the compiled form, _updater_c, was not built")
        monkeypatch.setattr(_slots, "fence", module.fence)

    return set_


@pytest.mark.parametrize("name", WRITERS)
def test_a_snapshot_is_never_a_mixture_of_two_writes_of_a_thread(slot, updater, switching, name):
    sample_thread(slot, updater, name)


@pytest.mark.slow
@pytest.mark.parametrize("reader", IMPLEMENTATIONS)
def test_of_a_million_snapshots_none_is_a_mixture_of_two_writes_of_a_thread(slot, updater, switching, read_with, reader):
    read_with(reader)
    sample_thread(slot, updater, "all fields", A_MILLION // 4, 1000)


def sample_thread(slot, updater, name, *numbers):
    writer, check = WRITERS[name]
    stopped, wrote = threading.Event(), threading.Event()

    def write():
        writer(progress, lambda: wrote.set() or stopped.is_set())

    progress = updater(slot.buffer)
    progress._write(1, 1, "1")
    check(slot.snapshot())
    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert wrote.wait(DEADLINE)
        sample(slot, check, *numbers)
    finally:
        stopped.set()
        thread.join()


def write_in_process(module, memory, life, name):
    """Writes until it is cancelled, or whoever samples is no more."""
    _end_with_caller(life)
    progress = importlib.import_module(module).Updater(memory.view)
    with suppress(CancelledError):
        WRITERS[name][0](progress, lambda: False)
    progress._detach()


@pytest.mark.parametrize("name", WRITERS)
def test_a_snapshot_is_never_a_mixture_of_two_writes_of_a_process(module, name):
    sample_process(module, name)


@pytest.mark.slow
@pytest.mark.parametrize("reader", IMPLEMENTATIONS)
def test_of_a_million_snapshots_none_is_a_mixture_of_two_writes_of_a_process(module, read_with, reader):
    read_with(reader)
    sample_process(module, "all fields", A_MILLION // 4, 1000)


def sample_process(module, name, *numbers):
    check = WRITERS[name][1]
    memory = SharedMemory(SLOT_SIZE)
    slot = Slot(memory.view).renewed()
    progress = importlib.import_module(module).Updater(slot.buffer)
    progress._write(1, 1, "1")
    progress._detach()
    slot.start(time.time())
    first = check(slot.snapshot())  # what is told while a write takes too long
    context = multiprocessing.get_context("spawn")
    life, ours = context.Pipe(duplex=False)
    process = context.Process(target=write_in_process, args=(module, memory, life, name))
    with life, ours:
        process.start()
        memory.close_handle()
        try:
            until(lambda: check(slot.snapshot()) != first or not process.is_alive(), "the first write")
            sample(slot, check, *numbers)
            slot.cancel()
            process.join(DEADLINE)
            assert process.exitcode == 0
        finally:
            process.kill()
            process.join()
