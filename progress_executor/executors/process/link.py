"""The caller's side of one worker process: the thread that serves it, and what that has given it.

thread of the caller           worker process
takes a task from the queue
pickles it, sends it  -------> begins, says so in its slot; looks whether it was taken back, or cancelled
sends the next one in advance  writes n, total, status ..... state, callbacks read them
unpickles the outcome <------- pickles its value, or what it has raised; goes on with the next one
ends the future

One task runs, and one more may have been sent in advance, if it is plain and small, so that the worker need not wait for a
busy caller. Each has a place of its own in the worker's memory, and so has the one whose end is being told.
"""

import signal
import threading
from asyncio import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from math import inf
from pickle import PicklingError
from typing import TYPE_CHECKING, Any

from ..._speedups._layout import SLOT_SIZE
from ...futures import ProgressFuture
from ...slots import Slot
from ...state import ProgressState
from ...tasks import Task, takes_progress
from .launch import Launched, launch
from .memory import SharedMemory
from .wire import FAILED, READY, SKIPPED, SMALL, TAKES_PROGRESS, Message, message, outcome, short_message

if TYPE_CHECKING:
    from .pool import Workers

_PLACES = 3
"""In the memory of a worker: for the task that runs, the next one, and the one whose end is being told."""
MEMORY_SIZE = _PLACES * SLOT_SIZE
_PATIENCE = 1.0
"""Seconds for a worker to end by itself after it has closed its pipes."""
_TRIES = 3
"""How many workers may die before they have begun one and the same task."""


class WorkerDied(BrokenProcessPool):
    """The worker process died while it ran this task. No other task is concerned, and the pool works on.

    `pid`: the process; `exitcode`: as `multiprocessing.Process.exitcode`, the negative number of the signal that killed it;
    `state`: the last progress of the task.
    """

    pid: int | None = None
    exitcode: int | None = None
    state: ProgressState | None = None


def _death(pid: int, exitcode: int | None) -> str:
    """How a worker has ended, for people."""
    how = f"ended with exit code {exitcode}"
    if exitcode is not None and exitcode < 0:
        name = str(-exitcode)
        with suppress(ValueError):
            name = signal.Signals(-exitcode).name
        how = f"was killed by {name}"
        if name == "SIGKILL":
            how += " (by the system, if it was out of memory: its log tells)"
    return f"worker process {pid} {how}"


class _Given:
    """A task that a worker is to run; `future` is None when it was taken back."""

    __slots__ = ("future", "packet", "slot", "tries")

    slot: Slot

    def __init__(self, future: "ProgressFuture[Any]", packet: Any) -> None:
        self.future: ProgressFuture[Any] | None = future
        self.packet: Any = packet  # kept only if it is small
        self.tries = 1


class Link:
    """One worker process after the other, for one thread of the crew."""

    def __init__(self, workers: "Workers") -> None:
        self._workers = workers
        self._lock = threading.RLock()  # a finalizer may cancel
        self._launched: Launched | None = None
        self._slots: list[Slot] = []
        self._ready = False
        self._count = 0  # how many tasks its process was given
        self._running: _Given | None = None
        self._next: _Given | None = None  # given in advance
        self._killed: _Given | None = None  # for which its process was killed
        self._again: _Given | None = None  # which has not begun though it was to run

    @property
    def process(self) -> Any:
        """The worker process, if there is one."""
        launched = self._launched
        return None if launched is None else launched.process

    # The thread

    def serve(self) -> None:
        """Have tasks run until there will be none any more."""
        try:
            while self._begin():
                while self._running is not None:
                    self._take_answer()
                if self._count == self._workers.max_tasks:
                    self.dismiss()
        finally:
            self.dismiss()

    def dismiss(self) -> None:
        """Let the worker process go, and wait for its end."""
        self._reap(patience=None)

    def _begin(self) -> bool:
        """Give the worker a task, if there is one; False if there will be none."""
        workers = self._workers
        if self._killed is not None:
            self._bury()
        again, self._again = self._again, None
        if not self._ready and (again or workers.pending or not workers.closed) and not self._start():
            if again is not None and again.future is not None:
                again.future.set_exception(workers.broken)
            return False
        if again is not None:
            again.tries += 1
            self._give(again)
            return True
        future = workers.take()
        if future is None:
            return False
        if not self._ready:  # it was submitted just as the executor was closed
            workers.put_back(future)
        elif future.set_running_or_notify_cancel():
            try:
                given = _Given(future, pack(future._task))
            except BaseException as error:
                future.set_exception(error)
                future = None  # the traceback holds this frame
            else:
                self._give(given)
        return True

    def _start(self) -> bool:
        """Have a worker that is ready; False if the pool is broken."""
        workers = self._workers
        while workers.broken is None:
            try:
                if self._launched is None:
                    self.launch()
            except Exception as error:
                workers.note_death(f"no worker process could be started: {error!r}")
                continue
            answer = self._receive()
            if answer is not None and answer[0] == READY:
                self._ready = True
                workers.deaths = 0
                return True
            pid, exitcode = self._reap()
            if answer is not None and answer[0] == FAILED:
                workers.break_down(BrokenProcessPool("the initializer of a worker process has failed: its log tells why"))
            else:
                workers.note_death(f"{_death(pid, exitcode)} before it was ready")
        return False

    def launch(self) -> None:
        """Start the worker process."""
        memory = SharedMemory(MEMORY_SIZE)
        self._slots = [Slot(memory.view[place * SLOT_SIZE : (place + 1) * SLOT_SIZE]) for place in range(_PLACES)]
        self._count = 0
        self._launched = launch(self._workers, memory)

    def _give(self, given: _Given) -> None:
        """Send a task to the worker, which has none, and one more in advance."""
        assert given.future is not None
        with self._lock:
            attached = self._attach(given)
            if attached:
                self._running = given
        if not attached:  # it was cancelled meanwhile
            given.future.set_exception(CancelledError())
            return
        self._send(given)
        self._give_in_advance()

    def _give_in_advance(self) -> None:
        """Send the worker, which runs a task, the next one."""
        workers = self._workers
        if self._count == workers.max_tasks:
            return
        future = workers.take_plain()
        if future is None:
            return
        try:
            given = _Given(future, pack(future._task))
        except BaseException as error:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
            future = None
            return
        if self._killed is not None or len(given.packet) > SMALL:
            workers.put_back(future)
            return
        with self._lock:
            attached = self._attach(given)
            if attached:
                self._next = given
        if attached:
            self._send(given)
            workers.wake_one()  # who is idle takes it back

    def _attach(self, given: _Given) -> bool:
        """Give the task a place in the worker's memory; False if it was cancelled."""
        assert given.future is not None
        place = self._count % _PLACES
        given.slot = self._slots[place].renewed()
        given.packet[0] = given.packet[0] & TAKES_PROGRESS | place
        if not given.future._task.attach(self, given.slot):  # type: ignore[attr-defined]
            return False
        self._count += 1
        return True

    def _send(self, given: _Given) -> None:
        assert self._launched is not None
        packet = given.packet
        if len(packet) > SMALL:
            given.packet = None
        with suppress(OSError):  # the worker has died: `_take_answer` sees it, too
            self._launched.send(packet)

    def _receive(self) -> Message | None:
        """The worker's next answer; None if it has died."""
        assert self._launched is not None
        try:
            return self._launched.receive()
        except (EOFError, OSError):
            return None

    def _take_answer(self) -> None:
        """Wait for the outcome of the task that runs, and end its future."""
        answer = self._receive()
        if answer is None:
            self._bury()
            return
        with self._lock:
            given, self._running, self._next = self._running, self._next, None
            begins = self._running and self._running.future
        if begins is not None:
            begins.set_running_or_notify_cancel()
        if self._running is not None:
            self._give_in_advance()  # first, so that the worker need not wait while callbacks are called
        assert given is not None
        future = given.future
        if future is None:  # it was taken back
            return
        if answer[0] == SKIPPED:
            if future._task.cancel_requested:
                future.set_exception(CancelledError())
            else:  # who wanted to take it back found it begun
                self._again = given
            return
        value, error = outcome(answer)
        del answer, given
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def _reap(self, patience: float | None = _PATIENCE) -> tuple[int, int | None]:
        """Have the worker end, and be forgotten; its pid and exit code."""
        launched = self._launched
        if launched is None:
            return 0, None
        launched.close()
        process = launched.process
        process.join(patience)
        if process.exitcode is None:  # it has closed its pipes, but lives
            process.kill()
            process.join()
        self._launched, self._ready = None, False
        return process.pid, process.exitcode

    def _bury(self) -> None:
        """The worker has died. Its task fails; the one that was given in advance goes to another worker."""
        pid, exitcode = self._reap()
        with self._lock:
            running, killed = self._running, self._killed
            following = self.take_back()
            self._running = self._next = self._killed = None
        if following is not None:
            self._workers.put_back(following)
        if running is None or running.future is None:
            return
        future, task = running.future, running.future._task
        begun = running.slot.started_at is not None
        task.broken = True
        if killed is running or (task.cancel_requested and not begun):
            future.set_exception(CancelledError())
        elif not begun and running.packet is not None and running.tries < _TRIES:
            self._again = running
        else:
            died = _death(pid, exitcode)
            state = task.snapshot()
            error = WorkerDied(f"{died} while it ran this task, at n={state['n']}, total={state['total']}, {state['status']!r}")
            error.pid, error.exitcode, error.state = pid, exitcode, state
            future.set_exception(error)

    # Other threads

    def take_back(self, task: "Task | None" = None) -> "ProgressFuture[Any] | None":
        """The future of the task that was given in advance (only of this one), which is pending again; None if it has begun."""
        with self._lock:
            given = self._next
            if given is None or given.future is None or (task is not None and given.future._task is not task):
                return None
            if not given.slot.take_back():
                return None
            future, given.future = given.future, None
            future._task.detach()  # type: ignore[attr-defined]
            return future

    @property
    def waiting(self) -> float:
        """The number of the task that was given in advance, infinite if there is none."""
        given = self._next
        future = None if given is None else given.future
        return inf if future is None else future._task.number  # type: ignore[attr-defined]

    def kill(self, task: "Task") -> bool:
        """Kill the process if it runs this task; False if it is not known whether it does."""
        with self._lock:
            running, following = self._running, self._next
            if running is None or running.future is None or running.future._task is not task:
                return task.finished
            back = self.take_back()
            if following is not None and following.future is not None:
                return True  # that has begun, so this one has ended
            self._killed = running
            if self._launched is not None:
                self._launched.process.kill()
        if back is not None:
            self._workers.put_back(back)
        return True


def pack(task: "Task") -> Any:
    """The message that has a worker run the task; raises what the pickling of its call does."""
    call = task.call
    if call is None:  # it was cancelled just now
        return bytearray(short_message(0))
    task.reports = takes_progress(call)  # type: ignore[attr-defined]
    try:
        return message(TAKES_PROGRESS if task.reports else 0, call)  # type: ignore[attr-defined]
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, (LookupError, OSError)):
            raise
        # These tell by themselves nobody that it was the pickling, and an interrupt is not for who asks for the result.
        raise PicklingError(f"cannot pickle the call: {type(error).__name__}: {error}") from error
