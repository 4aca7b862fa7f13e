"""The caller's view of one slot: read it consistently, cancel through it. The bytes may lie in local or in shared memory.

The writer's side is `_speedups/_updater.py`; both follow `_speedups/_layout.py`. Nothing that stands in a slot is trusted:
any bytes give a valid state.
"""

import sys
from math import inf, isfinite
from time import sleep
from typing import Any

from ._speedups import fence
from ._speedups._layout import (
    BIG,
    CALLER_BYTE,
    CANCEL,
    FLOAT,
    INT,
    N_KIND_BYTE,
    NONE,
    NUMBER_SIZE,
    SEQUENCE,
    SLOT_SIZE,
    STARTED_AT,
    STATUS_BYTE,
    STATUS_LENGTH_BYTE,
    STATUS_SIZE,
    TOTAL,
    TOTAL_KIND_BYTE,
    N,
)
from .state import PENDING, RUNNING, ProgressState

_SPINS = 20
_TRIES = 100
LAST_TRIES = 500
"""For the final state, which nobody reads again: those beyond the usual ones take some 0.1 s."""

_empty = bytearray(SLOT_SIZE)
_empty[TOTAL_KIND_BYTE] = NONE
EMPTY = bytes(_empty)
"""The bytes of a slot that nobody wrote to: n is 0, total unknown, not started."""

# The sequence, the kind of n and the state of the last snapshot.
_AT_FIRST = 0, INT, ProgressState(n=0, total=None, status=RUNNING)


class Slot:
    """One slot, in a writable buffer of `SLOT_SIZE` bytes (by default, memory of its own) that holds `EMPTY`."""

    __slots__ = ("_doubles", "_known", "_words", "buffer")

    def __init__(self, buffer: Any = None) -> None:
        self.buffer = memoryview(bytearray(EMPTY) if buffer is None else buffer)
        self._words = self.buffer.cast("q")
        self._doubles = self.buffer.cast("d")
        self._known = _AT_FIRST

    def clear(self) -> None:
        """Make it the slot of a new task."""
        self.buffer[:] = EMPTY
        self._known = _AT_FIRST

    def start(self, now: float) -> None:
        """The task begins; called on its side, with the time."""
        self._doubles[STARTED_AT] = now  # tells when and that in one store: of two, ARM could show the second one first

    @property
    def started_at(self) -> float | None:
        """When the task began, in seconds since the epoch; None if it has not."""
        started_at = self._doubles[STARTED_AT]
        return started_at if 0 < started_at < inf else None

    def cancel(self) -> None:
        """Ask the task to stop: it notices at its next progress call, or before its function is entered."""
        self.buffer[CALLER_BYTE] = CANCEL
        fence()  # see `may_begin`

    def may_begin(self) -> bool:
        """Whether the task, which has just started, was not cancelled before: asked in another process than the caller's.

        Either this sees `cancel`, or whoever cancels finds the task started behind it. Each side writes and then reads
        what the other writes, and a processor, x86 too, may well read first; not across a fence.
        """
        fence()
        return self.buffer[CALLER_BYTE] != CANCEL

    def snapshot(self, tries: int = _TRIES) -> ProgressState:
        """n, total and status, all from the same write.

        Gives up after `tries` torn reads and returns the last consistent snapshot: a worker killed between two
        stores leaves the sequence odd for ever.

        This is a seqlock: the writer makes the sequence odd, writes, makes it even; what was read between two equal even
        values is from one write. Where that value is the last snapshot's, only n can be new: a step changes n alone, without
        the sequence, in one store of 8 aligned bytes, which a 64-bit processor does whole.

        The stores have to be seen in their order, and the loads to be made in theirs. x86 does that by itself, ARM does not:
        hence a fence on either side of what is written, and of what is read, between it and the sequence. A step's store has
        none: ARM may show it before the even value of the write that precedes it. But not before the odd one: who has
        read such an n finds behind the second fence that the sequence is another, and reads again.

        Between threads the GIL does all this, and between a task's last store and the reading of its final state the pipe
        through which its result came.
        """
        if not 0 < self._doubles[STARTED_AT] < inf:
            return ProgressState(n=0, total=None, status=PENDING)
        known, kind, state = self._known
        for attempt in range(tries):
            sequence = self._words[SEQUENCE]
            if not sequence & 1:
                fence()
                n, double = self._words[N], self._doubles[N]
                record = None if sequence == known else bytes(self.buffer)
                fence()
                if self._words[SEQUENCE] == sequence:
                    try:
                        kind, found = (kind, state) if record is None else _decoded(record)
                        state = _with_n(found, kind, n, double)
                        self._known = sequence, kind, state
                    except ValueError:  # nothing that an Updater writes
                        pass
                    break
            if attempt >= _TRIES:  # on a busy machine the writer waits for a processor
                sleep(0.0001)
            elif attempt >= _SPINS:  # a writer in a thread of this process needs the GIL to go on
                sleep(0)
        return state.copy()

    def release(self) -> None:
        """Let go of the buffer, which cannot be closed before; `snapshot` and `started_at` stay as they are."""
        last = Slot(bytearray(self.buffer))
        last._known = self._known
        self._words.release()
        self._doubles.release()
        self.buffer.release()
        self.buffer, self._words, self._doubles = last.buffer, last._words, last._doubles


def _with_n(state: ProgressState, kind: int, n: int, double: float) -> ProgressState:
    if kind == INT:
        return {"n": n, "total": state["total"], "status": state["status"]}
    if kind == FLOAT:
        if not isfinite(double):
            raise ValueError
        return {"n": double, "total": state["total"], "status": state["status"]}
    return state  # such a large int does not change alone


def _decoded(record: bytes) -> tuple[int, ProgressState]:
    """The kind of n, and the state."""
    kind = record[N_KIND_BYTE]
    n = _number(record, N, kind)
    total = _number(record, TOTAL, record[TOTAL_KIND_BYTE])
    length = int.from_bytes(record[STATUS_LENGTH_BYTE : STATUS_LENGTH_BYTE + 2], "little")
    if n is None or (total is not None and not 0 <= total < float("inf")) or length > STATUS_SIZE:
        raise ValueError
    status = record[STATUS_BYTE : STATUS_BYTE + length].decode()
    return kind, {"n": n, "total": total, "status": status or RUNNING}


def _number(record: bytes, word: int, kind: int) -> int | float | None:
    at = 8 * word
    if kind == INT:
        return int.from_bytes(record[at : at + 8], sys.byteorder, signed=True)
    if kind == FLOAT:
        return float(memoryview(record)[at : at + 8].cast("d")[0])
    if kind == BIG:
        return int.from_bytes(record[at : at + NUMBER_SIZE], sys.byteorder, signed=True)
    if kind == NONE:
        return None
    raise ValueError
