"""What runs on a Dask worker: the user's function, with its slot, and the relay that tells the client of all slots there.

Imported by tasks, on workers; the client's side is `dask.py`. Nothing here runs while no task does.
"""

import asyncio
import io
import pickle
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from distributed import get_worker
from distributed.core import Status
from distributed.protocol.pickle import dumps

from .._speedups import Updater
from ..delivery import INTERVAL
from ..slots import Slot
from ..state import CANCELLED, DONE, FAILED, ProgressState

if TYPE_CHECKING:
    from distributed import Worker

Identity = tuple[str, int]
"""A task's executor, by the topic of its events, and its number there."""

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
        self._told: ProgressState | None = None

    def stop(self) -> None:
        self.stopped = True
        self.slot.cancel()

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

    def news(self) -> tuple[Any, ...] | None:
        """What the client has not been told."""
        state = self.slot.snapshot()
        if state == self._told:
            return None
        self._told = state
        seconds = monotonic() - self._began  # and no time of day: the client has another clock
        return self.identity[1], self._task.run_id, seconds, state["n"], state["total"], state["status"]


class _Recent(dict[Identity, float]):
    """A set that forgets after a while."""

    def add(self, identity: Identity) -> None:
        now = monotonic()
        self.pop(identity, None)  # to be the last
        self[identity] = now
        while self[oldest := next(iter(self))] < now - _REMEMBERED:
            del self[oldest]


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

    def cancel(self, topic: str, numbers: Iterable[int]) -> tuple[list[int], list[int]]:
        """Stop these tasks, and refuse those that have not begun here. Returns which run here, and which did before."""
        running, ended = [], []
        with self._lock:
            for number in numbers:
                identity = topic, number
                attempt = self._running.get(identity)
                if attempt is not None:
                    attempt.stop()
                    running.append(number)
                elif identity in self._ended:
                    ended.append(number)
                self._refused.add(identity)
        return running, ended

    def tell(self, attempts: Iterable[Attempt]) -> None:
        messages: dict[str, list[tuple[Any, ...]]] = {}
        for attempt in attempts:
            news = attempt.news()
            if news is not None:
                messages.setdefault(attempt.identity[0], []).append(news)
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
            self._worker.loop.call_later(INTERVAL, self._tick)


class _Unpickler(pickle.Unpickler):
    """Puts the values of Dask's futures in their places."""

    def __init__(self, data: bytes, values: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._values = values

    def persistent_load(self, number: int) -> Any:
        return self._values[number]


def run(packet: bytes, *values: Any) -> bytes:
    """Run a task on this worker; `values` are those of the Dask futures among its arguments.

    Returns two pickles: whose the task is, how it ended and its last state, and what was returned, or raised. What is
    raised goes through Dask, which may then try again, unless it would end the worker.
    """
    topic, number, takes_progress, call = pickle.loads(packet)
    worker = get_worker()
    relay, attempt = Relay.of(worker), Attempt(worker, (topic, number))
    if not relay.begin(attempt):
        return _packed(attempt, CANCELLED, None)
    try:
        fn, args, kwargs = _Unpickler(call, values).load()
        if takes_progress:
            kwargs["progress"] = Updater(attempt.slot.buffer)
        return _packed(attempt, DONE, fn(*args, **kwargs))
    except Exception:
        relay.tell([attempt])
        raise
    except BaseException as error:
        if attempt.stopped and isinstance(error, asyncio.CancelledError):
            return _packed(attempt, CANCELLED, None)
        return _packed(attempt, FAILED, error)
    finally:
        relay.end(attempt)


def _packed(attempt: Attempt, ended_as: str, value: object) -> bytes:
    pickled: bytes = dumps(value)  # type: ignore[no-untyped-call]
    return pickle.dumps((*attempt.identity, ended_as, attempt.slot.snapshot())) + pickled
