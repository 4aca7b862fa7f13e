"""The caller's view of one slot: read it consistently, cancel and pause through it. The bytes lie in local or shared memory.

The writer's side is `_speedups/_updater.py`; both follow `_speedups/_layout.py`. Nothing that stands in a slot is trusted:
any bytes give a valid state.
"""

import sys
from math import copysign, isfinite
from sys import float_info
from time import monotonic, sleep
from typing import Any

from ._speedups import fence
from ._speedups._layout import (
    ASKED,
    CALLER_BYTE,
    CANCEL,
    FLOAT,
    GO,
    INSIDE,
    INSIDE_KIND_BYTE,
    INT,
    LEFT,
    LISTENS_BYTE,
    MESSAGE_BYTE,
    MESSAGE_LENGTH_BYTE,
    MESSAGE_SIZE,
    MESSAGES,
    MESSAGES_TAKEN,
    NO_FLOAT,
    NONE,
    OPEN_BYTE,
    PAUSE,
    PAUSE_BYTE,
    PAUSED_SECONDS,
    PAUSED_SINCE,
    PUBLISH_BYTE,
    RECORD_END,
    SEQUENCE,
    SLOT_SIZE,
    STARTED_AT,
    STATUS_BYTE,
    STATUS_LENGTH_BYTE,
    STATUS_SIZE,
    TAKEN,
    TAKEN_BACK_BYTE,
    TOTAL,
    TOTAL_KIND_BYTE,
    N,
    encoded,
)
from ._state import PAUSED, PENDING, RUNNING, ProgressState

_NEVER = 1e12
"""Seconds that no clock shows: what is beyond was written by no task, and bars could not calculate with it."""
_SPINS = 20
_TRIES = 100
LAST_TRIES = 500
"""For the final state, which nobody reads again: those beyond the usual ones take some 0.1 s."""

_empty = bytearray(SLOT_SIZE)
memoryview(_empty).cast("q")[N + 1] = NO_FLOAT
EMPTY = bytes(_empty)
"""The bytes of a slot that nobody wrote to: n is 0, total unknown, not started."""

# The sequence, how much the parts have counted and the state of the last snapshot.
_AT_FIRST: tuple[int, int | float, ProgressState] = 0, 0, ProgressState(n=0, total=None, status=RUNNING)


class Slot:
    """One slot, in a writable buffer of `SLOT_SIZE` bytes (by default, memory of its own) that holds `EMPTY`."""

    __slots__ = ("_doubles", "_known", "_words", "buffer")

    def __init__(self, buffer: Any = None) -> None:
        self.buffer: memoryview[int] = memoryview(bytearray(EMPTY) if buffer is None else buffer)
        self._words = self.buffer.cast("q")
        self._doubles = self.buffer.cast("d")
        self._known = _AT_FIRST

    def renewed(self) -> "Slot":
        """The slot of a new task, in the same memory. Not the same object: somebody may still read of the old one's."""
        slot = Slot.__new__(Slot)
        slot.buffer, slot._words, slot._doubles = self.buffer, self._words, self._doubles
        slot.buffer[:] = EMPTY
        slot._known = _AT_FIRST
        return slot

    def start(self, now: float) -> None:
        """The task begins; called on its side, with the time."""
        self._doubles[STARTED_AT] = now  # tells when and that in one store: of two, ARM could show the second one first

    @property
    def started_at(self) -> float | None:
        """When the task began, in seconds since the epoch; None if it has not."""
        started_at = self._doubles[STARTED_AT]
        return started_at if 0 < started_at < _NEVER else None

    @property
    def blank(self) -> bool:
        """Whether nothing was reported, or what makes no difference."""
        return not self._words[SEQUENCE] and not self._words[N] and self._words[N + 1] == NO_FLOAT

    @property
    def change_count(self) -> tuple[int, ...]:
        """What each report changes, also one that the state does not show: a message, or a part whose total is unknown.

        The steps of parts show when a snapshot has asked for them.
        """
        words = self._words
        return words[SEQUENCE], words[N], words[N + 1], words[MESSAGES]

    @property
    def paused_seconds(self) -> float:
        """For how many seconds the task has stood still."""
        stood, since = self._doubles[PAUSED_SECONDS], self._doubles[PAUSED_SINCE]
        stood = stood if 0 < stood < _NEVER else 0.0
        return stood + max(0.0, monotonic() - since) if 0 < since < _NEVER else stood

    def cancel(self, reason: str | None = None) -> None:
        """Ask the task to stop: it notices at its next progress call, or before its function is entered."""
        if reason:
            text = encoded(reason, MESSAGE_SIZE)
            self.buffer[MESSAGE_BYTE : MESSAGE_BYTE + len(text)] = text
            self.buffer[MESSAGE_LENGTH_BYTE] = len(text)
            fence()
        self.buffer[CALLER_BYTE] = CANCEL
        fence()  # see `may_begin`

    @property
    def cancelled(self) -> bool:
        """Whether the task is asked to stop."""
        return bool(self.buffer[CALLER_BYTE] == CANCEL)

    def pause(self, paused: bool) -> None:
        """Have the task stand still at its next progress call, or go on."""
        self.buffer[PAUSE_BYTE] = PAUSE if paused else GO

    def listen(self, listens: bool = True) -> None:
        """Have the task wait a moment where its messages find no room, as somebody takes them; or no more."""
        self.buffer[LISTENS_BYTE] = listens

    @property
    def listened(self) -> bool:
        """Whether somebody takes the task's messages."""
        return bool(self.buffer[LISTENS_BYTE])

    def note_message(self) -> None:
        """The task says something; called on its side."""
        self._words[MESSAGES] += 1

    @property
    def taken(self) -> int:
        """How many bytes of the task's messages were taken."""
        return self._words[MESSAGES_TAKEN]

    def take(self, size: int) -> None:
        """Note that so many more were."""
        self._words[MESSAGES_TAKEN] += size

    def take_back(self) -> bool:
        """Have a task that was given in advance not begin; False if it has begun."""
        taken = False
        self.buffer[TAKEN_BACK_BYTE] = ASKED
        try:
            fence()  # see `may_begin`
            taken = self.started_at is None
        finally:
            self.buffer[TAKEN_BACK_BYTE] = TAKEN if taken else LEFT
        return taken

    def may_begin(self) -> bool:
        """Whether the task, which has just started, was neither cancelled nor taken back before: asked in its own process.

        Either this sees it, or whoever does so finds the task started behind it; both may be. Each side writes and then
        reads what the other writes, and a processor, x86 too, may well read first; not across a fence. Where both see the
        other, the caller decides: a task that is left to a worker and not run there would have to wait behind the next.
        """
        fence()
        while self.buffer[TAKEN_BACK_BYTE] == ASKED:  # it is about to know
            sleep(0.00005)
        return self.buffer[CALLER_BYTE] != CANCEL and self.buffer[TAKEN_BACK_BYTE] != TAKEN

    def snapshot(self, tries: int = _TRIES) -> ProgressState:
        """n, total and status, all from the same write.

        Asks a task that has open parts to publish what they have counted, for the next snapshot.

        Gives up after `tries` torn reads and returns the last consistent snapshot: a worker killed between two
        stores leaves the sequence odd for ever.

        This is a seqlock: the writer makes the sequence odd, writes, makes it even; what was read between two equal even
        values is from one write. Where that value is the last snapshot's, only the counters can be new: a step changes one
        of them, without the sequence, in one store of 8 aligned bytes, which a 64-bit processor does whole.

        The stores have to be seen in their order, and the loads to be made in theirs. x86 does that by itself, ARM does not:
        hence a fence on either side of what is written, and of what is read, between it and the sequence. A step's store has
        none: ARM may show it before the even value of the write that precedes it. But not before the odd one: who has
        read such an n finds behind the second fence that the sequence is another, and reads again.

        Between threads the GIL does all this, and between a task's last store and the reading of its final state the pipe
        through which its result came.
        """
        if not 0 < self._doubles[STARTED_AT] < _NEVER:
            return ProgressState(n=0, total=None, status=PENDING)
        known, inside, state = self._known
        for attempt in range(tries):
            sequence = self._words[SEQUENCE]
            if not sequence & 1:
                fence()
                ints, bits, double = self._words[N], self._words[N + 1], self._doubles[N + 1]
                record = None if sequence == known else bytes(self.buffer[:RECORD_END])
                fence()
                if self._words[SEQUENCE] == sequence:
                    try:
                        inside, found = (inside, state) if record is None else _decoded(record)
                        n = (ints if bits == NO_FLOAT else ints + _checked(double)) + inside
                        n = n if isfinite(n) else copysign(float_info.max, n)
                        state = {"n": n, "total": found["total"], "status": found["status"]}
                        self._known = sequence, inside, state
                    except ValueError:  # nothing that an Updater writes
                        pass
                    break
            if attempt >= _TRIES:  # on a busy machine the writer waits for a processor
                sleep(0.0001)
            elif attempt >= _SPINS:  # a writer in a thread of this process needs the GIL to go on
                sleep(0)
        if self.buffer[OPEN_BYTE]:
            self.buffer[PUBLISH_BYTE] = 1
        if 0 < self._doubles[PAUSED_SINCE] < _NEVER:
            return ProgressState(n=state["n"], total=state["total"], status=PAUSED)
        return state.copy()


def _decoded(record: bytes) -> tuple[int | float, ProgressState]:
    """What the parts have counted, and the state but for n."""
    inside = _number(record, INSIDE, record[INSIDE_KIND_BYTE])
    total = _number(record, TOTAL, record[TOTAL_KIND_BYTE])
    length = int.from_bytes(record[STATUS_LENGTH_BYTE : STATUS_LENGTH_BYTE + 2], "little")
    if (total is not None and total < 0) or length > STATUS_SIZE:
        raise ValueError
    status = record[STATUS_BYTE : STATUS_BYTE + length].decode()
    return 0 if inside is None else inside, {"n": 0, "total": total, "status": status or RUNNING}


def _number(record: bytes, word: int, kind: int) -> int | float | None:
    at = 8 * word
    if kind == INT:
        return int.from_bytes(record[at : at + 8], sys.byteorder, signed=True)
    if kind == FLOAT:
        return _checked(float(memoryview(record)[at : at + 8].cast("d")[0]))
    if kind == NONE:
        return None
    raise ValueError


def _checked(number: float) -> int | float:
    if not isfinite(number):
        raise ValueError
    return number
