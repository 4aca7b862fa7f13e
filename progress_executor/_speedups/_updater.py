"""The task's side: `Updater`, which writes a task's progress into its slot and sees in it that the task is to stop.

One source, two forms: Cython compiles this file as `_updater_c` with the C types of `_updater_c.pxd`, and Python runs it as
it is. `if cython.compiled:` marks the few places where the two need different words for the same thing. Nothing here reads a
clock, and a step takes no lock: its fast path is "the control word is zero, so add to the int64".
"""

from __future__ import annotations

import operator
import sys
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from math import isfinite
from threading import RLock
from typing import Any, NoReturn, Self

from ._layout import (
    BIG,
    CALLER_BYTE,
    CANCEL,
    CONTROL,
    FLOAT,
    FLOATING,
    INT,
    LOCKED,
    MODE_BYTE,
    N_KIND_BYTE,
    NONE,
    NUMBER_SIZE,
    PLAIN,
    PUSHING,
    SEQUENCE,
    SLOT_SIZE,
    STATUS_BYTE,
    STATUS_LENGTH_BYTE,
    STATUS_SIZE,
    TOTAL,
    TOTAL_KIND_BYTE,
    WIDE,
    N,
)

try:
    import cython
except ModuleNotFoundError:
    from . import _interpreted as cython


if cython.compiled:
    from cython.cimports.progress_executor._speedups._atomics import pe_add, pe_fence, pe_small

IMPLEMENTATION = "cython" if cython.compiled else "python"

# Without the GIL "test the control word, then add" is two steps, so every thread has to take the lock.
_BASE_MODE = LOCKED if not getattr(sys, "_is_gil_enabled", lambda: True)() else PLAIN

# The control word of a task that nobody cancelled and whose n is a float, to compare as a whole.
_FLOATING_WORD = int.from_bytes(bytes((0, FLOATING, 0, 0, 0, 0, 0, 0)), sys.byteorder)

_fence_lock = RLock()


def fence() -> None:
    """No load or store moves across this call, neither in the compiler nor in the processor."""
    if cython.compiled:
        pe_fence()
    else:
        # Each acquire is a one-way barrier and so is each release: what stands before and after a single pair may still
        # change places inside it. Two pairs cannot be crossed: the second acquire reads what the first release wrote.
        with _fence_lock:
            pass
        with _fence_lock:
            pass


def _number(value: Any, name: str) -> int | float:
    """`value` as an exact int or a finite float."""
    kind = type(value)
    if hasattr(kind, "__index__"):
        try:
            return int(operator.index(value))
        except TypeError:  # an array or tensor that has the method for some of its types only
            if not hasattr(kind, "__float__"):
                raise
    if not hasattr(kind, "__float__"):
        raise TypeError(f"{name} must be a number, not {kind.__name__}")
    number = float(value)
    if not isfinite(number):
        raise ValueError(f"{name} must be finite, not {number}")
    return number


def _total(value: Any) -> int | float | None:
    if value is None:
        return None
    total = _number(value, "total")
    if total < 0:
        raise ValueError(f"total must not be negative, got {total}; None stands for unknown")
    return total


_KEEP: Any = object()


def _finite(number: Any) -> Any:
    if isinstance(number, float) and not isfinite(number):
        raise ValueError("n would become infinite")
    return number


def _kind(number: Any, name: str) -> int:
    """How a slot stores `number`."""
    if number is None or number is _KEEP:
        return NONE
    if isinstance(number, float):
        return FLOAT
    if number.bit_length() < 64:
        return INT
    if number.bit_length() < 8 * NUMBER_SIZE:
        return BIG
    raise OverflowError(f"{name} must fit {8 * NUMBER_SIZE} bits")


def _encoded(status: str) -> bytes:
    text = status.encode("utf-8", "replace")
    if len(text) > STATUS_SIZE:
        text = text[:STATUS_SIZE].decode("utf-8", "ignore").encode()
    return text


class Updater:
    """What a task reports its progress with, and learns from that it is to stop.

    The executors make one for each task whose function has a parameter called `progress`. `Updater()` counts for
    itself, so that such a function can be called without an executor.

    `n`, `total` and `status` can be read and assigned. n and total are ints of up to 256 bits (OverflowError beyond) or
    finite floats; a status is cut after 256 bytes of UTF-8, never within a character, and a lone surrogate in it becomes
    "?". Once the task is cancelled, whatever counts or publishes raises `asyncio.CancelledError`, each time anew; what it
    was given is stored first. Threads of the task may share its Updater.
    """

    # Three views of the same bytes; _updater_c.pxd has the C types of the fields.
    __slots__ = ("_bytes", "_doubles", "_lock", "_mode", "_push", "_words")

    _words: memoryview[int]
    _doubles: memoryview[float]
    _bytes: memoryview[int]
    _push: Callable[[bool], None] | None
    _mode: int

    def __init__(self, slot: Any = None, push: Callable[[bool], None] | None = None) -> None:
        """Executors pass the slot, a writable buffer of `SLOT_SIZE` bytes, and `push(now)`, to be called at each step."""
        self._lock = RLock()  # re-entrant: a signal handler or a finalizer of the task may count, too
        self._push = push
        self._mode = _BASE_MODE if push is None else _BASE_MODE | PUSHING
        if slot is None:
            slot = bytearray(SLOT_SIZE)
            slot[TOTAL_KIND_BYTE] = NONE
        self._attach(slot)
        self._bytes[MODE_BYTE] = self._mode

    def _attach(self, slot: Any) -> None:
        view = memoryview(slot).cast("B")
        self._bytes = view
        self._words = view.cast("q")
        self._doubles = view.cast("d")

    def _detach(self) -> None:
        """Go on in memory of its own: the slot is about to belong to another task, and threads may still count here."""
        with self._lock:
            self._bytes[MODE_BYTE] |= LOCKED
            self._attach(bytearray(self._bytes))
            self._bytes[MODE_BYTE] = self._mode

    # Counting

    def __call__(self, iterable: Any = 1, total: Any = None) -> Any:
        """Iterate over `iterable` and count, or add a number.

        `progress(iterable, total=None)` sets n to 0 and total to the given one, else to the iterable's length or its
        length hint, else to unknown, and returns an iterator over the items. An item counts when the loop's body for
        it has finished. `progress(amount=1)` is `progress.update(amount)`.
        """
        kind = type(iterable)
        if kind is int or kind is float or not hasattr(kind, "__iter__"):
            if kind is int or hasattr(kind, "__index__") or hasattr(kind, "__float__"):
                if total is not None:
                    raise TypeError("total goes with an iterable; to add a number, progress(amount)")
                return self.update(iterable)
            if not hasattr(kind, "__getitem__"):
                raise TypeError(f"progress() takes an iterable or a number, not {kind.__name__}")
        iterator = iter(iterable)
        if total is None:
            try:
                hint = operator.length_hint(iterable, -1)
            except OverflowError:  # range(10**30) has a length that len() cannot say
                hint = -1
            total = None if hint < 0 else hint
        else:
            total = _total(total)
        self._write(0, total)
        if cython.compiled:
            return _Iteration(self, iterator)
        return self._iterate(iterator)

    def _iterate(self, iterator: Iterator[Any]) -> Iterator[Any]:
        # Interpreted, a generator is faster than __next__; compiled, it is slower. The view is looked up at every step
        # because _detach may replace it.
        self.check()
        for item in iterator:
            yield item
            words = self._words
            try:
                if not words[CONTROL]:
                    words[N] += 1
                    continue
            except ValueError:  # more than 64 bits
                pass
            self._add(1)

    def update(self, amount: Any = 1) -> None:
        """Add `amount`, anything with `__index__` or `__float__`; an int stays exact.

        Raises ValueError for NaN and infinities, TypeError for what is no number, OverflowError beyond 256 bits; nothing
        is added then.
        """
        if cython.compiled:
            step = cython.declare(cython.longlong)
            n = cython.declare(cython.longlong)
            control = cython.declare(cython.longlong, self._words[CONTROL])
            if control == 0:
                if pe_small(amount, cython.address(step)) and pe_add(self._words[N], step, cython.address(n)):
                    self._words[N] = n
                    return
            elif control == _FLOATING_WORD and type(amount) is float:
                value = cython.declare(cython.double, self._doubles[N] + cython.cast(cython.double, amount))
                if isfinite(value):
                    self._doubles[N] = value
                    return
        elif type(amount) is int:
            # The GIL is offered at calls and backward jumps only (CPython 3.11 to 3.13): nothing comes between the test
            # of the control word and the store.
            words = self._words
            try:
                if not words[CONTROL]:
                    words[N] += amount
                    return
            except ValueError:  # more than 64 bits
                pass
        self._add(amount)

    def _add(self, amount: Any) -> None:
        step = _number(amount, "amount")
        with self._lock:
            # First turn the hot path of the other threads away, then read: what they add until then is read, too.
            self._bytes[MODE_BYTE] |= LOCKED
            try:
                self._put(_finite(self._load(N, N_KIND_BYTE) + step))  # type: ignore[operator]
            finally:
                self._bytes[MODE_BYTE] = self._mode
        self._publish(False)

    # State

    @property
    def n(self) -> int | float:
        """How much is done."""
        with self._lock:
            return self._load(N, N_KIND_BYTE)  # type: ignore[return-value]

    @n.setter
    def n(self, value: Any) -> None:
        self._write(_number(value, "n"))

    @property
    def total(self) -> int | float | None:
        """How much there is to do, None where that is unknown. Assigning a negative one is a ValueError."""
        with self._lock:
            return self._load(TOTAL, TOTAL_KIND_BYTE)

    @total.setter
    def total(self, value: Any) -> None:
        self._write(total=_total(value))

    @property
    def status(self) -> str:
        """The task's own words for what it is doing, "" for none."""
        with self._lock:
            length = self._bytes[STATUS_LENGTH_BYTE] | self._bytes[STATUS_LENGTH_BYTE + 1] << 8
            return bytes(self._bytes[STATUS_BYTE : STATUS_BYTE + length]).decode()

    @status.setter
    def status(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"status must be a str, not {type(value).__name__}")
        self._write(status=value)

    def reset(self, total: Any = None) -> None:
        """Set n to 0 and, unless it is None, the total; as in tqdm."""
        if total is None:
            self._write(0)
        else:
            self._write(0, _total(total))

    def refresh(self) -> None:
        """Publish now, without waiting for the interval to pass."""
        self._publish(True)

    @property
    def cancelled(self) -> bool:
        """Whether the task is to stop."""
        return bool(self._bytes[CALLER_BYTE] == CANCEL)

    def check(self) -> None:
        """Raise `asyncio.CancelledError` if the task is to stop; count nothing."""
        if self._bytes[CALLER_BYTE] == CANCEL:
            raise CancelledError

    def close(self) -> None:
        """Publish a last time. Never raises, so that it can stand in a `finally`."""
        if self._push is not None:
            self._push(True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "an Updater cannot be pickled or copied, it belongs to the task that it was made for: "
            "leave the parameter called `progress` to the executor"
        )

    # The slot

    def _publish(self, now: bool) -> None:
        if self._push is not None:
            self._push(now)
        self.check()

    def _write(self, n: Any = _KEEP, total: Any = _KEEP, status: Any = _KEEP) -> None:
        """Change the given fields in one: a reader sees all of them or none."""
        with self._lock:
            self._bytes[MODE_BYTE] |= LOCKED
            try:
                self._put(n, total, status)
            finally:
                self._bytes[MODE_BYTE] = self._mode
        self._publish(False)

    def _put(self, n: Any = _KEEP, total: Any = _KEEP, status: Any = _KEEP) -> None:
        # Whatever may fail comes before the sequence is odd: it would stay odd.
        n_kind = _kind(n, "n")
        total_kind = _kind(total, "total")
        text = b"" if status is _KEEP else _encoded(status)

        sequence = self._words[SEQUENCE] | 1
        self._words[SEQUENCE] = sequence
        fence()
        if n is not _KEEP:
            self._store(N, N_KIND_BYTE, n, n_kind)
            self._mode = self._mode & ~(FLOATING | WIDE) | (FLOATING if n_kind == FLOAT else WIDE if n_kind == BIG else 0)
        if total is not _KEEP:
            self._store(TOTAL, TOTAL_KIND_BYTE, total, total_kind)
        if status is not _KEEP:
            self._bytes[STATUS_LENGTH_BYTE] = len(text) & 255
            self._bytes[STATUS_LENGTH_BYTE + 1] = len(text) >> 8
            self._bytes[STATUS_BYTE : STATUS_BYTE + len(text)] = text
        fence()
        self._words[SEQUENCE] = sequence + 1

    def _store(self, word: int, kind_byte: int, number: Any, kind: int) -> None:
        self._bytes[kind_byte] = kind
        if kind == INT:
            self._words[word] = number
        elif kind == FLOAT:
            self._doubles[word] = number
        elif kind == BIG:
            data = number.to_bytes(NUMBER_SIZE, sys.byteorder, signed=True)
            self._bytes[8 * word : 8 * word + NUMBER_SIZE] = data

    def _load(self, word: int, kind_byte: int) -> int | float | None:
        kind = self._bytes[kind_byte]
        if kind == INT:
            return self._words[word]
        if kind == FLOAT:
            return self._doubles[word]
        if kind == BIG:
            return int.from_bytes(self._bytes[8 * word : 8 * word + NUMBER_SIZE], sys.byteorder, signed=True)
        return None


class _Iteration:
    """What `progress(iterable)` returns when compiled."""

    __slots__ = ("_counting", "_iterator", "_updater")

    _updater: Updater
    _iterator: Iterator[Any]
    _counting: bool  # the loop's body has the last item; it counts when the loop comes back

    def __init__(self, updater: Updater, iterator: Iterator[Any]) -> None:
        self._updater = updater
        self._iterator = iterator
        self._counting = False

    def __iter__(self) -> _Iteration:
        return self

    def __next__(self) -> Any:
        updater = self._updater
        if self._counting:
            self._counting = False
            n = cython.declare(cython.longlong)
            if updater._words[CONTROL] == 0 and pe_add(updater._words[N], 1, cython.address(n)):
                updater._words[N] = n
            else:
                updater._add(1)
        else:
            updater.check()
        item = next(self._iterator)
        self._counting = True
        return item
