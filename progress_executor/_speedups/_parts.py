"""The parts of one task, as a tree of counters: what an `Updater` and those that its `sub` made have to tell each other.

At most one of them *holds the slot*: its n stands there, and its steps are those of a task without parts. Beside it stands
how the task's n follows from that n (`Family.shown`). All others keep their n here, and each of their calls takes the lock.
Whoever counts under the lock takes the slot over: a loop is slow in its first step only, and of threads that count on
several parts each is slow once per turn of the GIL.

The invariant, at every moment, for a signal handler may raise at any: an Updater that is attached to the slot is that of the
holder. Plain Python in both forms: no step comes here.
"""

from collections.abc import Callable
from math import copysign, fsum, isfinite
from sys import float_info
from typing import Any
from weakref import ref

from ._layout import ALONE, NUMBER_SIZE, PLUS, SCALED

ENDED = "this part has ended: it counts no more"

_MOST = float_info.max / 4  # the reader calculates with differences of such


class Counter:
    """The task itself, or a part of it."""

    __slots__ = ("ended", "inside", "n", "parts", "rest", "share", "total", "updater", "weight")

    parent: "Counter | None"
    family: "Family"
    updater: Callable[[], Any]  # a weak reference

    def __init__(self, weight: float, total: float | None) -> None:
        self.weight = weight
        self.total = total  # the task's own stands in the slot
        self.n: int | float = 0  # counted here, and by parts that have ended; what it was, if this one holds the slot
        self.rest: int | float = 0  # what n had to be rounded by
        self.parts: list[Part] = []  # those that have not ended
        self.ended = False
        # As of the last `count`:
        self.inside: int | float = 0  # what its parts have counted
        self.share: int | float = 0  # how much of its weight is done

    def count(self) -> int | float:
        """n, with what its parts have counted."""
        for part in reversed(self._and_below()):
            part.inside = add(*(inner.share for inner in part.parts))
            part.share = part._share(add(part.n, part.inside))
        return add(self.n, self.rest, self.inside) if self.parts else self.n

    def assigned(self, n: float) -> tuple[int | float, int | float]:
        """The own n, and its rest, with which `n` is counted: what its parts have done until now is in it."""
        self.count()
        own = add(n, -self.inside)
        return own, add(n, -self.inside, -own)

    def _take(self, share: float) -> None:
        n = add(self.n, self.rest, share)
        # What n cannot hold is not counted: the end of a block must not fail of that.
        if isinstance(n, float) or n.bit_length() < 8 * NUMBER_SIZE:
            self.n, self.rest = n, add(self.n, self.rest, share, -n)

    def _share(self, n: float) -> int | float:
        weight, total = self.weight, self.total
        if not total:
            return 0 if total is None else weight
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
        if share < 1 << 53:
            return int(share) if share.is_integer() else share
        # A float of this size cannot tell whether it is a whole number.
        (p, over_p), (q, over_q), (over_r, r) = (factor.as_integer_ratio() for factor in (weight, n, total))
        whole, remainder = divmod(p * q * r, over_p * over_q * over_r)
        return share if remainder or whole.bit_length() >= 8 * NUMBER_SIZE else whole

    def _and_below(self) -> "list[Counter]":
        """Each before its parts; by a loop, as they may lie deeper than Python's functions."""
        below = [self]
        for part in below:
            below += part.parts
        return below


class Part(Counter):
    """What `sub` made. It outlives its Updater only until that is known."""

    __slots__ = ("family", "parent")

    parent: Counter

    def __init__(self, parent: Counter, weight: float, total: float | None, updater: Any) -> None:
        super().__init__(weight, total)
        self.parent = parent
        self.family = parent.family
        self.updater = ref(updater, self._dropped)

    def begin(self) -> None:
        if self.parent.ended:
            self.ended = True
            raise RuntimeError(ENDED)
        self.parent.parts.append(self)

    def end(self, whole: bool) -> None:
        """With all its parts. Its parent has all of the weight if it ends whole, else what is done."""
        if self not in self.parent.parts:  # it has ended, or an interrupt came before `begin`
            self.ended = True
            return
        self.count()
        share = self.weight if whole else self.share
        for part in self._and_below():
            updater = part.updater()
            # Without the callback: there is nothing to do any more when it is dropped.
            part.updater = _nobody if updater is None else ref(updater)
            part.n, part.parts, part.inside, part.ended = add(part.n, part.inside), [], 0, True
        self.parent.parts.remove(self)
        self.parent._take(share)

    def _dropped(self, _: object) -> None:
        # It may have been given as an argument to somebody who has no reason to close it. That is no sign of success.
        updater = self.parent.updater()
        if updater is not None:  # else that one, in the same cycle, was dropped, too, and ends with this one
            updater._write(act=lambda: self.end(False))


class Family(Counter):
    """The task itself, and what its parts share."""

    __slots__ = ("_holder", "settled", "slot")

    parent = None

    def __init__(self, slot: Any, updater: Any) -> None:
        super().__init__(1, None)
        self.slot = slot  # its bytes
        self.updater = ref(updater)
        self.settled = True  # whether all that was changed here stands in the slot; else nobody may count there unseen
        self._holder: Part | type[Family] | None = Family

    @property
    def family(self) -> "Family":  # type: ignore[override]
        return self

    # Its own name for itself, as a reference would be a cycle.
    @property
    def holder(self) -> Counter | None:
        """Which of them holds the slot, if any."""
        return self if self._holder is Family else self._holder  # type: ignore[return-value]

    @holder.setter
    def holder(self, holder: Counter | None) -> None:
        self._holder = Family if holder is self else holder  # type: ignore[assignment]

    @property
    def attached(self) -> Any:
        """The Updater that is, or is about to be; None if nobody is, or it has just been dropped."""
        return None if self.holder is None else self.holder.updater()

    def updaters(self) -> list[Any]:
        """Those that are still there."""
        return [updater for part in self._and_below() if (updater := part.updater()) is not None]

    def shown(self, heir: Counter) -> tuple[int, float, float, float, float]:
        """How the task's n follows from n in the slot, if that is `heir`'s: see `_layout.py`."""
        self.count()
        if heir is self:
            return PLUS if self.inside else ALONE, _finite(self.inside), 0.0, 0.0, 0.0
        # At n = first and below, low is counted one level up; at last and above, high; and in between, in proportion.
        first: float = -heir.inside
        last: float = first + (heir.total or 0)
        low: float = 0 if heir.total != 0 else 1
        high: float = 0 if heir.total is None else 1
        part = heir
        while part.parent is not None:
            parent = part.parent
            others = add(parent.n, *(other.share for other in parent.parts if other is not part))
            low, high = others + part.weight * low, others + part.weight * high
            part = parent
            if part is self:
                break
            if not part.total:
                low = high = 0 if part.total is None else 1
                continue
            low, high = low / part.total, high / part.total
            # Where that leaves 0 to 1, it is at an n in between.
            start, width, height = first, last - first, high - low
            if low < 0 < high:
                first = start - width * (low / height)
            if low < 1 < high:
                last = start + width * ((1 - low) / height)
            low, high = min(max(low, 0), 1), min(max(high, 0), 1)
        return SCALED, _finite(low), _finite(high), _finite(first), _finite(last)


def heir_of(part: Counter) -> Counter:
    """The part itself or, if it has ended, the nearest above it that has not."""
    while part.ended and part.parent is not None:
        part = part.parent
    return part


def add(*numbers: float) -> int | float:
    """The sum: ints exactly, else rounded once, and never infinite."""
    if all(isinstance(number, int) for number in numbers):
        return sum(numbers)
    try:
        return fsum(numbers)
    except OverflowError:
        return copysign(float_info.max, sum(map(float, numbers)))


def _finite(number: float) -> float:
    return float(number) if abs(number) <= _MOST else copysign(_MOST, number)


def _nobody() -> None:
    pass
