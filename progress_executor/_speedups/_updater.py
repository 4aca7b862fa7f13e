"""The task's side: `Updater`, which writes a task's progress into its slot and sees in it that the task is to stop.

One source, two forms: Cython compiles this file as `_updater_c` with the C types of `_updater_c.pxd`, and Python runs it as
it is. `if cython.compiled:` marks the few places where the two need different words for the same thing. Nothing here reads a
clock, and a step takes no lock: its fast path is "the control word is zero, so add to the int64".
"""

from __future__ import annotations

import operator
import struct
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
    RECORD_BYTE,
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
    from cython.cimports.progress_executor._speedups._c import (
        PE_CONTROL,
        PE_N,
        PE_VECTORCALL,
        pe_add,
        pe_double,
        pe_fence,
        pe_make_vectorcallable,
        pe_next,
        pe_small,
    )

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
        # Python has no other barriers than those of its locks. On x86 each of them is a full one; on ARM an acquire keeps
        # what follows behind it and a release what precedes before it, so that the two sides of a single pair may still
        # change places inside it. Two pairs cannot be crossed: no acquire passes a release before it (ARMv8, RCsc).
        with _fence_lock:
            pass
        with _fence_lock:
            pass


def _number(value: Any, name: str) -> int | float:
    """`value` as an exact int or a finite float."""
    kind = type(value)
    if isinstance(value, (str, bytes, complex)):  # NumPy's have methods that guess
        raise TypeError(f"{name} must be a number, not {kind.__name__}")
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


def _store(record: bytearray, word: int, kind_byte: int, number: Any, name: str) -> None:
    """Write `number` (None: unknown) where it belongs in a slot's bytes."""
    if number is None:
        record[kind_byte] = NONE
    elif isinstance(number, float):
        if not isfinite(number):
            raise ValueError(f"{name} would become infinite")
        record[kind_byte] = FLOAT
        struct.pack_into("d", record, 8 * word, number)
    elif number.bit_length() < 64:
        record[kind_byte] = INT
        struct.pack_into("q", record, 8 * word, number)
    elif number.bit_length() < 8 * NUMBER_SIZE:
        record[kind_byte] = BIG
        record[8 * word : 8 * word + NUMBER_SIZE] = number.to_bytes(NUMBER_SIZE, sys.byteorder, signed=True)
    else:
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
    __slots__ = ("_base_mode", "_bytes", "_changes", "_doubles", "_lock", "_n", "_push", "_words")

    _words: memoryview[int]
    _doubles: memoryview[float]
    _bytes: memoryview[int]
    _push: Callable[[bool], None] | None
    _base_mode: int
    _n: int  # what the hot path has stored last: interpreted, a field is read faster than a memoryview
    _changes: list[tuple[Any, Any, Any, Any]]

    # Made ready by `__new__`: an `__init__` can be left out, and nothing may read C fields that nobody has set.
    if cython.compiled:

        def __cinit__(self, slot: Any = None, push: Callable[[bool], None] | None = None) -> None:
            self._vectorcall = PE_VECTORCALL  # type: ignore[misc]
            self._set_up(slot, push)

    else:

        def __new__(cls, slot: Any = None, push: Callable[[bool], None] | None = None) -> Self:
            """Executors pass the slot, a writable buffer of `SLOT_SIZE` bytes, and `push(now)`, called at each step."""
            self = object.__new__(cls)
            self._set_up(slot, push)
            return self

        def __init_subclass__(cls) -> NoReturn:
            raise TypeError("type 'Updater' is not an acceptable base type")

    def _set_up(self, slot: Any, push: Callable[[bool], None] | None) -> None:
        self._lock = RLock()
        self._changes = []
        self._push = push
        self._base_mode = _BASE_MODE if push is None else _BASE_MODE | PUSHING
        if slot is None:
            slot = bytearray(SLOT_SIZE)
            slot[TOTAL_KIND_BYTE] = NONE
        self._attach(slot)
        self._unlock()

    def _attach(self, slot: Any) -> None:
        view = memoryview(slot).cast("B")
        if len(view) < SLOT_SIZE:
            raise ValueError(f"a slot has {SLOT_SIZE} bytes, not {len(view)}")
        self._bytes = view
        self._words = view.cast("q")
        self._doubles = view.cast("d")

    def _detach(self) -> None:
        """Go on in memory of its own: the slot is about to belong to another task, and threads may still count here."""
        with self._lock:
            self._bytes[MODE_BYTE] |= LOCKED
            self._attach(bytearray(self._bytes))
            self._unlock()

    # Counting

    def __call__(self, iterable: Any = _KEEP, total: Any = None, *, amount: Any = None) -> Any:
        """Iterate over `iterable` and count, or add a number.

        `progress(iterable, total=None)` sets n to 0 and total to the given one, else to the iterable's length or its
        length hint, else to unknown, and returns an iterator over the items. An item counts when the loop's body for
        it has finished. `progress(amount=1)` is `progress.update(amount)`.
        """
        if iterable is _KEEP:
            iterable = 1 if amount is None else amount
        elif amount is not None:
            raise TypeError("progress() takes an iterable or an amount, not both")
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
        return _Iteration(self, iterator)

    def update(self, amount: Any = 1) -> None:
        """Add `amount`, anything with `__index__` or `__float__`; an int stays exact.

        Raises ValueError for NaN and infinities, TypeError for what is no number, OverflowError beyond 256 bits; nothing
        is added then.
        """
        if cython.compiled:
            step = cython.declare(cython.longlong)
            n = cython.declare(cython.longlong)
            value = cython.declare(cython.double)
            # First the conversion: __index__ may run Python code, and nothing may come between test and store.
            if pe_small(amount, cython.address(step)):
                if self._words[PE_CONTROL] == 0 and pe_add(self._words[PE_N], step, cython.address(n)):
                    self._words[PE_N] = n
                    return
            elif self._words[PE_CONTROL] == _FLOATING_WORD and pe_double(amount, cython.address(value)):
                value += self._doubles[N]
                if isfinite(value):
                    self._doubles[N] = value
                    return
        self._add(amount)

    def _add(self, amount: Any) -> None:
        self._write(step=_number(amount, "amount"))

    # State

    @property
    def n(self) -> int | float:
        """How much is done."""
        with self._lock:
            n: int | float = self._load(N, N_KIND_BYTE, 0)
            return n

    @n.setter
    def n(self, value: Any) -> None:
        self._write(_number(value, "n"))

    @property
    def total(self) -> int | float | None:
        """How much there is to do, None where that is unknown. Assigning a negative one is a ValueError."""
        with self._lock:
            total: int | float | None = self._load(TOTAL, TOTAL_KIND_BYTE, None)
            return total

    @total.setter
    def total(self, value: Any) -> None:
        self._write(total=_total(value))

    @property
    def status(self) -> str:
        """The task's own words for what it is doing, "" for none."""
        with self._lock:
            length = self._bytes[STATUS_LENGTH_BYTE] | self._bytes[STATUS_LENGTH_BYTE + 1] << 8
            return bytes(self._bytes[STATUS_BYTE : STATUS_BYTE + length]).decode("utf-8", "replace")

    @status.setter
    def status(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"status must be a str, not {type(value).__name__}")
        self._write(status=value)

    def reset(self, total: Any = None) -> None:
        """Set n to 0 and, unless it is None, the total; as in tqdm."""
        self._write(0, _KEEP if total is None else _total(total))

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

    def _write(self, n: Any = _KEEP, total: Any = _KEEP, status: Any = _KEEP, step: Any = _KEEP) -> None:
        """Set the given fields, or add `step` to n, in one: a reader sees all of the change or nothing of it."""
        with self._lock:
            self._changes.append((n, total, status, step))
            if len(self._changes) > 1:
                return  # a signal handler or a finalizer in the midst of what follows, which sees to its change, too
            # First turn the hot path of other threads away, then read: what they have added until then is read, too.
            self._bytes[MODE_BYTE] |= LOCKED
            try:
                while self._changes:
                    self._put(*self._changes[0])
                    del self._changes[0]
            finally:
                self._changes.clear()
                self._unlock()
        self._publish(False)

    def _unlock(self) -> None:
        kind = self._bytes[N_KIND_BYTE]
        self._n = self._words[N]
        self._bytes[MODE_BYTE] = self._base_mode | (FLOATING if kind == FLOAT else WIDE if kind == BIG else 0)

    def _put(self, n: Any, total: Any, status: Any, step: Any) -> None:
        if step is not _KEEP:
            n = self._load(N, N_KIND_BYTE, 0) + step
        # Made apart and stored in one, so that an exception at any moment (Ctrl-C) leaves nothing half written.
        record = bytearray(self._bytes)
        if n is not _KEEP:
            _store(record, N, N_KIND_BYTE, n, "n")
        if total is not _KEEP:
            _store(record, TOTAL, TOTAL_KIND_BYTE, total, "total")
        if status is not _KEEP:
            text = _encoded(status)
            record[STATUS_LENGTH_BYTE : STATUS_LENGTH_BYTE + 2] = len(text).to_bytes(2, "little")
            record[STATUS_BYTE : STATUS_BYTE + len(text)] = text
        sequence = self._words[SEQUENCE] | 1
        try:
            self._words[SEQUENCE] = sequence
            fence()
            self._bytes[RECORD_BYTE:SLOT_SIZE] = record[RECORD_BYTE:SLOT_SIZE]
            fence()
        finally:
            self._words[SEQUENCE] = sequence + 1

    def _load(self, word: int, kind_byte: int, otherwise: Any) -> Any:
        """The number there, or `otherwise` if there is none: a slot that something else has written to fails no task."""
        kind = self._bytes[kind_byte]
        if kind == INT:
            return self._words[word]
        if kind == FLOAT:
            number = self._doubles[word]
            return number if isfinite(number) else otherwise
        if kind == BIG:
            return int.from_bytes(self._bytes[8 * word : 8 * word + NUMBER_SIZE], sys.byteorder, signed=True)
        return otherwise


class _Iteration:
    """What `progress(iterable)` returns. Each step counts the item before, whose body has finished, and fetches the next."""

    __slots__ = ("_counting", "_iterator", "_updater")

    _updater: Updater
    _iterator: Iterator[Any]
    _counting: bool  # the loop's body has an item; it counts when the loop comes back

    def __cinit__(self, updater: Updater, iterator: Iterator[Any]) -> None:
        if not isinstance(updater, Updater):  # None would pass for one, and the compiled steps look into it unasked
            raise TypeError(f"an Updater is needed, not {type(updater).__name__}")
        self._updater = updater
        self._iterator = iter(iterator)
        self._counting = False

    if not cython.compiled:
        __init__ = __cinit__

    def __iter__(self) -> Iterator[Any]:
        if cython.compiled:
            return self
        return self._steps()

    def __next__(self) -> Any:
        if self._counting:
            if cython.compiled:
                n = cython.declare(cython.longlong)
                if self._updater._words[PE_CONTROL] == 0 and pe_add(self._updater._words[PE_N], 1, cython.address(n)):
                    self._updater._words[PE_N] = n
                else:
                    self._counting = False
                    self._updater._add(1)
            else:
                self._counting = False
                self._updater.update(1)
        else:
            self._updater.check()
        if cython.compiled:
            return pe_next(cython.cast(cython.p_void, self._iterator), cython.address(self._counting))
        item = next(self._iterator)
        self._counting = True
        return item

    if not cython.compiled:

        def _steps(self) -> Iterator[Any]:
            """The same for a `for` loop: interpreted, a generator is twice as fast."""
            updater = self._updater
            if self._counting:
                self._counting = False
                updater.update(1)
            else:
                updater.check()
            for item in self._iterator:
                try:
                    yield item
                except GeneratorExit:  # the loop was left in its body
                    self._counting = True
                    raise
                words = updater._words  # looked up at every step: see _detach
                try:
                    if not words[CONTROL]:
                        n = updater._n + 1
                        words[N] = n
                        updater._n = n
                        continue
                except ValueError:  # more than 64 bits
                    pass
                updater._add(1)


def _update(updater: Updater, amount: Any) -> Any:
    return updater.update(amount)


if cython.compiled:
    assert (PE_CONTROL, PE_N) == (CONTROL, N)
    _any = cython.declare(Updater, Updater())
    pe_make_vectorcallable(_any, cython.address(_any._vectorcall), cython.cast(cython.p_void, _update))


def _interpreted_update(self: Updater, amount: Any = 1) -> None:
    # The GIL is offered at calls and backward jumps only (CPython 3.11 to 3.13): nothing comes between the test
    # of the control word and the store.
    words = self._words
    if words[CONTROL] == 0:
        if amount.__class__ is int:
            try:
                words[N] = self._n = self._n + amount
                return
            except ValueError:  # more than 64 bits
                pass
    elif words[CONTROL] == _FLOATING_WORD and type(amount) is float:
        doubles = self._doubles
        total = doubles[N] + amount
        if total - total == 0.0 and words[CONTROL] == _FLOATING_WORD:  # isfinite() would be a call
            doubles[N] = total
            return
    self._add(amount)


if not cython.compiled:
    # In a function of its own it need not ask, at each call, which form it is.
    _interpreted_update.__doc__ = Updater.update.__doc__
    _interpreted_update.__name__ = "update"
    _interpreted_update.__qualname__ = "Updater.update"
    Updater.update = _interpreted_update  # type: ignore[method-assign]
