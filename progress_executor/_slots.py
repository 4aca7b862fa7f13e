"""The caller's view of one slot: read it consistently, cancel and pause through it. The bytes lie in local or shared memory.

The writer's side is `_speedups/_updater.py`; both follow `_speedups/_layout.py`. Nothing that stands in a slot is trusted:
any bytes give a valid state.
"""

import struct
import sys
from math import inf, isfinite
from time import monotonic, sleep
from typing import Any

from ._speedups import fence
from ._speedups._layout import (
    ALONE,
    ASKED,
    BIG,
    CALLER_BYTE,
    CANCEL,
    FLOAT,
    FRAME_SIZE,
    GO,
    HEARD,
    INT,
    LEFT,
    LISTENS_BYTE,
    LOST,
    MESSAGE_BYTE,
    MESSAGE_LENGTH_BYTE,
    MESSAGE_SIZE,
    N_KIND_BYTE,
    NONE,
    NUMBER_SIZE,
    PART_BYTE,
    PAUSE,
    PAUSE_BYTE,
    PLUS,
    RECORD_END,
    RING_BYTE,
    RING_SIZE,
    SAID,
    SCALE,
    SCALED,
    SEQUENCE,
    SLOT_SIZE,
    STANDS_SINCE,
    STARTED_AT,
    STATUS_BYTE,
    STATUS_LENGTH_BYTE,
    STATUS_SIZE,
    STOOD,
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
_empty[TOTAL_KIND_BYTE] = NONE
EMPTY = bytes(_empty)
"""The bytes of a slot that nobody wrote to: n is 0, total unknown, not started."""

_BLANK = EMPTY[:RING_BYTE]
"""Of what is behind it nothing counts then."""

_Scale = tuple[float, float, float, float]
"""low, high, first, last: what the n of a task with parts is calculated from, see `_layout.py`."""

# The sequence, the kind of n in the slot, its scale and the state of the last snapshot.
_AT_FIRST: tuple[int, int, _Scale | None, ProgressState] = 0, INT, None, ProgressState(n=0, total=None, status=RUNNING)


class Slot:
    """One slot, in a writable buffer of `SLOT_SIZE` bytes (by default, memory of its own) that holds `EMPTY`."""

    __slots__ = ("_doubles", "_known", "_words", "buffer", "spoke")

    spoke: bool
    """Whether the task had said something when the last snapshot was taken."""

    def __init__(self, buffer: Any = None) -> None:
        self.buffer = memoryview(bytearray(EMPTY) if buffer is None else buffer)
        self._words = self.buffer.cast("q")
        self._doubles = self.buffer.cast("d")
        self._known = _AT_FIRST
        self.spoke = False

    def renewed(self) -> "Slot":
        """The slot of a new task, in the same memory. Not the same object: somebody may still read of the old one's."""
        slot = Slot.__new__(Slot)
        slot.buffer, slot._words, slot._doubles = self.buffer, self._words, self._doubles
        slot.buffer[:RING_BYTE] = _BLANK
        slot._known = _AT_FIRST
        slot.spoke = False
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
        return not self._words[SEQUENCE] and not self._words[N]

    @property
    def unheard(self) -> bool:
        """Whether there is something to take."""
        return self._words[SAID] != self._words[HEARD]

    @property
    def pulse(self) -> tuple[int, int]:
        """What each report changes, also one that the state does not show: of a part whose total is unknown, say."""
        return self._words[SEQUENCE], self._words[N]

    @property
    def stood(self) -> float:
        """For how many seconds the task has stood still."""
        stood, since = self._doubles[STOOD], self._doubles[STANDS_SINCE]
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

    def pause(self, paused: bool) -> None:
        """Have the task stand still at its next progress call, or go on."""
        self.buffer[PAUSE_BYTE] = PAUSE if paused else GO

    def listen(self, listens: bool = True) -> None:
        """Have the task wait for room, a moment, where the ring is full, as somebody takes out what it says; or no more."""
        self.buffer[LISTENS_BYTE] = listens

    def take(self, last: bool = False) -> list[str]:
        """What the task has said since the last call, one text each; how many found no room is told where they were.

        `last`: also those after which none came. The task writes a text and then, behind a fence, how far it has written; so
        what is read here is whole, also if it was killed. Of two threads that call this each might have all of it.
        """
        said, heard = self._words[SAID], self._words[HEARD]
        texts: list[str] = []
        if said != heard:
            fence()
            data = self._in_ring(heard, said - heard) if 0 < said - heard <= RING_SIZE else b""
            fence()
            self._words[HEARD] = said
            at = 0
            while at + FRAME_SIZE <= len(data):
                length, lost = struct.unpack_from("II", data, at)
                if lost:
                    texts.append(_told_as_lost(lost))
                at += FRAME_SIZE
                texts.append(data[at : at + length].decode("utf-8", "replace"))
                at += length
        if last and self._words[LOST] > 0:
            texts.append(_told_as_lost(self._words[LOST]))
        return texts

    def _in_ring(self, start: int, size: int) -> bytes:
        ring = self.buffer[RING_BYTE:]
        at = start % RING_SIZE
        return bytes(ring[at : at + size]) + bytes(ring[: max(at + size - RING_SIZE, 0)])

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
        if not 0 < self._doubles[STARTED_AT] < _NEVER:
            return ProgressState(n=0, total=None, status=PENDING)
        self.spoke = self._words[SAID] != 0
        known, kind, scale, state = self._known
        for attempt in range(tries):
            sequence = self._words[SEQUENCE]
            if not sequence & 1:
                fence()
                n, double = self._words[N], self._doubles[N]
                record = None if sequence == known else bytes(self.buffer[:RECORD_END])
                fence()
                if self._words[SEQUENCE] == sequence:
                    try:
                        kind, scale, found = (kind, scale, state) if record is None else _decoded(record)
                        state = _with_n(found, kind, scale, n, double)
                        self._known = sequence, kind, scale, state
                    except ValueError:  # nothing that an Updater writes
                        pass
                    break
            if attempt >= _TRIES:  # on a busy machine the writer waits for a processor
                sleep(0.0001)
            elif attempt >= _SPINS:  # a writer in a thread of this process needs the GIL to go on
                sleep(0)
        if 0 < self._doubles[STANDS_SINCE] < _NEVER:
            return ProgressState(n=state["n"], total=state["total"], status=PAUSED)
        return state.copy()


def _told_as_lost(count: int) -> str:
    return f"[{count} lost: said faster than they were read]"


def _with_n(state: ProgressState, kind: int, scale: _Scale | None, n: int, double: float) -> ProgressState:
    if kind == INT:
        return {"n": n if scale is None else _scaled(n, scale), "total": state["total"], "status": state["status"]}
    if kind == FLOAT:
        if not isfinite(double):
            raise ValueError
        return {"n": double if scale is None else _scaled(double, scale), "total": state["total"], "status": state["status"]}
    return state  # such a large int does not change alone


def _decoded(record: bytes) -> tuple[int, _Scale | None, ProgressState]:
    """The kind of n, its scale, and the state."""
    kind = record[N_KIND_BYTE]
    n = _number(record, N, kind)
    total = _number(record, TOTAL, record[TOTAL_KIND_BYTE])
    length = int.from_bytes(record[STATUS_LENGTH_BYTE : STATUS_LENGTH_BYTE + 2], "little")
    if n is None or not isfinite(n) or (total is not None and not 0 <= total < float("inf")) or length > STATUS_SIZE:
        raise ValueError
    status = record[STATUS_BYTE : STATUS_BYTE + length].decode()
    scale = _scale(record)
    if scale is not None:
        n = _scaled(n, scale)
    return kind, scale, {"n": n, "total": total, "status": status or RUNNING}


def _scale(record: bytes) -> _Scale | None:
    form = record[PART_BYTE]
    if form == ALONE:
        return None
    low, high, first, last = memoryview(record)[8 * SCALE : 8 * SCALE + 32].cast("d")
    if form == PLUS:
        first, last = inf, -inf
    elif form != SCALED or not (isfinite(low) and isfinite(high) and isfinite(first) and isfinite(last)):
        raise ValueError
    return low, high, first, last


def _scaled(n: float, scale: _Scale) -> int | float:
    """The task's n, at n in the slot. A whole number is an int, as in most tasks; up to what a float tells exactly."""
    low, high, first, last = scale
    if last < first:
        scaled = n + low
    elif n >= last:
        scaled = high
    elif n <= first:
        scaled = low
    else:
        height, done, width = high - low, n - first, last - first
        part = height * done / width  # in this order, 10 * 7 / 100 is 0.7
        scaled = min(low + (part if isfinite(part) else height * (done / width)), high)
    if not isfinite(scaled):
        raise ValueError
    return int(scaled) if scaled.is_integer() and abs(scaled) < 1 << 53 else scaled


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
