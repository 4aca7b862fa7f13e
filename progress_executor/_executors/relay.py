"""What runs on a Dask worker: the user's function, with its slot, and the relay that tells the client of all slots there.

The client's side is `dask.py`, which has from here what the two tell each other. Nothing here runs while no task does.
"""

import asyncio
import io
import pickle
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf
from time import monotonic, time
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed import get_worker
from distributed.core import Status
from distributed.protocol.pickle import dumps

from .._messages import Message
from .._monitor import INTERVAL
from .._slots import Slot
from .._state import CANCELLED, DONE, FAILED, ProgressState
from .._tasks import run_call

if TYPE_CHECKING:
    from distributed import Worker

Identity = tuple[str, int]
"""A task's executor, by the topic of its events, and its number there."""


class News(NamedTuple):
    """What an event says of one task; an event is a pickled list of them, as plain tuples, which are shorter."""

    number: int
    run_id: int
    """Of the attempt."""
    seconds: float
    """Since it began, and no time of day: the client has another clock."""
    paused: bool
    """Whether it was asked to stand still."""
    paused_seconds: float
    """Seconds for which it stood still."""
    n: int | float
    total: int | float | None
    status: str
    messages: list[Message] | None
    """What it has said since the last news; None if it has, and nobody is known to listen."""


class Outcome(NamedTuple):
    """How a task ended; likewise."""

    topic: str
    number: int
    ended_as: str
    paused_seconds: float
    state: ProgressState
    messages: list[Message]
    """What it has said since the last news."""


Packed = tuple[bytes, bytes]
"""The pickles of an outcome and of what was returned, or raised. One string would be a copy of what may be large."""

_CLOSING = {Status.closing, Status.closed, Status.failed}
_REMEMBERED = 60.0
"""Seconds for which a worker knows what has ended on it, and what must not begin there any more.

The client asks each second until it knows the end, and then has Dask forget the task: nobody needs it for longer.
"""


class Attempt:
    """One run of a task on a worker; Dask may run it again, here or elsewhere."""

    def __init__(self, worker: "Worker", identity: Identity) -> None:
        self.identity = identity
        self.slot = Slot()
        self.slot.start(time())
        self.stopped = False  # asked to
        self._began = monotonic()
        self._worker = worker
        self._key = worker.get_current_task()
        self._tasks = worker.state.tasks
        self._task = self._tasks[self._key]
        self._told: tuple[tuple[int, ...], ProgressState] | None = None
        self._paused = False
        self._heard = False
        self.unread: deque[Message] = deque()
        self._taking = threading.Lock()  # its own thread takes the last ones

    def stop(self, reason: str | None = None) -> None:
        self.stopped = True
        self.slot.cancel(reason)

    def pause(self, paused: bool) -> None:
        self._paused = paused
        self.slot.pause(paused)

    def listen(self) -> None:
        self._heard = True
        self.slot.listen()

    def take(self) -> list[Message]:
        with self._taking:
            messages = [self.unread.popleft() for _ in range(len(self.unread))]
            self.slot.take(sum(size for _, _, size in messages))
            return messages

    def stop_if_unwanted(self) -> None:
        """Whether Dask wants it no more is seen in its own state: it was cancelled there, or the client is gone.

        A worker that closes, because its scheduler is gone, say, waits for its tasks for half a minute.
        """
        if (
            self._task.state == "cancelled"
            or self._tasks.get(self._key) is not self._task
            or self._worker.status in _CLOSING
        ):
            self.stop()

    def news(self, last: bool = False) -> News | None:
        """What the client has not been told."""
        pulse, state, unheard = self.slot.change_count, self.slot.snapshot(), bool(self.unread)
        if not last and (pulse, state) == self._told and not (unheard and self._heard):
            return None
        self._told = pulse, state
        messages: list[Message] | None = []
        if self._heard or last:
            messages = self.take()
        elif unheard:
            messages = None
        seconds = monotonic() - self._began
        return News(
            self.identity[1], self._task.run_id, seconds, self._paused, self.slot.paused_seconds, **state, messages=messages
        )


class _Recent(dict[Identity, float]):
    """A set that forgets after a while."""

    def add(self, identity: Identity) -> None:
        now = monotonic()
        self.pop(identity, None)  # to be the last
        self[identity] = now
        while self[oldest := next(iter(self))] < now - _REMEMBERED:
            del self[oldest]

    def __contains__(self, identity: object) -> bool:
        # Where no more is added, nothing is purged.
        return self.get(identity, -inf) >= monotonic() - _REMEMBERED  # type: ignore[call-overload,no-any-return]


class Relay:
    """Tells the clients of what runs on one worker: one event per executor and interval."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._running: dict[Identity, Attempt] = {}
        self._ended = _Recent()
        self._refused = _Recent()
        self._ticking = False

    @classmethod
    def of(cls, worker: "Worker") -> "Relay":
        relay: Relay = worker.extensions.setdefault("progress_executor", cls(worker))  # in one step: tasks begin in threads
        return relay

    def begin(self, attempt: Attempt) -> bool:
        """False if it was cancelled before, and must not."""
        with self._lock:
            if attempt.identity in self._refused:
                return False
            self._running[attempt.identity] = attempt
            if not self._ticking:
                self._ticking = True
                self._worker.loop.add_callback(self._tick)
        return True

    def end(self, attempt: Attempt) -> None:
        with self._lock:
            del self._running[attempt.identity]
            self._ended.add(attempt.identity)
            attempt.pause(False)  # nobody can have its threads go on any more
            attempt.slot.listen(False)  # nor make room for what they say

    def instruct(self, topic: str, wanted: Mapping[int, tuple[bool, bool]]) -> None:
        """Have those of these tasks that run here stand still, or go on, and what they say told."""
        with self._lock:
            for number, (paused, heard) in wanted.items():
                attempt = self._running.get((topic, number))
                if attempt is not None:
                    attempt.pause(paused)
                    if heard:
                        attempt.listen()

    def cancel(self, topic: str, reasons: Mapping[int, str | None]) -> tuple[list[int], list[int]]:
        """Stop these tasks, for these reasons, and refuse those that have not begun here.

        Returns which run here, and which did before.
        """
        running, ended = [], []
        with self._lock:
            for number, reason in reasons.items():
                identity = topic, number
                attempt = self._running.get(identity)
                if attempt is not None:
                    attempt.stop(reason)
                    running.append(number)
                elif identity in self._ended:
                    ended.append(number)
                self._refused.add(identity)
        return running, ended

    def tell(self, attempts: Iterable[Attempt], last: bool = False) -> None:
        messages: dict[str, list[tuple[Any, ...]]] = {}
        for attempt in attempts:
            news = attempt.news(last)
            if news is not None:
                messages.setdefault(attempt.identity[0], []).append(tuple(news))
        for topic, message in messages.items():
            with suppress(Exception):  # the worker is being closed
                self._worker.log_event(topic, pickle.dumps(message))  # msgpack knows no ints of more than 64 bits

    def _tick(self) -> None:
        with self._lock:
            attempts = list(self._running.values())
            self._ticking = bool(attempts)
        for attempt in attempts:
            attempt.stop_if_unwanted()
        self.tell(attempts)
        if attempts:
            self._worker.loop.call_later(_until_next_tick(time()), self._tick)


def _until_next_tick(now: float) -> float:
    """Seconds until a tenth of a second begins, for all workers the same one: the scheduler hears, and tells, all at once.

    But no tick follows close upon another.
    """
    pause = INTERVAL - now % INTERVAL
    return pause if pause > INTERVAL / 2 else pause + INTERVAL


class _Unpickler(pickle.Unpickler):
    """Puts the values of Dask's futures in their places."""

    def __init__(self, data: bytes, values: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._values = values

    def persistent_load(self, number: int) -> Any:
        return self._values[number]


def run(packet: bytes, *values: Any) -> Packed:
    """Run a task on this worker; `values` are those of the Dask futures among its arguments.

    What is raised goes through Dask, which may then try again, unless it would end the worker or the task was to stop: it
    would be refused, and what it raised and its last state be lost.
    """
    topic, number, call = pickle.loads(packet)
    worker = get_worker()
    relay, attempt = Relay.of(worker), Attempt(worker, (topic, number))
    if not relay.begin(attempt):
        return _packed(attempt, CANCELLED, None)
    try:
        value = run_call(_Unpickler(call, values).load(), attempt.slot, attempt.unread.append)
        return _packed(attempt, DONE, value)
    except BaseException as error:
        if attempt.stopped and isinstance(error, asyncio.CancelledError):
            return _packed(attempt, CANCELLED, None)
        if attempt.stopped or not isinstance(error, Exception):
            return _packed(attempt, FAILED, error)
        relay.tell([attempt], last=True)
        raise
    finally:
        relay.end(attempt)


def _packed(attempt: Attempt, ended_as: str, value: object) -> Packed:
    pickled: bytes = dumps(value)  # type: ignore[no-untyped-call]
    outcome = Outcome(*attempt.identity, ended_as, attempt.slot.paused_seconds, attempt.slot.snapshot(), attempt.take())
    return pickle.dumps(tuple(outcome)), pickled
