"""Messages: what a task says beside its progress, on the way to the caller's side, in order.

Each message has a kind, a payload and a size in bytes. On their way wait at most `BOUND` bytes of one task's messages: its
`Sender` knows how much it has sent, and the caller writes into the task's slot how much it has taken.
"""

from collections import deque
from collections.abc import Callable
from threading import RLock
from time import monotonic
from typing import Any

from ._slots import Slot
from ._speedups._layout import LOG as LOG
from ._speedups._waiting import wait_while

LOST = "lost"
"""The kind of a message that stands for those that found no room: its payload says how many."""

BOUND = 1 << 16
PATIENCE = 1.0
"""Seconds for which a task waits that says more than is read, if nothing is read at all."""

Message = tuple[str, Any, int]


def _nothing(*_: object) -> None:
    pass


class Sender:
    """Sends what one task says; its threads share it.

    Who finds no room waits, if somebody takes messages and the task is not to stop. If nothing is taken for `PATIENCE`
    seconds, what finds no room is lost and counted, until something is taken again.
    """

    def __init__(self, slot: Slot, send: Callable[[Message], object], deliver: Callable[[], object] | None = None) -> None:
        """`deliver` makes room, where who says something is who delivers."""
        self._slot: Slot | None = slot
        self._send = send
        self._deliver: Callable[[], object] | None = deliver
        self._lock = RLock()
        self._waiting: deque[Message] = deque()
        self._sending = False
        self._sent = 0
        self._lost = 0
        self._given_up: int | None = None  # what had been taken when a thread gave up waiting: once is enough

    def __call__(self, kind: str, payload: Any, size: int) -> None:
        if self._try(kind, payload, size, False):
            return
        if self._deliver is not None:
            self._deliver()
        taken, until = -1, 0.0

        def is_to_wait() -> bool:
            nonlocal taken, until
            slot, now = self._slot, monotonic()
            if slot is not None and slot.taken != taken:
                taken, until = slot.taken, now + PATIENCE
            return not self._try(kind, payload, size, now >= until)

        wait_while(is_to_wait)

    def end(self) -> None:
        """Send no more: the task has ended. Its threads may go on, and say it to nobody."""
        with self._lock:
            self._tell_lost()
            self._slot = None
            self._send = self._deliver = _nothing  # they may lead back to what has this

    def leave(self) -> None:
        """In a forked child, in which nobody gives the lock back: send nothing any more."""
        self._slot, self._lock = None, RLock()

    def _try(self, kind: str, payload: Any, size: int, gives_up: bool) -> bool:
        """Send it, or count it as lost; False, and neither of them, if it is to wait for room, unless it gives up."""
        with self._lock:
            slot = self._slot
            if slot is None:
                return True
            taken = slot.taken
            if 0 <= self._sent - taken <= BOUND - size:
                self._tell_lost()
                self._put((kind, payload, size))
                self._sent += size  # behind it: what cannot be pickled takes no room
            elif not slot.listened or slot.cancelled or taken == self._given_up:
                self._lost += 1
            elif gives_up:
                self._given_up = taken
                self._lost += 1
            else:
                return False
            slot.note_message()
            return True

    def _tell_lost(self) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            self._put((LOST, lost, 0))

    def _put(self, message: Message) -> None:
        self._waiting.append(message)
        if self._sending:  # re-entrant call of a signal handler: the outer call sends it
            return
        self._sending = True
        try:
            while self._waiting:
                self._send(self._waiting.popleft())
        finally:
            self._sending = False
