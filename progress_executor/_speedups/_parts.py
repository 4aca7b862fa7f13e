"""The parts of one task as a tree: how much of the task's n each of them has counted.

A part's `Updater` steps in two counters of its own, in this process's memory, as the task's own does in its slot. Nothing is
summed up at a step. The tree is summed up when a part begins or ends, when the caller asks for it (PUBLISH), and when
the task reads or assigns n. Plain Python in both forms: no step comes here.
"""

from collections.abc import Callable
from math import copysign, fsum, isfinite
from sys import float_info
from typing import Any
from weakref import ref

from ._layout import NO_FLOAT, N

HAS_ENDED = "this part has ended: it counts no more"


Counters = tuple[Any, Any]
"""What an Updater counts in: two views, of ints and of doubles, of memory with the counters where they are in a slot."""


def own_counters() -> Counters:
    """Those of a part, in which nothing is counted."""
    memory = memoryview(bytearray(8 * N + 16))
    ints = memory.cast("q")
    ints[N + 1] = NO_FLOAT
    return ints, memory.cast("d")


def counted(counters: Counters) -> int | float:
    """An int if no float was added. What something else has written there fails no task."""
    ints, doubles = counters
    n: int = ints[N]
    if ints[N + 1] == NO_FLOAT:
        return n
    double: float = doubles[N + 1]
    return n + double if isfinite(double) else n


class Node:
    """The task itself, or a part of it."""

    __slots__ = ("counters", "done", "ended", "parent", "parts", "rounding_error", "share", "total", "updater", "weight")

    def __init__(self, parent: "Node | None", weight: float, total: float | None, counters: Counters, updater: Any) -> None:
        self.parent = parent  # None for the task
        self.weight = weight
        self.total = total  # the task's own stands in the slot
        self.counters = counters
        self.parts: list[Node] = []  # those that have not ended
        self.done: int | float = 0  # what parts have counted that have ended
        self.rounding_error: int | float = 0  # of `done`
        self.share: int | float = 0  # how much of its weight is done; as of the last `inside`
        self.ended = False
        self.updater: Callable[[], Any] = ref(updater) if parent is None else ref(updater, self._dropped)

    def inside(self) -> int | float:
        """What its parts have counted, open and ended."""
        if self.parts:
            for node in reversed(self._and_below()[1:]):
                node.share = node._share()
        return self._inside()

    def _inside(self) -> int | float:
        return add(self.done, self.rounding_error, *[part.share for part in self.parts])

    def _share(self) -> int | float:
        weight, total = self.weight, self.total
        if not total:
            return 0 if total is None else weight
        n = add(counted(self.counters), self.done, self.rounding_error, *[part.share for part in self.parts])
        if n >= total:
            return weight
        if n <= 0:
            return 0
        if isinstance(weight, int) and isinstance(n, int) and isinstance(total, int):
            whole, remainder = divmod(weight * n, total)
            return weight * n / total if remainder else whole
        share = weight * n / total  # in this order, 10 * 7.5 / 100 is 0.75
        if not isfinite(share):
            share = weight * (n / total)
        return int(share) if share.is_integer() and share < 1 << 53 else share

    def count(self) -> int | float:
        """n, with what its parts have counted."""
        return add(counted(self.counters), self.inside())  # as the reader adds them

    def assigned(self, n: float) -> tuple[int | float, int | float]:
        """What to have done, with which rounding error, to count `n`: what its parts have done until now is in it."""
        self.inside()
        shares = [-part.share for part in self.parts]
        done = add(n, *shares)
        return done, add(n, *shares, -done)

    def begin(self) -> None:
        assert self.parent is not None
        if self.parent.ended:
            self.ended = True
            raise RuntimeError(HAS_ENDED)
        self.parent.parts.append(self)

    def end(self, whole: bool) -> None:
        """With all its parts. Its parent has all of the weight if it ends whole, else what is done."""
        parent = self.parent
        if parent is None or self not in parent.parts:  # it has ended, or an interrupt came before `begin`
            self.ended = True
            return
        nodes = self._and_below()
        for node in nodes:
            updater = node.updater()
            if updater is not None:
                updater._stop_steps()
            # Without the callback: nothing is to be done any more when it is dropped.
            node.updater = _nobody if updater is None else ref(updater)
        self.inside()
        share = self.weight if whole else self._share()
        for node in nodes:
            node.done, node.rounding_error, node.parts, node.ended = node._inside(), 0, [], True
        parent.parts.remove(self)
        done = add(parent.done, parent.rounding_error, share)
        parent.done, parent.rounding_error = done, add(parent.done, parent.rounding_error, share, -done)

    def updaters(self) -> list[Any]:
        """Those of this and of all below that are still there."""
        return [updater for node in self._and_below() if (updater := node.updater()) is not None]

    def _and_below(self) -> "list[Node]":
        """Each before its parts; by a loop, as they may lie deeper than Python's functions."""
        below = [self]
        for node in below:
            below += node.parts
        return below

    def _dropped(self, _: object) -> None:
        # A part may have been given as an argument to somebody who has no reason to close it. That is no sign of success.
        assert self.parent is not None
        updater = self.parent.updater()
        if updater is not None:  # else that one, in the same cycle, was dropped, too, and ends with this one
            updater._write(act=lambda: self.end(False))


def add(*numbers: float) -> int | float:
    """The sum: ints exactly, else rounded once, and never infinite."""
    total = sum(numbers)
    if isinstance(total, int):
        return total
    try:
        return fsum(numbers)
    except OverflowError:
        return copysign(float_info.max, sum(map(float, numbers)))


def _nobody() -> None:
    pass
