"""Parts of a task, `progress.sub`: the same tests over both forms of `Updater`, and through the executors."""

import gc
import io
import itertools
import linecache
import signal
import sys
import time
import weakref
from asyncio import CancelledError
from contextlib import contextmanager, nullcontext, suppress
from fractions import Fraction
from math import inf, isclose, nan

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from progress_executor import ProgressGroup, SyncProgressExecutor, Updater
from progress_executor._slots import EMPTY, Slot
from progress_executor._speedups import _parts, _updater
from progress_executor._speedups._layout import (
    CONTROL,
    FLOAT,
    INSIDE,
    INSIDE_KIND_BYTE,
    OPEN_BYTE,
    PUBLISH_BYTE,
    RECORD_BYTE,
    SEQUENCE,
    N,
)
from progress_executor._state import drawable

from .conftest import CONCURRENT, DEADLINE, make_executor, open_gate, until
from .test_build import TOP
from .test_slots import check_validity
from .test_updater import BAD, exactly, in_threads, named, pushing


@pytest.fixture
def progress(updater, slot):
    progress = updater(slot.buffer)
    progress.total = 10
    return progress


@pytest.fixture
def n(progress, slot):
    """The task's n: as the caller sees it, and as the task does."""

    def read():
        progress._publish_parts()
        shown, counted = slot.snapshot()["n"], progress.n
        assert isclose(shown, counted, rel_tol=1e-12)
        return counted

    return read


class OnPurposeError(Exception):
    pass


def fail(part):
    """Leave the part's block by an exception."""
    with suppress(OnPurposeError), part:
        raise OnPurposeError


def is_fast(slot, act):
    """Whether `act` is steps of one addition: no lock, and no write of the record."""
    words = slot.buffer.cast("q")
    sequence = words[SEQUENCE]
    act()
    return (words[CONTROL], words[SEQUENCE]) == (0, sequence)


# What a part counts


def test_a_part_counts_the_fraction_that_is_done_of_its_weight(progress, n):
    progress.update(1)
    part = progress.sub(3, total=4)
    assert exactly(n()) == exactly(1)
    for done in (0.75, 1.5, 2.25, 3):
        part.update()
        assert n() == 1 + done
    assert (part.n, part.total) == (4, 4)


def test_the_total_that_is_seen_is_the_tasks(progress, slot):
    part = progress.sub(3, total=4)
    part.total = 7
    part.update()
    assert slot.snapshot()["total"] == progress.total == 10
    progress.total = 20
    assert slot.snapshot()["total"] == progress.total == 20
    assert part.total == 7


@pytest.mark.parametrize("done", [0, 1, 4])
def test_leaving_its_block_counts_it_whole(progress, n, done):
    with progress.sub(3, total=4) as part:
        part.update(done)
    assert exactly(n()) == exactly(3)


def test_closing_counts_it_whole_once(progress, n):
    part = progress.sub(3, total=4)
    for _ in range(3):
        part.close()
        assert exactly(n()) == exactly(3)
    fail(progress.sub(3))


def test_an_exception_leaves_it_where_it_was(progress, n):
    with pytest.raises(OnPurposeError), progress.sub(3, total=4) as part:
        part.update(1)
        raise OnPurposeError
    assert n() == 0.75
    progress.update(1)
    assert n() == 1.75


def test_an_exception_at_a_whole_number_leaves_an_int(progress, n):
    with pytest.raises(OnPurposeError), progress.sub(6, total=100) as part:
        part.update(50)
        raise OnPurposeError
    assert exactly(n()) == exactly(3)


def test_breaking_out_of_its_loop_in_its_block_is_no_exception(progress, n):
    with progress.sub(3) as part:
        for _ in part("abcd"):
            break
    assert n() == 3


def test_a_part_whose_total_is_unknown_counts_at_its_end_only(progress, n):
    with progress.sub(3) as part:
        for _ in part(letter for letter in "abcd"):
            assert n() == 0
        assert (part.n, part.total) == (4, None)
    assert exactly(n()) == exactly(3)


def test_a_part_that_gets_to_know_its_total_counts_from_then_on(progress, n):
    part = progress.sub(3)
    part.update(1)
    part.total = 4
    assert n() == 0.75
    part.total = None
    assert n() == 0
    part.update(1)
    part.total = 2
    assert n() == 3


def test_a_part_of_nothing_is_done_at_once(progress, n):
    part = progress.sub(3, total=0)
    assert n() == 3
    part.total = 2
    assert n() == 0
    assert list(part([])) == []
    assert n() == 3
    part.update(-1)
    assert n() == 3


def test_a_part_counts_no_more_than_its_weight_and_not_less_than_nothing(progress, n):
    part = progress.sub(3, total=4)
    part.update(9)
    assert exactly(n()) == exactly(3)
    part.update(-6)
    assert n() == 2.25
    part.update(-6)
    assert exactly(n()) == exactly(0)
    part.close()
    assert exactly(n()) == exactly(3)


def test_iterating_begins_a_part_anew(progress, n):
    part = progress.sub(3, total=2)
    part.update(1)
    assert n() == 1.5
    assert [n() for _ in part("abcd")] == [0, 0.75, 1.5, 2.25]
    assert n() == 3
    assert [n() for _ in part("ab", total=3)] == [0, 1]
    assert n() == 2


@pytest.mark.parametrize(
    ("act", "then"),
    [
        (lambda part: setattr(part, "n", 1), 0.75),
        (lambda part: setattr(part, "n", 2.0), 1.5),
        (lambda part: part.reset(), 0),
        (lambda part: part.reset(8), 0),
        (lambda part: setattr(part, "total", 6), 1),
        (lambda part: setattr(part, "total", 1), 3),
        (lambda part: setattr(part, "total", 2.5), 2.4),
        (lambda part: part(-1), 0.75),
        (lambda part: part.update(0.5), 1.875),
        (lambda part: part(amount=10**30), 3),
    ],
)
def test_whatever_changes_a_part_changes_its_share(progress, n, act, then):
    part = progress.sub(3, total=4)
    part.update(2)
    act(part)
    assert n() == then
    part.close()
    assert exactly(n()) == exactly(3)


@pytest.mark.parametrize("start", [0, 0.5, 2**50, -5])
@pytest.mark.parametrize("counted", [1, 0.25, 2**80])
def test_numbers_of_all_kinds_go_together(progress, n, start, counted):
    progress.n = start
    with progress.sub(2, total=2 * counted) as part:
        part.update(counted)
        assert n() == start + 1
    assert exactly(n()) == exactly(start + 2)


def test_the_largest_numbers_have_fractions(progress, n):
    for weight, total in ((1e200, 1e200), (2**254, 2.0**254), (1e300, 2**250)):
        part = progress.sub(weight, total)
        part.update(total / 4)
        assert isclose(n(), weight / 4)
        part.n = 0
        fail(part)


def test_the_caller_sees_an_int_where_n_is_whole(progress, slot):
    part = progress.sub(3, total=6)
    for expected in (0.5, 1, 1.5, 2):
        slot.snapshot()  # which asks
        part.update(1)
        assert exactly(slot.snapshot()["n"]) == exactly(expected)
    progress.update(1)
    assert exactly(slot.snapshot()["n"]) == exactly(3)


# Parts of parts


def test_parts_have_parts(progress, n):
    with progress.sub(6, total=3) as outer:
        with outer.sub(2, total=4) as inner:
            inner.update(1)
            assert (n(), outer.n) == (1, 0.5)
            inner.update(3)
            assert (n(), outer.n) == (4, 2)
        assert exactly(outer.n) == exactly(2)
        with outer.sub(1):
            assert n() == 4
        assert exactly(outer.n) == exactly(3)
        assert n() == 6
    assert exactly(n()) == exactly(6)


@pytest.mark.parametrize(("total", "counted"), [(None, 0), (0, 3), (2, 0.75)])
def test_the_parts_of_a_part_count_as_its_total_says(progress, n, total, counted):
    outer = progress.sub(3, total)
    inner = outer.sub(1, total=2)
    inner.update(1)
    assert n() == counted
    assert outer.n == 0.5
    fail(inner)
    assert n() == counted
    fail(outer)
    assert n() == counted


@pytest.mark.parametrize("depth", [40, 600])
def test_there_is_no_limit_to_the_depth(progress, n, depth):
    parts = [progress]
    while len(parts) < depth:
        parts.append(parts[-1].sub(2, total=2))
    parts[-1].update(1)
    assert n() == 1
    for part in reversed(parts[1:]):
        part.close()
    assert exactly(n()) == exactly(2)


def test_an_exception_in_a_part_of_a_part_leaves_all_where_they_were(progress, n):
    with pytest.raises(OnPurposeError), progress.sub(6, total=3) as outer, outer.sub(2, total=4) as inner:
        outer.update(1)
        inner.update(1)
        raise OnPurposeError
    assert exactly(n()) == exactly(3)
    assert (outer.n, inner.n) == (1.5, 1)


def test_a_part_ends_with_all_its_parts(progress, n):
    outer = progress.sub(6, total=3)
    inner = outer.sub(2, total=4)
    innermost = inner.sub(1)
    innermost.update(1)
    outer.close()
    assert exactly(n()) == exactly(6)
    for part in (inner, innermost):
        with pytest.raises(RuntimeError, match="has ended"):
            part.update()
        part.close()
    assert exactly(n()) == exactly(6)
    progress.update(1)
    assert exactly(n()) == exactly(7)


def test_more_weight_than_the_total_goes_beyond_it_in_the_task_but_not_in_a_part(progress, n):
    with progress.sub(8), progress.sub(8, total=2) as part:
        with part.sub(3, total=3) as inner:
            inner.update(1)
            assert n() == 4
            inner.update(1)
            assert n() == 8
            inner.update(1)
            assert n() == 8
        assert part.n == 3
    assert exactly(n()) == exactly(16)


# At the same time


def test_two_parts_at_once_count_each_for_itself(progress, n):
    one, other = progress.sub(3, total=3), progress.sub(4, total=2)
    one.update()
    other.update()
    assert n() == 3
    one.update()
    assert n() == 4
    fail(one)
    assert n() == 4
    other.update()
    assert n() == 6
    other.close()
    assert exactly(n()) == exactly(6)
    assert (one.n, other.n) == (2, 2)


def test_the_task_may_count_beside_its_parts(progress, n):
    part = progress.sub(4, total=8)
    part.update(1)
    progress.update(2)
    assert n() == 2.5
    progress(1)
    part.update(1)
    assert n() == 4
    progress.update(0.25)
    assert n() == 4.25
    part.close()
    assert n() == 7.25


@pytest.mark.parametrize("inner", [False, True])
def test_assigning_n_includes_what_open_parts_have_counted(progress, n, inner):
    subject = progress.sub(10, total=10) if inner else progress
    part = subject.sub(4, total=8)
    part.update(4)
    for value in (4, 5):
        subject.n = value
        assert exactly(subject.n) == exactly(value)
        assert n() == value
    part.update(2)
    assert n() == 6
    subject.reset()
    assert n() == 0
    part.update(1)
    assert n() == 0.5
    assert [n() for _ in subject("abc", total=10)] == [0, 1, 2]
    part.close()
    assert n() == 3.5


def test_assigning_n_reads_as_assigned_whatever_the_fractions_are(progress, n):
    for total in range(1, 60):
        part = progress.sub(3, total=total)
        part.update(total // 2)
        progress.n = 0.1 * total
        assert progress.n == 0.1 * total
        progress.n = 0
        fail(part)


# Exact sums


@pytest.mark.parametrize("weights", [[3, 5, 2], [2**62, 2**62 - 8, 7], [True, 1]])
def test_ints_add_up_exactly(progress, weights):
    for weight in weights:
        with progress.sub(weight, total=7) as part:
            part.update(3)
    assert exactly(progress.n) == exactly(sum(weights))


@pytest.mark.parametrize("weights", [[0.1] * 10, [0.7, 0.2, 0.1], [0.3] * 10 + [1] * 7, [1e16, *[0.5] * 8, 1]])
def test_floats_add_up_as_if_they_had_been_rounded_once(progress, slot, weights):
    for weight in weights:
        with progress.sub(weight, total=3) as part:
            part.update(1)
    exact = float(sum(map(Fraction, weights)))
    assert exactly(progress.n) == exactly(slot.snapshot()["n"]) == exactly(exact)


def test_assigning_n_forgets_what_was_rounded(progress, n):
    for start in (0, 0.0):
        for _ in range(6):
            progress.sub(0.1).close()
        progress.n = start
        progress.sub(0.1).close()
        assert exactly(n()) == exactly(0.1)
        progress.n = start


def test_thirds_that_were_broken_off_add_up(progress, n):
    for _ in range(3):
        part = progress.sub(1, total=3)
        part.update(1)
        fail(part)
    assert n() == 1


def test_a_sum_beyond_64_bits_is_a_float_and_never_infinite(progress, n):
    progress.n = 2**63 - 2
    with progress.sub(1):
        pass
    assert exactly(n()) == exactly(2**63 - 1)
    with progress.sub(1):
        pass
    assert exactly(n()) == exactly(2.0**63)
    progress.n = sys.float_info.max
    with progress.sub(sys.float_info.max), progress.sub(sys.float_info.max, total=2) as part:
        part.update(1)
    assert n() == sys.float_info.max


# What is wrong


@pytest.mark.parametrize(
    ("weight", "error"), [*BAD[:-3], (10**400, OverflowError), (0, ValueError), (-1, ValueError), (-0.5, ValueError)]
)
def test_a_bad_weight_makes_no_part(progress, n, weight, error):
    with pytest.raises(error):
        progress.sub(weight)
    progress.update()
    assert exactly(n()) == exactly(1)


@pytest.mark.parametrize(("total", "error"), [(-1, ValueError), (nan, ValueError), (inf, ValueError), ("x", TypeError)])
def test_a_bad_total_makes_no_part_and_is_not_assigned(progress, n, total, error):
    with pytest.raises(error):
        progress.sub(1, total)
    part = progress.sub(3, total=4)
    for act in (lambda: setattr(part, "total", total), lambda: part.reset(total), lambda: part("abc", total=total)):
        part.n = 1
        with pytest.raises(error):
            act()
        assert (part.n, part.total, n()) == (1, 4, 0.75)


def test_numbers_beyond_all_floats_are_an_error_and_change_nothing(progress, n):
    for arguments in ((10**400,), (1, 10**400)):
        with pytest.raises(OverflowError):
            progress.sub(*arguments)
    part = progress.sub(3, total=4)
    part.update(1)
    acts = [
        lambda: part.update(10**400),
        lambda: setattr(part, "n", 10**400),
        lambda: setattr(part, "total", 10**400),
        lambda: part("abc", total=10**400),
        lambda: progress.update(10**400),
    ]
    for act in acts:
        with pytest.raises(OverflowError):
            act()
        assert (part.n, part.total, n()) == (1, 4, 0.75)


@pytest.mark.parametrize(("weight", "total"), named([(2.5, 5), (Fraction(5, 2), 5.0), (True, 2)]))
def test_a_weight_may_be_any_number(progress, n, weight, total):
    part = progress.sub(weight, total)
    part.update(1)
    assert n() == float(weight) / total


COUNTING = {
    "update": lambda part: part.update(),
    "update(float)": lambda part: part.update(0.5),
    "call": lambda part: part(1),
    "iterate": lambda part: part("abc"),
    "n": lambda part: setattr(part, "n", 1),
    "total": lambda part: setattr(part, "total", 1),
    "status": lambda part: setattr(part, "status", "x"),
    "reset": lambda part: part.reset(),
    "sub": lambda part: part.sub(1),
    "with": lambda part: part.__enter__(),
}


@pytest.mark.parametrize("end", [lambda part: part.close(), fail, lambda part: part.__exit__()])
@pytest.mark.parametrize("name", COUNTING)
def test_a_part_that_has_ended_is_not_to_be_counted_with(progress, slot, n, name, end):
    part = progress.sub(3, total=4)
    part.update(4)
    part.status = "ended"
    end(part)
    before = bytes(slot.buffer)[RECORD_BYTE:]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="this part has ended"):
            COUNTING[name](part)
    assert bytes(slot.buffer)[RECORD_BYTE:] == before
    assert (part.n, part.total, part.status, n()) == (4, 4, "ended", 3)


def test_a_part_that_has_ended_may_be_asked_and_closed(progress, n):
    part = progress.sub(3, total=4)
    part.close()
    part.check()
    part.refresh()
    part.close()
    fail(progress.sub(2))
    assert part.cancelled is False
    assert n() == 3


def test_a_loop_over_a_part_that_ends_in_it_raises(progress):
    items = progress.sub(3)
    with pytest.raises(RuntimeError, match="has ended"):
        for _ in items("abc"):
            items.close()
    assert exactly(progress.n) == exactly(3)


# The status


def test_the_status_is_the_tasks_whoever_sets_it_and_stays(progress, slot):
    progress.status = "loading"
    with progress.sub(3) as part:
        assert part.status == "loading"
        part.status = "parsing"
        assert slot.snapshot()["status"] == progress.status == part.status == "parsing"
        with part.sub(1) as inner:
            inner.status = "lines"
            progress.update(1)
            assert slot.snapshot()["status"] == progress.status == part.status == "lines"
    assert slot.snapshot()["status"] == progress.status == part.status == "lines"
    progress.status = ""
    assert slot.snapshot()["status"] == "running"


# Given as an argument


def parse(lines, progress):
    for _ in progress(range(lines)):
        pass


def test_a_part_that_nobody_has_any_more_ends_where_it_is(progress, slot, n):
    parse(5, progress.sub(3))
    assert exactly(n()) == exactly(3)
    part = progress.sub(4, total=4)
    part.update(1)
    del part
    assert exactly(n()) == exactly(4)
    assert is_fast(slot, lambda: progress.update(1))
    assert exactly(n()) == exactly(5)


def test_a_part_is_there_as_long_as_one_of_its_parts_is(progress, n):
    part = progress.sub(3, total=3).sub(2, total=2)
    part.update(1)
    assert n() == 1
    part.close()
    assert n() == 2
    del part
    assert exactly(n()) == exactly(2)


def test_a_part_in_a_cycle_ends_when_that_is_collected(progress, n):
    part = progress.sub(3, total=3)
    part.update(1)
    cycle = [part, part("ab")]
    cycle.append(cycle)
    next(cycle[1])
    next(cycle[1])
    del part, cycle
    assert n() == 1.5
    gc.collect()
    assert exactly(n()) == exactly(1.5)
    progress.update(1)
    assert n() == 2.5


def test_a_thousand_parts_leave_nothing_behind(progress, slot):
    def work():
        with progress.sub(1, total=2) as part:
            part.update(1)
            parse(2, part.sub(1))
        parse(3, progress.sub(1))
        with suppress(RuntimeError):
            part.sub(1)

    work()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(1000):
            work()
        assert len(gc.get_objects()) - before < 10
    finally:
        gc.enable()
    assert exactly(progress.n) == exactly(2002)


def test_a_task_and_its_parts_are_gone_without_the_collector(updater):
    class Owner:
        def push(self, now):
            pass

    gc.collect()
    gc.disable()
    try:
        owner = Owner()
        progress = updater(push=owner.push)
        part = progress.sub(3)
        inner = part.sub(1)
        inner.update(1)
        gone = [weakref.ref(thing) for thing in (owner, progress, part, inner)]
        del owner, progress, part, inner
        assert [reference() for reference in gone] == [None] * 4
        assert not [thing for thing in gc.get_objects() if isinstance(thing, _parts.Node)]
    finally:
        gc.enable()


# What a step costs


@pytest.mark.parametrize("steps", [lambda part: part.update(1), lambda part: parse(50, part), lambda part: part(3)])
def test_the_steps_of_a_part_are_those_of_a_task(progress, slot, steps):
    progress.update(1)
    for part in (progress.sub(3, total=100), progress.sub(3, total=100).sub(1, total=1)):
        part.update(1)
        assert is_fast(slot, lambda part=part: [part.update(1) for _ in range(50)])
        items = part(range(50))
        next(items)
        assert is_fast(slot, lambda items=items: [next(items) for _ in range(20)])


def test_a_snapshot_asks_and_the_next_step_of_any_part_publishes(progress, slot):
    one, other = progress.sub(1, total=10), progress.sub(1, total=10)
    inner = other.sub(1, total=1)
    words = slot.buffer.cast("q")
    for part in (one, inner, progress, one):
        part.update(0)
        before, sequence = slot.snapshot()["n"], words[SEQUENCE]
        part.update(0)
        assert words[SEQUENCE] == sequence + 2
        assert is_fast(slot, lambda part=part: [part.update(0) for _ in range(5)])
        one.update(2)
        assert slot.snapshot()["n"] == before
        part.update(0)
        assert slot.snapshot()["n"] == pytest.approx(before + 0.2)


@pytest.mark.parametrize("end", [lambda part: part.close(), fail])
def test_the_task_is_as_fast_as_before_when_its_parts_have_ended(progress, slot, end):
    part = progress.sub(4, total=2)
    part.update(1)
    end(part)
    slot.snapshot()
    assert not slot.buffer[PUBLISH_BYTE]
    assert is_fast(slot, progress.update)


# Cancelling


@pytest.mark.parametrize("who", ["part", "task", "other part", "inner", "ended"])
@pytest.mark.parametrize("name", [*(name for name in COUNTING if name != "with"), "check", "refresh"])
def test_everybody_hears_of_cancelling(progress, slot, who, name):
    part, other = progress.sub(3, total=4), progress.sub(3, total=4)
    inner, ended = part.sub(1), progress.sub(1)
    ended.close()
    other.update(1)
    part.update(1)
    subject = {"part": part, "task": progress, "other part": other, "inner": inner, "ended": ended}[who]
    assert not subject.cancelled
    slot.cancel()
    assert subject.cancelled
    act = {**COUNTING, "check": lambda part: part.check(), "refresh": lambda part: part.refresh()}[name]
    for _ in range(2):
        with pytest.raises(CancelledError):
            act(subject)


def test_a_step_of_a_part_that_is_cancelled_counts(progress, slot, n):
    part = progress.sub(3, total=3)
    for seen, _ in enumerate(part(range(3))):
        if seen == 1:
            slot.cancel()
            break
    with pytest.raises(CancelledError):
        part.update(1)
    assert n() == 2


def test_a_block_that_was_done_when_it_was_cancelled_counts_whole_and_raises(progress, slot, n):
    with pytest.raises(CancelledError), progress.sub(3):
        slot.cancel()
    assert exactly(n()) == exactly(3)


def test_a_block_that_is_left_by_being_cancelled_stays_where_it_was(progress, slot, n):
    with pytest.raises(CancelledError), progress.sub(3, total=6) as part:
        part.update(1)
        slot.cancel()
        part.update(1)
    assert exactly(n()) == exactly(1)


def test_closing_a_part_never_raises(progress, slot, n):
    part = progress.sub(3)
    slot.cancel()
    part.close()
    part.close()
    assert exactly(n()) == exactly(3)


# Pushing


def test_a_part_pushes_as_the_task_does(updater):
    progress, pushed = pushing(updater)
    part = progress.sub(3)
    pushed(lambda: part.update(), [False])
    pushed(lambda: part.update(0.5), [False])
    pushed(lambda: list(part("abc")), [False] * 4)
    pushed(lambda: setattr(part, "status", "x"), [False])
    pushed(lambda: progress.update(), [False])
    pushed(lambda: part.refresh(), [True])
    pushed(lambda: part.sub(1), [])
    pushed(lambda: fail(part.sub(1)), [False])
    pushed(lambda: part.close(), [False])
    pushed(lambda: progress.close(), [True])


def test_a_push_sees_what_a_part_counted_and_may_cancel(updater, slot):
    def push(now):
        seen.append(slot.snapshot()["n"])
        if len(seen) == 3:
            slot.cancel()

    seen = []
    progress = updater(slot.buffer, push)
    with pytest.raises(CancelledError), progress.sub(4) as part:
        list(part("abcdefgh"))
    assert seen == [0, 0.5, 1, 1]


# The task's end


@pytest.mark.parametrize("who", ["task", "part", "inner"])
def test_after_the_tasks_end_all_go_on_and_leave_the_slot_alone(progress, slot, who):
    part = progress.sub(3, total=4)
    inner = part.sub(2, total=2)
    {"task": progress, "part": part, "inner": inner}[who].update(1)
    items = inner(range(4))
    next(items)
    before = progress.n
    progress._detach()
    slot = slot.renewed()
    for _ in items:
        pass
    assert progress.n == before + 1.5
    part.update(1)
    part.status = "y"
    inner.close()
    progress.update(1)
    part.close()
    progress.sub(1).close()
    assert progress.n >= 4
    assert bytes(slot.buffer) == EMPTY
    slot.cancel()
    for updater in (progress, part, inner):
        updater.check()


# Threads


def test_threads_with_a_part_each_lose_nothing_and_the_caller_sees_n_grow(progress, slot):
    def work(part):
        with part:
            for _ in range(3000):
                part.update(1)

    def iterate(part):
        with part:
            parse(3000, part)

    def count():
        for _ in range(500):
            progress.update(1)

    def nest(part):
        for _ in range(30):
            with part.sub(1, total=10) as inner:
                parse(10, inner)

    def look():
        while progress.n < 507:
            seen.append(slot.snapshot()["n"])

    seen = []
    parts = [progress.sub(1, total=3000) for _ in range(4)]
    nested = [progress.sub(1, total=30) for _ in range(2)]
    progress.sub(1, total=1).update(1)
    in_threads(
        *[lambda part=part: work(part) for part in parts[:2]],
        *[lambda part=part: iterate(part) for part in parts[2:]],
        *[lambda part=part: nest(part) for part in nested],
        *(count, look),
    )
    assert [part.n for part in parts + nested] == [3000] * 4 + [30] * 2
    assert [round(after - before, 9) >= 0 for before, after in itertools.pairwise(seen)] == [True] * (len(seen) - 1)
    for part in nested:
        part.close()
    assert exactly(progress.n) == exactly(slot.snapshot()["n"]) == exactly(507)


def test_threads_that_share_a_part_lose_no_count(progress, slot):
    def work():
        for _ in range(5000):
            part.update(1)

    def disturb():
        for _ in range(300):
            progress.update(1)
            progress.sub(1, total=2).update(1)

    part = progress.sub(1, total=30_000)
    in_threads(work, work, work, disturb)
    assert exactly(part.n) == exactly(15_000)
    progress.refresh()
    assert progress.n == slot.snapshot()["n"] == 450.5


def test_threads_that_go_on_when_their_part_has_ended_are_told(progress, slot):
    def work(act):
        with pytest.raises(RuntimeError, match="has ended"):
            while True:
                act()
        told.append(1)

    def end():
        until(lambda: part.n > 1000)
        part.close()
        progress.update(1)

    told = []
    part = progress.sub(3, total=10**9)
    in_threads(lambda: work(part.update), lambda: work(lambda: part.update(1)), lambda: work(lambda: parse(100, part)), end)
    assert len(told) == 3
    assert exactly(progress.n) == exactly(slot.snapshot()["n"]) == exactly(4)


def test_threads_that_go_on_when_the_task_has_ended_leave_the_slot_alone(progress, slot):
    def work(part):
        for _ in range(3000):
            part.update(1)

    def end():
        progress._detach()
        slot.renewed()  # in the same memory

    parts = [progress.sub(1, total=3000) for _ in range(3)]
    in_threads(*[lambda part=part: work(part) for part in parts], end)
    assert bytes(slot.buffer) == EMPTY
    assert progress.n == 3


def test_a_snapshot_is_never_a_mixture_of_two_parts(progress, slot):
    """The n of one with what was counted before another would be a step up, and down again."""

    def work():
        for _ in range(400):
            with progress.sub(1, total=5) as part:
                parse(5, part)

    def look():
        while seen[-1] < 400:
            seen.append(slot.snapshot()["n"])

    seen = [0]
    in_threads(work, look)
    assert seen == sorted(seen)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
def test_a_signal_handler_that_counts_on_other_parts_loses_no_step(progress):
    handled = 0

    def handle(number, frame):
        nonlocal handled
        handled += 1
        other.update(1)
        progress.update(1)
        with progress.sub(1) as part:
            part.update(1)

    part, other = progress.sub(1, total=10**9), progress.sub(1, total=10**9)
    steps = 0
    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 2e-4, 2e-4)
    try:
        while handled < 300:
            part.update(1)
            with part.sub(1):
                pass
            steps += 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (part.n, other.n) == (steps, handled)
    part.n = other.n = 0
    assert progress.n == 2 * handled


class OutsideError(BaseException):
    pass


def interrupted_at(line, act):
    """Do `act`, but raise at so many lines of ours; False if it has not so many."""
    files = {_parts.__file__, _updater.__file__}

    def trace(frame, event, argument):
        nonlocal line
        if frame.f_code.co_filename not in files:
            return None
        # Python looks for no signals between the end of a write and `clear`, nor between that of a block and the release of
        # its lock; but it traces there.
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and text not in ("self._changes.clear()", "pass") and not text.startswith("with "):
            line -= 1
            if line == 0:
                raise OutsideError
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except OutsideError:
        return True
    finally:
        sys.settrace(before)
    return False


ACTS = {
    "step": lambda progress, part, other: part.update(1),
    "publish": lambda progress, part, other: progress._publish_parts(),
    "assign": lambda progress, part, other: setattr(part, "n", 1),
    "begin": lambda progress, part, other: _kept.append(other.sub(1)),
    "end": lambda progress, part, other: other.close(),
    "end by an exception": lambda progress, part, other: fail(other),
    "end of another": lambda progress, part, other: part.close(),
}


@pytest.mark.parametrize("name", ACTS)
def test_an_interrupt_at_any_line_leaves_parts_that_can_be_counted_with(updater, name):
    for line in itertools.count(1):
        slot = Slot()
        slot.start(time.time())
        progress = updater(slot.buffer)
        part, other = progress.sub(4, total=8), progress.sub(4, total=8)
        part.update(1)
        other.update(3)
        if not interrupted_at(line, lambda: ACTS[name](progress, part, other)):  # noqa: B023
            break
        assert (part.n in (1, 2), other.n) == (True, 3)
        for _ in range(2):
            for subject in (other, progress, part, progress):
                before = [updater.n for updater in (progress, part, other)]
                with suppress(RuntimeError):
                    for _ in range(4):
                        subject.update(1)
                    grown = [after.n - n for after, n in zip((progress, part, other), before, strict=True)]
                    expected = {progress: [4, 0, 0], part: [2, 4, 0], other: [2, 0, 4]}[subject]
                    if subject.n <= 8 or subject is progress:
                        assert grown == expected, line
                    progress.refresh()
                    assert slot.snapshot()["n"] == progress.n
        _kept.clear()
    _kept.clear()
    assert line > (5 if updater is _updater.Updater else 0)


@pytest.mark.parametrize("name", ACTS)
def test_n_may_be_asked_at_any_line(updater, name):
    """As a signal handler does."""
    counted = []
    for asks in (False, True):
        progress = updater()
        part, other = progress.sub(4, total=8), progress.sub(4, total=8)
        part.update(1)
        other.update(3)
        with asking(progress, part, other) if asks else nullcontext():
            for _ in range(3):
                with suppress(RuntimeError):
                    ACTS[name](progress, part, other)
                progress.update(1)
                with suppress(RuntimeError):
                    other.update(1)
        counted.append((progress.n, part.n, other.n))
        _kept.clear()
    assert counted[0] == counted[1]


@contextmanager
def asking(*updaters):
    def trace(frame, event, argument):
        if frame.f_code.co_filename not in (_parts.__file__, _updater.__file__):
            return None
        if event == "line":
            assert [updater.n >= 1 for updater in updaters]
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


# Any sequence of calls


class Model:
    """A part, or the task, by fractions."""

    def __init__(self, parent=None, weight=1, total=None):
        self.parent, self.weight, self.total = parent, weight, total
        self.own, self.parts, self.ended = Fraction(0), [], False
        self.exact = True  # whether n is an int
        if parent is not None:
            parent.parts.append(self)

    @property
    def inside(self):
        return sum((part.share for part in self.parts), Fraction(0))

    @property
    def n(self):
        return self.own + self.inside

    @n.setter
    def n(self, value):
        self.exact = isinstance(value, int) and self.inside.denominator == 1
        self.own = Fraction(value) - self.inside

    @property
    def share(self):
        if self.total is None:
            return Fraction(0)
        done = self.n / Fraction(self.total) if self.total else 1
        return Fraction(self.weight) * min(max(done, 0), 1)

    def step(self, amount):
        self.exact = self.exact and isinstance(amount, int)
        self.own += Fraction(amount)

    def end(self, whole):
        if self.ended or self.parent is None:
            return
        share = Fraction(self.weight) if whole else self.share
        self.parent.parts.remove(self)
        self.parent.own += share
        self.parent.exact = self.parent.exact and share.denominator == 1 and isinstance(self.weight, int)
        self._close()

    def _close(self):
        self.own, parts, self.parts, self.ended = self.n, self.parts, [], True
        for part in parts:
            part._close()


amounts = st.one_of(st.integers(-3, 12), st.sampled_from([0.5, 0.1, 2**70, -(2**64)]))
totals = st.one_of(st.none(), st.integers(0, 20), st.sampled_from([0.5, 7.25, 2**66]))
weights = st.one_of(st.integers(1, 9), st.sampled_from([0.5, 0.1, 2**65, 1e-3]))
who = st.integers(0, 7)
sequences = st.lists(
    st.one_of(
        st.tuples(st.just("sub"), who, weights, totals),
        st.tuples(st.just("sub"), who, weights, totals),
        st.tuples(st.just("step"), who, amounts),
        st.tuples(st.just("step"), who, st.integers(1, 3)),
        st.tuples(st.just("steps"), who, st.integers(1, 5)),
        st.tuples(st.just("n"), who, amounts),
        st.tuples(st.just("total"), who, totals),
        st.tuples(st.just("iterate"), who, st.integers(0, 6), st.booleans()),
        st.tuples(st.just("end"), who, st.booleans()),
        st.tuples(st.just("drop"), who),
        st.tuples(st.just("status"), who),
    ),
    max_size=25,
)


def close(real, exact):
    return isclose(real, exact, rel_tol=1e-9, abs_tol=1e-9 * (1 + 2.0**72 if abs(exact) > 2**50 else 1))


def test_a_part_may_have_a_weight_beyond_all_ints_that_n_can_hold(updater):
    for weight in (1e80, 1e300):
        progress = updater()
        part = progress.sub(weight, total=2)
        part.update(1)
        assert progress.n == weight / 2
        fail(part)
        assert progress.n == weight / 2
        part = progress.sub(weight, total=2)
        part.update(1)
        progress.n = 5
        assert progress.n == 5


class Both:
    """A task with its parts, each beside what it should count; a method is a call in a sequence."""

    def __init__(self, progress):
        self.family = [(progress, Model())]

    def sub(self, index, weight, total):
        real, model = self.family[index]
        part = real.sub(weight, total)
        self.family.append((part, Model(model, weight, total)))

    def step(self, index, amount):
        real, model = self.family[index]
        real.update(amount)
        model.step(amount)

    def steps(self, index, count):
        for _ in range(count):
            self.step(index, 1)

    def n(self, index, n):
        real, model = self.family[index]
        real.n = n
        model.n = n

    def total(self, index, total):
        real, model = self.family[index]
        if model.parent is not None:
            real.total = total
            model.total = total

    def iterate(self, index, size, known):
        real, model = self.family[index]
        for _ in real(range(size) if known else (item for item in range(size))):
            pass
        model.n = 0
        if model.parent is not None:
            model.total = size if known else None
        model.step(size)

    def end(self, index, whole):
        real, model = self.family[index]
        if model.parent is None:
            return
        if whole:
            real.close()
        else:
            real.__exit__(OnPurposeError, None, None)
        model.end(whole)

    def drop(self, index):
        """Nobody has it any more, nor its parts."""
        gone = [self.family[index][1]]
        if gone[0].parent is None:
            return
        for _, model in self.family:  # a part is behind its parent
            if model.parent in gone:
                gone.append(model)
        for other in reversed(gone):
            self.family = [pair for pair in self.family if pair[1] is not other]
            other.end(False)

    def status(self, index, status):
        self.family[index][0].status = status
        assert all(real.status == status for real, _ in self.family)

    def end_all(self):
        while len(self.family) > 1:
            self.end(-1, True)
            self.family.pop()


@settings(deadline=None, max_examples=250, database=None)
@example(sequence=[("sub", 0, 2**65, None), ("step", 1, 0.5), ("total", 1, 1), ("sub", 0, 1, None), ("n", 0, 0)])
@given(sequence=sequences)
def test_any_sequence_of_calls_counts_what_fractions_count(updater, sequence):
    slot = Slot()
    slot.start(time.time())
    both = Both(updater(slot.buffer))
    both.family[0][0].total = 10
    big = False  # a float next to an int of more than 53 bits cannot say the sum
    for number, (name, index, *arguments) in enumerate(sequence):
        index %= len(both.family)
        ended, refused = both.family[index][1].ended, False
        big = big or any(isinstance(argument, int) and abs(argument) > 2**50 for argument in arguments)
        try:
            getattr(both, name)(index, *(arguments or [str(number)][: name == "status"]))
        except RuntimeError:
            refused = True
        assert refused == (ended and name not in ("end", "drop"))
        both.family[0][0]._publish_parts()
        shown = slot.snapshot()["n"]
        if not big:
            assert all(close(real.n, model.n) for real, model in both.family)
            assert close(shown, both.family[0][1].n)
    both.end_all()
    progress, model = both.family[0]
    assert exactly(slot.snapshot()["n"]) == exactly(progress.n)
    if model.exact and not big:
        assert exactly(progress.n) == exactly(int(model.own))
    elif not big:
        assert close(progress.n, model.own)


trees = st.recursive(
    st.tuples(st.integers(1, 9), st.integers(0, 5), st.booleans(), st.just([])),
    lambda inner: st.tuples(st.integers(1, 9), st.integers(0, 5), st.booleans(), st.lists(inner, max_size=4)),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150, database=None)
@given(tree=trees)
def test_any_tree_of_blocks_counts_what_fractions_count(updater, tree):
    def do(progress, node):
        """What it did, as (fraction of its weight, whether it was left by an exception)."""
        weight, steps, fails, inner = node
        total = sum(part[0] for part in inner) + steps
        done = Fraction(0)
        try:
            with progress.sub(weight) as part:
                part.total = total
                for _ in range(steps):
                    part.update()
                    done += 1
                for one in inner:
                    fraction, failed = do(part, one)
                    done += one[0] * fraction
                    if failed:
                        raise OnPurposeError
                    assert close(part.n, done)
                if fails:
                    raise OnPurposeError
        except OnPurposeError:
            return min(done / total, 1) if total else Fraction(1), True
        return Fraction(1), False

    slot = Slot()
    slot.start(time.time())
    progress = updater(slot.buffer)
    fraction, failed = do(progress, tree)
    assert close(progress.n, tree[0] * fraction)
    assert exactly(progress.n) == exactly(slot.snapshot()["n"])
    if not failed:
        assert exactly(progress.n) == exactly(tree[0])


# The reader


@settings(deadline=None, max_examples=300, database=None)
@given(
    kind=st.integers(0, 4),
    number=st.binary(min_size=8, max_size=8),
    double=st.none() | st.floats() | st.sampled_from([0.0, 1.7e308, -1.7e308]),
    own=st.none() | st.floats(),
    open_=st.integers(0, 255),
)
def test_any_sum_of_parts_gives_a_valid_state(kind, number, double, own, open_):
    slot = Slot()
    slot.start(time.time())
    slot.buffer[INSIDE_KIND_BYTE], slot.buffer[OPEN_BYTE] = kind, open_
    slot.buffer[8 * INSIDE : 8 * INSIDE + 8] = number
    for word, value in ((INSIDE, double), (N + 1, own)):
        if value is not None:
            slot.buffer.cast("d")[word] = value
    slot.buffer.cast("q")[SEQUENCE] = 2
    for _ in range(2):
        state = slot.snapshot()
        check_validity(state)


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_sum_that_no_updater_writes_is_not_shown(progress, slot, value):
    progress.sub(4, total=4).update(1)
    part = progress.sub(4, total=3)
    part.update(1)
    progress.refresh()
    before = slot.snapshot()
    slot.buffer[INSIDE_KIND_BYTE] = FLOAT
    slot.buffer.cast("d")[INSIDE] = value
    slot.buffer.cast("q")[SEQUENCE] += 2
    assert slot.snapshot() == before
    slot.buffer[INSIDE_KIND_BYTE] = FLOAT + 1
    slot.buffer.cast("q")[SEQUENCE] += 2
    assert slot.snapshot() == before


def test_a_slot_that_is_renewed_has_no_parts(progress, slot, updater):
    part = progress.sub(4, total=4)
    part.update(1)
    progress._detach()
    slot = slot.renewed()
    slot.start(time.time())
    updater(slot.buffer).update(5)
    assert slot.snapshot()["n"] == 5


# Through the executors


def work_in_parts(fails, progress):
    progress.total = 10
    parse(5, progress.sub(3))
    with progress.sub(5) as part:
        for _ in part(range(4)):
            part.status = "second"
    with progress.sub(2, total=4) as part:
        part.update(1)
        if fails:
            raise OnPurposeError
    return progress.n


def wait_in_a_part(gate, progress):
    progress.total = 10
    progress.update(1)
    with progress.sub(4, total=8) as outer, outer.sub(8, total=2) as inner:
        inner.update(1)
        until(lambda: inner.check() or open_or_not(gate))


def open_or_not(gate):
    import os

    return os.path.exists(gate)


def leave_parts_open(kept, progress):
    progress.total = 10
    part = progress.sub(4, total=8)
    part.update(2)
    inner = part.sub(4, total=2)
    inner.update(1)
    _kept.append((part, inner))
    return progress.n


_kept = []


def test_a_task_of_parts_tells_what_it_has_done(executor):
    future = executor.submit(work_in_parts, False)
    seen = []
    future.add_progress_callback(lambda old, new: seen.append(new["n"]))
    assert exactly(future.result(DEADLINE)) == exactly(10)
    assert future.state == {"n": 10, "total": 10, "status": "done"}
    assert exactly(future.state["n"]) == exactly(10)
    assert seen == sorted(seen)


def test_a_task_that_fails_in_a_part_stays_where_it_was(executor):
    future = executor.submit(work_in_parts, True)
    assert isinstance(future.exception(DEADLINE), OnPurposeError)
    assert future.state == {"n": 8.5, "total": 10, "status": "failed"}


def test_a_task_that_ends_with_open_parts_has_counted_what_is_done(executor):
    future = executor.submit(leave_parts_open, None)
    assert future.result(DEADLINE) == 2
    assert future.state == {"n": 2, "total": 10, "status": "done"}
    _kept.clear()


def test_a_task_is_cancelled_in_a_part(pool, gate):
    future = pool.submit(wait_in_a_part, gate)
    until(lambda: future.state["n"] == 3)
    assert future.state == {"n": 3, "total": 10, "status": "running"}
    assert future.cancel()
    until(future.cancelled)
    assert future.state == {"n": 3, "total": 10, "status": "cancelled"}


@pytest.mark.parametrize("kind", CONCURRENT)
def test_a_group_sums_tasks_of_parts(kind, gate):
    with make_executor(kind) as executor:
        group = ProgressGroup(executor.submit(wait_in_a_part, gate) for _ in range(2))
        until(lambda: group.state["n"] == 6)
        open_gate(gate)
        group.result(DEADLINE)
        assert (group.state["n"], group.state["total"]) == (10, 20)


def test_the_callbacks_of_a_sync_task_see_the_steps_of_a_part():
    def work(progress: Updater):
        with progress.sub(4) as part:
            for _ in part("abcd"):
                progress.refresh()

    with SyncProgressExecutor() as executor:
        future = executor.submit(work)
        seen = []
        future.add_progress_callback(lambda old, new: seen.append(new["n"]))
        future.result()
    assert [n for n, _ in itertools.groupby(seen)] == [0, 1, 2, 3, 4]


def test_the_recipe_counts_whole_and_at_each_step(updater):
    text = (TOP / "docs" / "recipes.md").read_text(encoding="utf-8")
    section = text.split("## One bar for a task of several parts")[1].split("\n## ")[0]
    code = section.split("```python\n")[1].split("```")[0]

    def download(url, part):
        for _ in range(4):
            seen.append(progress.n)
            part.update(50)
        return ["a b", "c d"]

    def fit(rows, fold, part):
        seen.append((progress.n, progress.status))
        list(part("abc"))

    seen = []
    names = {"size_of": lambda url: 200, "download": download, "fit": fit}
    exec(code, names)
    progress = updater()
    names["work"]("", progress)
    assert seen[:5] == [0, 0.5, 1, 1.5, (3, "fold 0")]
    assert seen[-1] == (3 + 4 * 7 / 5, "fold 4")
    assert exactly(progress.n) == exactly(10)


def thirds(progress):
    progress.total = 9
    progress.update(2)
    with progress.sub(2, total=3) as part:
        part.update(1)
        raise OnPurposeError


def test_a_bar_shows_no_sixteen_digits():
    out = io.StringIO()
    with SyncProgressExecutor() as executor:
        future = executor.submit(thirds)
        future.add_tqdm_callback(init_kwargs={"file": out})
        future.exception()
    assert future.state["n"] == 2 + 2 / 3
    assert "| 2.667/9 [" in out.getvalue()


@pytest.mark.parametrize(
    ("n", "shown"),
    [(2 / 3, 0.667), (-2 / 3, -0.667), (1e-5 / 3, 3.33e-6), (10**8 / 3, 33333333.333), (2.5, 2.5), (10**30, 10**30)],
)
def test_a_bar_shows_three_digits_of_a_fraction(n, shown):
    assert exactly(drawable(n)) == exactly(shown)
