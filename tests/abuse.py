"""The worst that a task may do to its Updater, to count references by and to run under memcheck. Needs no pytest."""

import gc
import sys
from asyncio import CancelledError
from contextlib import suppress
from math import nan

from progress_executor._slots import EMPTY, Slot
from progress_executor._speedups._layout import SLOT_SIZE, STATUS_SIZE


class OnPurposeError(Exception):
    pass


ERROR = OnPurposeError("raised by whatever an Updater calls")


def fail(*_):
    raise ERROR


def returning(name, value):
    """An object whose `name` returns `value`."""
    return type("Returning", (), {name: lambda self: value})()


class Failing:
    """Raises from each of the methods that `names` says."""

    def __init__(self, *names):
        self.__class__ = type("Failing", (Failing,), dict.fromkeys(names, fail))


class Items:
    """Two items, then the error; each step may do something to the Updater or to the loop itself."""

    def __init__(self, act=lambda: None, hint=fail):
        self.act = act
        self.hint = hint
        self.left = 2

    def __iter__(self):
        return self

    def __next__(self):
        self.act()
        if not self.left:
            raise ERROR
        self.left -= 1
        return ITEM

    def __length_hint__(self):
        return self.hint()


class Text(str):
    def encode(self, *_):
        return b"something else"


class Acting:
    """A number that does something to the Updater while it is asked for its value."""

    def __init__(self, act, value=3):
        self.act = act
        self.value = value

    def __index__(self):
        self.act()
        return self.value


ITEM = object()
AMOUNTS = [10**18, 2**70, 2.5, 2**63 - 1, -(2**63), -(2**254), 1e308, True]
NO_AMOUNTS = [None, "5", b"5", 1j, nan, [], object(), 2**300, Failing("__index__"), Failing("__float__"), OnPurposeError]
WRONG = [returning("__index__", "5"), returning("__float__", "5"), returning("__iter__", ITEM), returning("__iter__", None)]
BAD_ITERABLES = [Failing("__iter__"), Failing("__iter__", "__length_hint__"), returning("__getitem__", None)]
TEXTS = ["", "text", "\u00e9" * 300, "\U0001f4a5" * 64, "\ud800", "\0" * STATUS_SIZE, Text("text")]
HINTS = [fail, lambda: "5", lambda: -1, lambda: 2**200, lambda: NotImplemented, lambda: 5]

WATCHED = [ERROR, OnPurposeError, ITEM, None, *AMOUNTS, *NO_AMOUNTS, *WRONG, *BAD_ITERABLES, *TEXTS, *HINTS, CancelledError]


def drop_the_loop(progress):
    loop = []
    loop.append(iter(progress(Items(loop.clear))))
    for _ in range(3):
        if loop:
            next(loop[0])


def use_after_the_end(part):
    inner, loop = part.sub(1), part([ITEM, ITEM])
    next(loop)
    with suppress(OnPurposeError), part:
        fail()
    for act in (loop.__next__, inner.update, inner.close, part.update, part.close):
        with suppress(RuntimeError):
            act()


def acts(progress):
    """Calls without arguments, most of which raise."""
    for amount in (*AMOUNTS, *NO_AMOUNTS, *WRONG):
        yield lambda amount=amount: progress.update(amount)
        yield lambda amount=amount: progress(amount)
        yield lambda amount=amount: progress(amount=amount)
        yield lambda amount=amount: setattr(progress, "n", amount)
        yield lambda amount=amount: setattr(progress, "total", amount)
        yield lambda amount=amount: setattr(progress, "status", amount)
        yield lambda amount=amount: progress([ITEM], total=amount)
        yield lambda amount=amount: progress([ITEM], amount, amount=amount)
        yield lambda amount=amount: progress.reset(amount)
    for iterable in (*BAD_ITERABLES, *WRONG):
        yield lambda iterable=iterable: list(progress(iterable))
    for hint in HINTS:
        yield lambda hint=hint: list(progress(Items(hint=hint)))
        yield lambda hint=hint: next(iter(progress(Items(hint=hint))))
    for text in TEXTS:
        yield lambda text=text: setattr(progress, "status", text)
    for text in (*TEXTS, *NO_AMOUNTS):
        yield lambda text=text: progress.log(text)
        yield lambda text=text: progress.sub(1).log(text)
    for act in (progress.update, progress._detach, progress.reset, progress.check, fail):
        yield lambda act=act: progress.update(Acting(act))
        yield lambda act=act: setattr(progress, "total", Acting(act))
        yield lambda act=act: list(progress(Items(act)))
        yield lambda act=act: [act() for _ in progress([ITEM, ITEM])]
    yield lambda: drop_the_loop(progress)
    yield lambda: progress.update(1, 2, 3)
    yield lambda: progress.update(amount=1)
    yield lambda: progress(1, 2, 3, 4)
    yield lambda: progress(wrong=1)
    yield lambda: progress(*[1], total=5)
    yield lambda: progress.__reduce_ex__(4)
    yield lambda: (progress.n, progress.total, progress.status, progress.cancelled)
    yield lambda: type(progress)(b"read-only" * SLOT_SIZE)
    yield lambda: type(progress)(bytearray(3))
    yield lambda: type(progress)(None, fail).update()
    yield lambda: type(progress)(None, fail).close()
    for part in (lambda: progress.sub(1), lambda: progress.sub(0.5, 3).sub(2, 0)):
        for weight in (*AMOUNTS, *NO_AMOUNTS, *WRONG):
            yield lambda part=part, weight=weight: part().sub(weight, weight).update(weight)
        for act in (progress.update, progress._detach, progress.close, fail):
            yield lambda part=part, act=act: part().update(Acting(act))
            yield lambda part=part, act=act: list(part()(Items(act)))
        yield lambda part=part: use_after_the_end(part())
    yield progress.refresh
    yield progress.close


EXPECTED = (
    *(OnPurposeError, CancelledError, StopIteration),
    *(TypeError, ValueError, OverflowError, AttributeError, IndexError, BufferError, RuntimeError),
)


def abuse(updater, times):
    """Do all of it so many times, in a slot that is not cancelled, in one that is, and in an Updater of nobody."""
    for _ in range(times):
        cancelled, running = Slot(), Slot()
        cancelled.cancel()
        for slot in (cancelled, running):
            slot.start(1.0)
        for buffer in (cancelled.buffer, running.buffer, bytearray(EMPTY), None):
            for act in acts(updater(buffer)):
                with suppress(*EXPECTED):
                    act()
        for slot in (cancelled, running):
            slot.snapshot()
        ERROR.__traceback__ = ERROR.__context__ = None


def counted():
    gc.collect()
    return [sys.getrefcount(thing) for thing in WATCHED], len(gc.get_objects())


if __name__ == "__main__":
    from progress_executor import IMPLEMENTATION, Updater

    assert IMPLEMENTATION == "cython"
    abuse(Updater, 1)
    print("abused")
