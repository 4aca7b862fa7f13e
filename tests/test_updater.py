"""The task's side, `Updater`: the same tests over its interpreted and its compiled form."""

import copy
import enum
import gc
import importlib
import itertools
import os
import pickle
import signal
import sys
import threading
import time
import tracemalloc
import weakref
from asyncio import CancelledError
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from math import inf, isinf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from progress_executor._slots import EMPTY, Slot
from progress_executor._speedups._layout import PUBLISH_BYTE, STATUS_SIZE

from .conftest import IMPLEMENTATIONS, load


@pytest.fixture
def progress(updater, slot):
    return updater(slot.buffer)


@pytest.fixture
def cancelled(progress, slot):
    """An Updater of a task that is to stop."""
    progress.n = 10
    progress.total = 20
    slot.cancel()
    return progress


def exactly(value):
    return type(value), value


def read(progress):
    return exactly(progress.n), exactly(progress.total), progress.status


class Hinted:
    """An iterable of three that has a length hint only."""

    def __init__(self, hint):
        self.hint = hint

    def __iter__(self):
        return iter("abc")

    def __length_hint__(self):
        return self.hint


class OldStyle:
    """An iterable by `__getitem__` only."""

    def __getitem__(self, index):
        return "ab"[index]


def generator(size):
    yield from range(size)


def in_threads(*functions):
    """Run each function in a thread of its own, switching as often as Python can."""
    errors = []
    ready = threading.Barrier(len(functions))

    def run(function):
        try:
            ready.wait()
            function()
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run, args=(function,)) for function in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors


# Iteration


@pytest.mark.parametrize(
    ("make", "total"),
    [
        (lambda: [1, 2, 3], 3),
        (lambda: "äbc", 3),
        (lambda: b"abc", 3),
        (lambda: {"a": 1, "b": 2}, 2),
        (lambda: range(5), 5),
        (lambda: iter([1, 2, 3]), 3),
        (lambda: Hinted(7), 7),
        (lambda: Hinted(NotImplemented), None),
        (lambda: OldStyle(), None),
        (lambda: generator(4), None),
        (lambda: map(str, range(3)), None),
        (lambda: np.arange(3), 3),
        (list, 0),
        (lambda: "", 0),
        (lambda: generator(0), None),
    ],
)
def test_iterating_yields_the_items_and_takes_total_from_the_length_or_its_hint(progress, make, total):
    progress.update(99)
    items = progress(make())
    assert read(progress) == (exactly(0), exactly(total), "")
    items = list(items)
    assert items == list(make())
    assert exactly(progress.n) == exactly(len(items))


@pytest.mark.parametrize(
    ("given", "kept"), [(7, 7), (0, 0), (2.5, 2.5), (np.int64(7), 7), (Fraction(1, 2), 0.5), (10**40, 1e40)]
)
def test_a_total_that_is_given_wins_over_the_length(progress, given, kept):
    for _ in progress([1, 2], total=given):
        assert exactly(progress.total) == exactly(kept)
    assert progress.n == 2


def test_iterating_without_a_known_length_forgets_the_total_before(progress):
    progress.total = 5
    progress(generator(2))
    assert progress.total is None


def test_a_length_beyond_what_len_can_say_is_unknown(progress):
    items = progress(range(10**30))
    assert progress.total is None
    assert [next(items), next(items)] == [0, 1]


def test_an_item_counts_when_the_body_for_it_has_finished(progress):
    assert [progress.n for _ in progress("abc")] == [0, 1, 2]
    assert progress.n == 3


def test_the_iterable_itself_sees_the_items_before_as_counted(progress):
    def items():
        for _ in range(3):
            seen.append(progress.n)
            yield
        seen.append(progress.n)

    seen = []
    for _ in progress(items()):
        pass
    assert seen == [0, 1, 2, 3]


def test_break_does_not_count_its_item(progress):
    for item in progress(range(5)):
        if item == 2:
            break
    assert progress.n == 2


def test_an_exception_in_the_body_does_not_count_its_item(progress):
    def work():
        for item in progress([1, 2, 0, 4]):
            1 / item

    with pytest.raises(ZeroDivisionError):
        work()
    assert progress.n == 2


def test_an_exception_of_the_iterable_comes_through(progress):
    def items():
        yield 1
        raise LookupError("on purpose")

    with pytest.raises(LookupError, match="on purpose"):
        list(progress(items()))
    assert progress.n == 1


def test_iterating_goes_on_after_an_exception_as_the_iterator_does(progress):
    class Flaky:
        def __init__(self):
            self.calls = itertools.count(1)

        def __iter__(self):
            return self

        def __next__(self):
            call = next(self.calls)
            if call == 2:
                raise TimeoutError
            if call == 4:
                raise StopIteration
            return call

    items = progress(Flaky())
    assert next(items) == 1
    with pytest.raises(TimeoutError):
        next(items)
    assert list(items) == [3]
    assert progress.n == 2


def test_an_iteration_that_ended_stays_ended(progress):
    items = progress([1])
    assert next(items) == 1
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(items)
    assert progress.n == 1


def test_an_iteration_is_an_iterator(progress):
    items = progress([1, 2])
    assert next(items) == 1
    assert list(iter(items)) == [2]
    assert progress.n == 2


def test_iterations_may_be_nested(progress):
    for _ in progress(range(2)):
        list(progress(range(3)))
    assert (progress.n, progress.total) == (4, 3)


def test_steps_within_the_body_add_to_the_items(progress):
    for _ in progress(range(3)):
        progress.update(10)
    assert progress.n == 33


@pytest.mark.parametrize("start", [0.5, 2**63 - 9, -(2**63)])
def test_iterating_counts_on_from_whatever_n_is_assigned_in_between(progress, start):
    for item in progress(range(6)):
        if item == 1:
            progress.n = start
    assert exactly(progress.n) == exactly(start + 5)


# Cancelling

COUNTING = {
    "update": lambda progress: progress.update(5),
    "update(float)": lambda progress: progress.update(5.0),
    "call": lambda progress: progress(5),
    "n": lambda progress: setattr(progress, "n", 15),
    "total": lambda progress: setattr(progress, "total", 30),
    "status": lambda progress: setattr(progress, "status", "x"),
    "refresh": lambda progress: progress.refresh(),
    "reset": lambda progress: progress.reset(),
    "reset(total)": lambda progress: progress.reset(30),
    "check": lambda progress: progress.check(),
    "iterate": lambda progress: progress([1, 2, 3]),
}
STORED = {
    "update": (15, 20, ""),
    "update(float)": (15.0, 20, ""),
    "call": (15, 20, ""),
    "n": (15, 20, ""),
    "total": (10, 30, ""),
    "status": (10, 20, "x"),
    "refresh": (10, 20, ""),
    "reset": (0, 20, ""),
    "reset(total)": (0, 30, ""),
    "check": (10, 20, ""),
    "iterate": (0, 3, ""),
}


@pytest.mark.parametrize("name", COUNTING)
def test_what_counts_or_publishes_raises_when_cancelled_after_it_stored_what_it_was_given(cancelled, name):
    with pytest.raises(CancelledError):
        COUNTING[name](cancelled)
    n, total, status = STORED[name]
    assert read(cancelled) == (exactly(n), exactly(total), status)


@pytest.mark.parametrize("name", COUNTING)
def test_cancelling_raises_again_and_again(cancelled, name):
    for _ in range(3):
        with pytest.raises(CancelledError):
            COUNTING[name](cancelled)


@pytest.mark.parametrize("start", [0, 0.5])
def test_cancelling_is_noticed_by_a_step_whatever_n_is(progress, slot, start):
    progress.n = start
    slot.cancel()
    with pytest.raises(CancelledError):
        progress.update(1)
    assert exactly(progress.n) == exactly(start + 1)


def test_cancelling_is_noticed_before_the_first_item(progress, slot):
    taken = []
    items = progress(taken.append(item) or item for item in range(3))
    slot.cancel()
    with pytest.raises(CancelledError):
        next(items)
    assert not taken
    assert progress.n == 0


def test_cancelling_is_noticed_where_there_is_no_item(progress, slot):
    items = progress([])
    slot.cancel()
    with pytest.raises(CancelledError):
        next(items)


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_cancelling_is_noticed_before_the_next_item_and_after_the_last(progress, slot, last):
    def work():
        for item in progress([1, 2, 3, 4]):
            seen.append(item)
            if item == last:
                slot.cancel()

    seen = []
    with pytest.raises(CancelledError):
        work()
    assert seen == list(range(1, last + 1))
    assert progress.n == last


def test_an_iteration_that_was_cancelled_raises_again_and_again(progress, slot):
    items = progress([1, 2, 3])
    next(items)
    slot.cancel()
    for _ in range(3):
        with pytest.raises(CancelledError):
            next(items)
    assert progress.n == 1


def test_bad_values_are_told_before_the_cancelling(cancelled):
    with pytest.raises(TypeError):
        cancelled.update("x")
    with pytest.raises(ValueError, match="total"):
        cancelled.total = -1
    assert read(cancelled) == (exactly(10), exactly(20), "")


def test_cancelled_asks_and_check_raises_without_counting(progress, slot):
    assert progress.cancelled is False
    assert progress.check() is None
    slot.cancel()
    assert progress.cancelled is True
    with pytest.raises(CancelledError):
        progress.check()
    assert progress.n == 0


def test_reading_and_closing_never_raise_when_cancelled(cancelled):
    assert read(cancelled) == (exactly(10), exactly(20), "")
    cancelled.close()
    cancelled.close()
    with cancelled as entered:
        assert entered is cancelled


def test_closing_publishes_and_does_not_raise_when_cancelled(updater, slot):
    pushes = []
    progress = updater(slot.buffer, pushes.append)
    slot.cancel()
    progress.close()
    with progress:
        pass
    assert pushes == [True, True]


def test_leaving_with_lets_the_exception_of_its_body_through(progress):
    with pytest.raises(LookupError), progress:
        raise LookupError


# Adding numbers


class Indexed:
    def __index__(self):
        return 3


class Floated:
    def __float__(self):
        return 0.25


class Both:
    """Has an index, as an array does, that turns out not to be one."""

    def __index__(self):
        raise TypeError("only integer arrays")

    def __float__(self):
        return 0.25


GOOD = [
    (1, 1),
    (0, 0),
    (-3, -3),
    (True, 1),
    (Indexed(), 3),
    (np.int64(3), 3),
    (np.uint8(200), 200),
    (np.uint64(2**64 - 1), 2.0**64),
    (2.5, 2.5),
    (-0.5, -0.5),
    (np.float32(0.5), 0.5),
    (np.float64(0.1), 0.1),
    (Decimal("1.5"), 1.5),
    (Fraction(1, 4), 0.25),
    (Floated(), 0.25),
    (Both(), 0.25),
    (2**62, 2**62),
    (2**63 - 1, 2**63 - 1),
    (2**63, 2.0**63),
    (-(2**63), -(2**63)),
    (-(2**63) - 1, -(2.0**63)),
    (10**30, 1e30),
]
BAD = [
    (nan, ValueError),
    (inf, ValueError),
    (-inf, ValueError),
    (np.float64(nan), ValueError),
    (Decimal("Infinity"), ValueError),
    ("1", TypeError),
    (b"1", TypeError),
    (None, TypeError),
    (1j, TypeError),
    (object(), TypeError),
    ([1], TypeError),
    (int, TypeError),
    (10**400, OverflowError),
    (Fraction(10**400, 3), OverflowError),
]


def named(pairs):
    return [pytest.param(*pair, id=f"{type(pair[0]).__name__}-{pair[0]!r:.24}".split(" object")[0]) for pair in pairs]


@pytest.mark.parametrize("ways", ["update", "call"])
@pytest.mark.parametrize(("amount", "added"), named(GOOD))
def test_an_amount_is_added_as_an_exact_int_or_float(progress, slot, amount, added, ways):
    add = progress.update if ways == "update" else progress
    assert add(amount) is None
    assert exactly(progress.n) == exactly(added)
    assert exactly(slot.snapshot()["n"]) == exactly(added)


@pytest.mark.parametrize("start", [5, 0.5, 1e30])
@pytest.mark.parametrize(("amount", "error"), named(BAD))
def test_a_bad_amount_adds_nothing(progress, slot, amount, error, start):
    progress.n = start
    with pytest.raises(error):
        progress.update(amount)
    assert exactly(progress.n) == exactly(slot.snapshot()["n"]) == exactly(start)


@pytest.mark.parametrize(("value", "error"), named([bad for bad in BAD if bad[0] is not None]))
@pytest.mark.parametrize("name", ["n", "total"])
def test_a_bad_value_is_not_assigned(progress, name, value, error):
    progress.n = progress.total = 5
    with pytest.raises((error, ValueError) if name == "total" else error):
        setattr(progress, name, value)
    assert read(progress) == (exactly(5), exactly(5), "")


@pytest.mark.parametrize(("value", "stored"), named(GOOD))
@pytest.mark.parametrize("name", ["n", "total"])
def test_a_number_is_assigned_as_an_exact_int_or_float(progress, slot, name, value, stored):
    if name == "total" and stored < 0:
        value, stored = (-value, -stored) if stored > -(2**63) else (2**63, 2.0**63)
    setattr(progress, name, value)
    assert exactly(getattr(progress, name)) == exactly(slot.snapshot()[name]) == exactly(stored)


def test_without_an_amount_it_adds_one(progress):
    progress.update()
    progress()
    assert exactly(progress.n) == exactly(2)


def test_half_steps_add_up(progress):
    progress.update(0.5)
    assert exactly(progress.n) == exactly(0.5)
    progress(0.5)
    assert exactly(progress.n) == exactly(1.0)
    progress.update(1)
    progress(np.int64(1))
    assert exactly(progress.n) == exactly(3.0)


def test_ints_are_exact_up_to_64_bits_and_floats_beyond(progress, slot):
    for start, step in [(2**63 - 4, 1), (-(2**63) + 3, -1), (2**61, 2**61), (0, 2**62 - 1)]:
        progress.n = start
        for count in (1, 2, 1, 0):
            progress.update(start + count * step - progress.n)
            assert exactly(progress.n) == exactly(slot.snapshot()["n"]) == exactly(start + count * step)
    for start, step in [(2**63 - 1, 1), (-(2**63), -1), (2**62, 2**62), (0, 2**63)]:
        progress.n = start
        progress.update(step)
        assert exactly(progress.n) == exactly(slot.snapshot()["n"]) == exactly(float(start + step))
        progress.update(step)
        assert exactly(progress.n) == exactly(slot.snapshot()["n"]) == exactly(float(start + step) + step)
    progress.n = 3
    progress.update(1)
    assert exactly(progress.n) == exactly(4)


def test_ints_and_floats_add_up_beside_each_other(progress, slot):
    progress.update(2**53 + 1)
    progress.update(0.5)
    progress.update(-(2**53))
    assert exactly(progress.n) == exactly(slot.snapshot()["n"]) == exactly(1.5)
    progress.update(-1.5)
    assert exactly(progress.n) == exactly(0.0)
    progress.n = -0.0
    assert exactly(progress.n) == exactly(slot.snapshot()["n"]) == exactly(0.0)
    assert str(progress.n) == "0.0"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_float_that_would_become_infinite_adds_nothing(progress, sign):
    most = sign * sys.float_info.max
    progress.n = most
    with pytest.raises(ValueError, match="infinite"):
        progress.update(most)
    assert progress.n == most
    progress.update(-most)
    assert exactly(progress.n) == exactly(0.0)


@pytest.mark.parametrize("amount", [5, 2.5, np.int64(5), Fraction(1, 2)])
def test_a_number_does_not_go_with_a_total(progress, amount):
    with pytest.raises(TypeError, match="total"):
        progress(amount, total=3)
    assert read(progress) == (exactly(0), exactly(None), "")


@pytest.mark.parametrize("thing", [object(), None, 1j, int, len])
def test_what_is_neither_a_number_nor_iterable_cannot_be_called_with(progress, thing):
    with pytest.raises(TypeError):
        progress(thing)
    with pytest.raises(TypeError):
        progress(thing, total=3)
    assert read(progress) == (exactly(0), exactly(None), "")


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (-0.5, ValueError), (nan, ValueError), ("x", TypeError), (10**400, OverflowError)]
)
def test_a_bad_total_changes_nothing(progress, value, error):
    progress.n, progress.total = 3, 8
    with pytest.raises(error):
        progress.total = value
    with pytest.raises(error):
        progress.reset(value)
    with pytest.raises(error):
        progress([1, 2], total=value)
    assert read(progress) == (exactly(3), exactly(8), "")


def test_total_none_is_unknown(progress, slot):
    assert progress.total is None
    progress.total = 5
    progress.total = None
    assert progress.total is slot.snapshot()["total"] is None


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda progress: progress.update("x"), "amount must be a number, not str"),
        (lambda progress: progress.update(nan), "amount must be finite"),
        (lambda progress: setattr(progress, "n", "x"), "n must be a number, not str"),
        (lambda progress: setattr(progress, "n", None), "n must be a number, not NoneType"),
        (lambda progress: setattr(progress, "n", inf), "n must be finite"),
        (lambda progress: setattr(progress, "n", 10**400), "n is too large"),
        (lambda progress: progress.update(10**400), "amount is too large"),
        (lambda progress: setattr(progress, "total", "x"), "total must be a number, not str"),
        (lambda progress: setattr(progress, "total", -1), "total must not be negative"),
        (lambda progress: setattr(progress, "total", nan), "total must be finite"),
        (lambda progress: setattr(progress, "total", 10**400), "total is too large"),
        (lambda progress: progress([], total="x"), "total must be a number, not str"),
        (lambda progress: progress.reset("x"), "total must be a number, not str"),
        (lambda progress: setattr(progress, "status", 5), "status must be a str, not int"),
        (lambda progress: setattr(progress, "status", None), "status must be a str, not NoneType"),
        (lambda progress: setattr(progress, "status", b"x"), "status must be a str, not bytes"),
        (lambda progress: progress(1j), "an iterable or a number, not complex"),
    ],
)
def test_an_error_names_the_field(progress, act, words):
    with pytest.raises((TypeError, ValueError, OverflowError), match=words):
        act(progress)


# Status and reset


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("loading", "loading"),
        ("", ""),
        ("a\0b", "a\0b"),
        ("x" * STATUS_SIZE, "x" * STATUS_SIZE),
        ("x" * STATUS_SIZE + "y", "x" * STATUS_SIZE),
        ("é" * 200, "é" * 128),
        ("xé" + "é" * 200, "x" + "é" * 127),
        ("xxx😀" + "😀" * 99, "xxx" + "😀" * 63),
        ("a\ud800b", "a?b"),
        ("\udc80\ud800", "??"),
        ("\ud83d\ude00!", "??!"),
        ("\ud800" * 300, "?" * STATUS_SIZE),
    ],
)
def test_a_status_is_cut_between_characters_and_its_lone_surrogates_replaced(progress, slot, given, kept):
    progress.status = "before " * 20
    progress.status = given
    assert progress.status == kept
    assert slot.snapshot()["status"] == (kept or "running")


@pytest.mark.parametrize("value", [None, 5, b"x", ["x"], object()])
def test_a_status_that_is_no_str_is_a_type_error(progress, value):
    progress.status = "before"
    with pytest.raises(TypeError):
        progress.status = value
    assert progress.status == "before"


def test_a_status_may_be_of_a_subclass_of_str(progress):
    class Phase(enum.StrEnum):
        LOAD = "load"

    progress.status = Phase.LOAD
    assert exactly(progress.status) == exactly("load")
    progress.status = np.str_("save")
    assert exactly(progress.status) == exactly("save")


def test_reset_sets_n_to_zero_and_keeps_the_rest(progress):
    progress.n, progress.total, progress.status = 2.5, 8, "x"
    progress.reset()
    assert read(progress) == (exactly(0), exactly(8), "x")


def test_reset_takes_a_new_total_zero_included(progress):
    progress.n, progress.total = 1e80, 8
    progress.reset(total=0)
    assert read(progress) == (exactly(0), exactly(0), "")
    progress.reset(2.5)
    assert read(progress) == (exactly(0), exactly(2.5), "")


# The object


def test_an_updater_of_nobody_counts_for_itself(updater):
    one, other = updater(), updater()
    assert read(one) == (exactly(0), exactly(None), "")
    list(one("abc"))
    one.status = "x"
    assert not one.cancelled
    assert read(one) == (exactly(3), exactly(3), "x")
    assert read(other) == (exactly(0), exactly(None), "")


@pytest.mark.parametrize(
    "use",
    [
        lambda progress: progress.update(),
        lambda progress: progress.update(0.5),
        lambda progress: progress(1),
        lambda progress: progress(amount=2),
        lambda progress: list(progress("abc")),
        lambda progress: progress.n,
        lambda progress: progress.total,
        lambda progress: progress.status,
        lambda progress: progress.cancelled,
        lambda progress: setattr(progress, "n", 2**70),
        lambda progress: setattr(progress, "total", 3),
        lambda progress: setattr(progress, "status", "x"),
        lambda progress: progress.reset(3),
        lambda progress: progress.refresh(),
        lambda progress: progress.check(),
        lambda progress: progress.close(),
        lambda progress: progress._detach(),
        lambda progress: progress.__enter__().__exit__(),
    ],
)
def test_an_updater_whose_init_was_left_out_is_one_that_counts_for_itself(updater, use):
    progress = updater.__new__(updater)
    result = use(progress)
    assert result == use(updater()) or result is progress
    progress.reset()
    progress.update(3)
    assert progress.n == 3


def test_what_an_updater_cannot_be_made_of_is_an_error_and_no_crash(updater):
    for wrong in (bytearray(3), 5, bytes(1000)):
        with pytest.raises((TypeError, ValueError, BufferError)):
            updater(wrong).update()
        with pytest.raises((TypeError, ValueError, BufferError)):
            updater.__new__(updater, wrong).update()
    with pytest.raises(TypeError):
        updater(None, None, None, None)


def test_an_updater_has_no_subclasses(updater):
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Subclass", (updater,), {})


def test_an_iteration_made_by_hand_is_one_or_an_error_and_no_crash(updater):
    iteration = importlib.import_module(updater.__module__)._Iteration
    progress = updater()
    for updater_, iterator in [(None, iter("abc")), (progress, 5), (progress, None)]:
        with pytest.raises(TypeError):
            iteration(updater_, iterator)
    with pytest.raises((TypeError, AttributeError)):
        next(iteration.__new__(iteration))
    assert list(iteration(progress, "abc")) == ["a", "b", "c"]
    assert progress.n == 3


@pytest.mark.parametrize(
    "act",
    [
        copy.copy,
        copy.deepcopy,
        *(
            lambda progress, protocol=protocol: pickle.dumps(progress, protocol)
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
    ],
)
def test_copying_and_pickling_say_that_they_cannot(progress, act):
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        act(progress)
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        act([progress] if act is not copy.copy else progress)


def test_it_takes_no_new_attributes(progress):
    with pytest.raises(AttributeError):
        progress.totl = 5
    with pytest.raises(AttributeError):
        progress.cancelled = True


def test_the_snapshot_of_the_slot_shows_what_the_updater_wrote(progress, slot):
    progress.update(3)
    assert slot.snapshot() == {"n": 3, "total": None, "status": "running"}
    progress.total, progress.status = 7.5, "x"
    progress.update(0.5)
    assert slot.snapshot() == {"n": 3.5, "total": 7.5, "status": "x"}
    progress.n = progress.total = 2**70
    assert slot.snapshot() == {"n": 2.0**70, "total": 2.0**70, "status": "x"}


def pushing(updater):
    """One that pushes, and `pushed(act, expected)`, which checks what it pushes meanwhile."""
    pushes = []

    def pushed(act, expected):
        pushes.clear()
        act()
        assert pushes == expected
        assert all(type(now) is bool for now in pushes)

    return updater(push=pushes.append), pushed


def test_push_is_called_at_each_step_and_with_true_when_it_has_to_be_now(updater):
    progress, pushed = pushing(updater)
    pushed(lambda: progress.update(), [False])
    pushed(lambda: progress.update(0.5), [False])
    pushed(lambda: progress(2), [False])
    pushed(lambda: list(progress("abc")), [False] * 4)
    pushed(lambda: setattr(progress, "n", 2**70), [False])
    pushed(lambda: progress.update(), [False])
    pushed(lambda: setattr(progress, "total", 5), [False])
    pushed(lambda: setattr(progress, "status", "x"), [False])
    pushed(lambda: progress.reset(), [False])
    pushed(lambda: progress.refresh(), [True])
    pushed(lambda: progress.close(), [True])
    pushed(lambda: progress.__exit__(None, None, None), [True])
    pushed(lambda: (progress.check(), progress.cancelled, read(progress)), [])


def test_push_sees_what_was_stored_and_may_cancel(updater, slot):
    def push(now):
        seen.append(progress.n)
        if progress.n == 2:
            slot.cancel()

    seen = []
    progress = updater(slot.buffer, push)
    with pytest.raises(CancelledError):
        for _ in progress(range(5)):
            pass
    assert seen == [0, 1, 2]


def test_an_error_of_push_comes_through_with_the_step_counted(updater):
    def push(now):
        raise LookupError

    progress = updater(push=push)
    with pytest.raises(LookupError):
        progress.update()
    assert progress.n == 1


@pytest.mark.parametrize("start", [3, 2.5])
def test_a_detached_updater_leaves_the_slot_alone_and_counts_on(progress, slot, start):
    progress.n, progress.total, progress.status = start, 9, "x"
    progress._detach()
    slot = slot.renewed()
    progress.update(1)
    assert exactly(progress.n) == exactly(start + 1)
    progress.update(0.5)
    list(progress("abc"))
    progress.status = "y"
    assert read(progress) == (exactly(3), exactly(3), "y")
    assert bytes(slot.buffer) == EMPTY
    slot.cancel()
    progress.check()


def test_an_iteration_goes_on_over_a_detached_updater(progress, slot):
    for item in progress(range(5)):
        if item == 2:
            progress._detach()
            slot = slot.renewed()
    assert (progress.n, progress.total) == (5, 5)
    assert bytes(slot.buffer) == EMPTY


def test_detaching_a_cancelled_updater_leaves_it_cancelled(cancelled):
    cancelled._detach()
    with pytest.raises(CancelledError):
        cancelled.update()


def test_a_detached_updater_still_pushes(updater):
    pushes = []
    progress = updater(push=pushes.append)
    progress._detach()
    progress.update()
    assert pushes == [False]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking beside threads, which is what is tried here
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("of", ["task", "part"])
def test_a_forked_child_counts_by_itself_whatever_other_threads_were_in_the_midst_of(progress, slot, of):
    stop, part = [], progress.sub(3, total=1e9) if of == "part" else progress

    def write():
        while not stop:
            progress.status = "of the parent"
            part.update(0.5)

    def in_child():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)  # a lock that nobody gives back
        progress._detach_in_child()
        part.n, part.status = 3, "of the child"
        part.update()
        return 7 if (exactly(part.n), progress.status) == (exactly(4), "of the child") else 8

    thread = threading.Thread(target=write)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            if not (child := os.fork()):
                try:
                    os._exit(in_child())
                finally:
                    os._exit(9)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    finally:
        sys.setswitchinterval(interval)
        stop.append(True)
        thread.join()
    assert slot.snapshot()["status"] == "of the parent"


# Threads


def test_threads_that_share_an_updater_lose_no_count(progress, slot):
    def work():
        update = progress.update
        for _ in range(20_000):
            update(1)

    in_threads(*[work] * 8)
    assert exactly(progress.n) == exactly(slot.snapshot()["n"]) == exactly(160_000)


def wobble(progress, slot):
    progress.update(0.5)
    progress.update(-0.5)


def write(progress, slot):
    progress.total = 5
    progress.status = "x"


def fail(progress, slot):
    for bad in ("x", nan, 10**400):
        with suppress(TypeError, ValueError, OverflowError):
            progress.update(bad)


def ask(progress, slot):
    slot.buffer[PUBLISH_BYTE] = 1
    slot.snapshot()


@pytest.mark.parametrize("start", [0, 0.5, 2**62])
@pytest.mark.parametrize("disturb", [wobble, write, fail, ask])
def test_threads_lose_no_count_whatever_another_one_does_to_n(progress, slot, disturb, start):
    def work():
        for _ in range(2000):
            progress.update(1)
        finished.append("updates")

    def iterate():
        for _ in items:
            pass
        finished.append("items")

    def interfere():
        disturb(progress, slot)
        while len(finished) < 2:
            disturb(progress, slot)

    finished = []
    items = progress(generator(2000))
    progress.n = start
    in_threads(work, iterate, interfere)
    assert progress.n == float(start + 4000) if disturb is wobble else start + 4000
    assert isinstance(progress.n, float) == (isinstance(start, float) or disturb is wobble)


@pytest.mark.parametrize("start", [0, 0.5])
@pytest.mark.parametrize("slow", [False, True])
def test_a_signal_handler_that_counts_loses_no_step(updater, start, slow):
    signal = pytest.importorskip("signal")
    if not hasattr(signal, "setitimer"):
        pytest.skip("no interval timer here")
    handled = 0

    def handle(number, frame):
        nonlocal handled
        handled += 1
        progress.update(1)

    progress = updater(push=(lambda now: None) if slow else None)
    progress.n = start
    steps = 0
    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 5e-5, 5e-5)
    try:
        while handled < 500:
            progress.update(1)
            steps += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert progress.n == start + steps + handled


# References


def iterate_partly(progress):
    for _ in progress([1, 2, 3]):
        break


def iterate_and_fail(progress):
    with suppress(LookupError):
        for _ in progress([1, 2, 3]):
            raise LookupError


def failing(act):
    def attempt(progress):
        with suppress(TypeError, ValueError, OverflowError):
            act(progress)
            pytest.fail("it was to fail")

    return attempt


AMOUNTS = [10**18, 2**70, 2.5, Fraction(1, 3), Decimal("0.5"), np.int64(10**9), np.float32(0.5)]
ITEMS = [object() for _ in range(3)]
WORDS = "".join(["load", "ing"])
REPEATED = {
    **{
        f"update {amount!r}": lambda progress, amount=amount: (progress.reset(), progress.update(amount))
        for amount in AMOUNTS
    },
    "call": lambda progress: (progress.reset(), progress(AMOUNTS[0])),
    "n": lambda progress: setattr(progress, "n", AMOUNTS[1]),
    "total": lambda progress: setattr(progress, "total", AMOUNTS[2]),
    "status": lambda progress: setattr(progress, "status", WORDS),
    "read": read,
    "iterate": lambda progress: list(progress(ITEMS)),
    "iterate a generator": lambda progress: list(progress(generator(2), total=AMOUNTS[0])),
    "break": iterate_partly,
    "exception in the body": iterate_and_fail,
    "never iterated": lambda progress: progress(ITEMS),
    "wrong type": failing(lambda progress: progress.update(WORDS)),
    "not finite": failing(lambda progress: progress.update(nan)),
    "too big": failing(lambda progress: progress.update(10**400)),
    "bad total": failing(lambda progress: progress(ITEMS, total=-1)),
    "bad status": failing(lambda progress: setattr(progress, "status", ITEMS)),
    "refresh and close": lambda progress: (progress.refresh(), progress.close(), progress.check()),
    "with": lambda progress: progress.__exit__(*[progress.__enter__() and None] * 3),
    "detach": lambda progress: progress._detach(),
    "make": lambda progress: type(progress)(bytearray(EMPTY), print),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPEATED)
def test_repeating_leaves_no_reference_and_no_memory_behind(progress, name):
    act = REPEATED[name]
    watched = [*AMOUNTS, *ITEMS, ITEMS, WORDS, progress, type(progress), print, None]

    def counted():
        gc.collect()
        return [sys.getrefcount(thing) for thing in watched[:-1]], len(gc.get_objects())

    def repeat(times):
        for _ in range(times):
            act(progress)

    repeat(100)
    gc.freeze()  # else the collector goes through all that the tests before have left
    tracemalloc.start()
    try:
        repeat(100)
        before, memory = counted(), tracemalloc.get_traced_memory()[0]
        repeat(10_000)
        after, memory = counted(), tracemalloc.get_traced_memory()[0] - memory
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    assert max(abs(a - b) for a, b in zip(before[0], after[0], strict=True)) < 10
    assert after[1] - before[1] < 100
    assert memory < 30_000


def test_repeated_cancelling_leaves_no_reference_and_no_memory_behind(cancelled):
    def repeat(times):
        for _ in range(times):
            for act in COUNTING.values():
                with suppress(CancelledError):
                    act(cancelled)

    repeat(10)
    tracemalloc.start()
    try:
        repeat(10)
        gc.collect()
        references, objects, memory = sys.getrefcount(cancelled), len(gc.get_objects()), tracemalloc.get_traced_memory()[0]
        repeat(1000)
        gc.collect()
        assert sys.getrefcount(cancelled) == references
        assert len(gc.get_objects()) - objects < 100
        assert tracemalloc.get_traced_memory()[0] - memory < 30_000
    finally:
        tracemalloc.stop()


def test_an_iteration_lets_go_of_its_iterator(progress):
    class Items:
        def __iter__(self):
            return iter(())

        def __next__(self):
            raise StopIteration

    iterator = Items()
    gone = weakref.ref(iterator)
    items = progress(iterator)
    next(items, None)
    del iterator, items
    gc.collect()
    assert gone() is None


def test_a_cycle_through_an_updater_is_collected(updater):
    class Owner:
        def push(self, now):
            pass

    owner = Owner()
    owner.progress = updater(push=owner.push)
    owner.items = owner.progress(itertools.repeat(owner))
    next(owner.items)
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None


# Any sequence of calls


class Model:
    """What an Updater does, in the plainest words."""

    def __init__(self):
        self.ints, self.floats, self.total, self.status, self.cancelled = 0, None, None, "", False

    @property
    def n(self):
        return self.ints if self.floats is None else self.ints + self.floats

    @n.setter
    def n(self, value):
        self.ints, self.floats = (value, None) if isinstance(value, int) else (0, value + 0.0)

    @classmethod
    def number(cls, value):
        if hasattr(value, "__index__"):
            return cls.fitting(int(value))
        if not hasattr(value, "__float__"):
            raise TypeError
        value = float(value)
        if value != value or isinf(value):
            raise ValueError
        return value

    @staticmethod
    def fitting(value):
        return value if isinstance(value, float) or -(2**63) <= value < 2**63 else float(value)

    def checked_total(self, value):
        if value is None:
            return None
        value = self.number(value)
        if value < 0:
            raise ValueError
        return value

    def check(self):
        if self.cancelled:
            raise CancelledError

    def update(self, amount):
        fitting = self.number(amount)
        amount = int(amount) if hasattr(amount, "__index__") else fitting
        if isinstance(amount, int) and isinstance(self.fitting(self.ints + amount), int):
            self.ints += amount
        elif isinstance(amount, float) and not isinf(floats := (-0.0 if self.floats is None else self.floats) + amount):
            self.floats = None if str(floats) == "-0.0" else floats
        elif isinf(n := self.n + amount):
            raise ValueError
        else:
            self.n = self.fitting(n)
        self.check()

    def set_n(self, value):
        self.n = self.number(value)
        self.check()

    def set_total(self, value):
        self.total = self.checked_total(value)
        self.check()

    def set_status(self, value):
        if not isinstance(value, str):
            raise TypeError
        cut = "".join("?" if 0xD800 <= ord(character) < 0xE000 else character for character in value)
        while len(cut.encode()) > STATUS_SIZE:
            cut = cut[:-1]
        self.status = cut
        self.check()

    def reset(self, total):
        if total is not None:
            total = self.checked_total(total)
            self.total = total
        self.n = 0
        self.check()

    def refresh(self):
        self.check()

    def close(self):
        pass

    def cancel(self):
        self.cancelled = True

    def iterate(self, kind, size, total, stop, assigned):
        total = size if total is None and kind is not generator else total
        self.total = self.checked_total(total)
        self.n = 0
        self.check()
        seen = []
        for index in range(size):
            self.check()
            seen.append((index, *exactly(self.n)))
            if index == stop:
                return seen
            if assigned is not None:
                self.set_n(assigned)
            self.update(1)
        self.check()
        return seen

    def read(self):
        snapshot = {"n": self.n, "total": self.total, "status": self.status or "running"}
        return exactly(self.n), exactly(self.total), self.status, self.cancelled, snapshot


class Real:
    """The same calls on an Updater and its slot."""

    def __init__(self, updater):
        self.slot = Slot()
        self.slot.start(time.time())
        self.progress = updater(self.slot.buffer)
        self.update, self.reset = self.progress.update, self.progress.reset
        self.refresh, self.close, self.check = self.progress.refresh, self.progress.close, self.progress.check
        self.cancel = self.slot.cancel

    def set_n(self, value):
        self.progress.n = value

    def set_total(self, value):
        self.progress.total = value

    def set_status(self, value):
        self.progress.status = value

    def iterate(self, kind, size, total, stop, assigned):
        seen = []
        for index in self.progress(kind(size), total):
            seen.append((index, *exactly(self.progress.n)))
            if index == stop:
                break
            if assigned is not None:
                self.progress.n = assigned
        return seen

    def read(self):
        return *read(self.progress), self.progress.cancelled, self.slot.snapshot()


EDGES = [0, 1, -1, 2**62, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**254, -(2**254), 2**255 - 1, 2**255, 10**400]
numbers = st.one_of(
    st.sampled_from(EDGES),
    st.integers(-5, 5),
    st.integers(-(2**256), 2**256),
    st.floats(),
    st.fractions(),
    st.sampled_from(
        [0.5, True, Decimal("1.5"), np.uint8(3), np.int64(-3), np.float32(0.5), np.float64(0.1), sys.float_info.max]
    ),
    st.sampled_from(["1", None, 1j, object(), b"1"]),
)
statuses = st.one_of(
    st.text(max_size=20), st.text("a\u00e9\U0001f600\ud800", min_size=60, max_size=300), st.sampled_from([None, 5, b"x"])
)
iterations = st.tuples(
    st.just("iterate"),
    st.sampled_from([range, generator]),
    st.integers(0, 4),
    st.one_of(st.none(), numbers),
    st.integers(0, 5),
    st.one_of(st.none(), numbers),
)
calls = st.one_of(
    st.tuples(st.just("update"), numbers),
    st.tuples(st.just("set_n"), numbers),
    st.tuples(st.sampled_from(["update", "set_n"]), st.sampled_from([0.5, *EDGES])),
    st.tuples(st.sampled_from(["set_total", "reset"]), numbers),
    st.tuples(st.just("set_status"), statuses),
    st.tuples(st.sampled_from(["refresh", "close", "check"])),
    iterations,
)
sequences = st.tuples(
    st.lists(calls, max_size=12),
    st.one_of(st.just([]), st.lists(calls, max_size=4).map(lambda after: [("cancel",), *after])),
)


def trace(subject, sequence):
    """After each call: what it returned or raised, and all that can be read."""
    for name, *arguments in itertools.chain(*sequence):
        try:
            outcome = getattr(subject, name)(*arguments)
        except (TypeError, ValueError, OverflowError, CancelledError) as error:
            outcome = error
        yield name, outcome, subject.read()


def without_message(step):
    name, outcome, state = step
    return name, type(outcome) if isinstance(outcome, BaseException) else outcome, state


def with_message(step):
    name, outcome, state = step
    return name, (type(outcome), str(outcome)) if isinstance(outcome, BaseException) else outcome, state


@settings(deadline=None, max_examples=120, database=None)
@given(sequence=sequences)
def test_any_sequence_of_calls_does_what_the_model_does(updater, sequence):
    for real, model in zip(trace(Real(updater), sequence), trace(Model(), sequence), strict=True):
        assert without_message(real) == without_message(model)


@settings(deadline=None, max_examples=120, database=None)
@given(sequence=sequences)
def test_both_forms_do_the_same_and_say_the_same(sequence):
    for python, cython in zip(*(trace(Real(load(name)), sequence) for name in IMPLEMENTATIONS), strict=True):
        assert with_message(python) == with_message(cython)
