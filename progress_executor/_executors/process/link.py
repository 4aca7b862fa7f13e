"""The caller's side of one worker process: the thread that serves it, and what it has been given.

    thread of the caller              worker process
    takes a task from the queue
    pickles it, sends it  ----------> begins, says so in its slot; looks whether it was cancelled or taken back
    sends the next in advance         writes n, total, status ..... state and callbacks read them
    unpickles the outcome <---------- pickles the value, or what was raised; goes on with the next one
    ends the future

One task runs. More are sent in advance if they are plain and small, so that the worker need not wait while the caller is
busy: one, or several together where tasks take little time, which share the cost of sending, reading and waking. They are
pending until their turn has come: they are taken back when they are cancelled, when another worker is idle, and when their
own worker has died.
"""

import signal
import threading
from asyncio import CancelledError
from collections import deque
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from math import inf
from pickle import PicklingError
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from ..._interrupts import call_each
from ..._messages import LOST
from ..._slots import Slot
from ..._speedups._layout import SLOT_SIZE
from ..._state import ProgressState
from ..._tasks import Task, takes_progress
from .launch import PATIENCE, Launched, launch
from .memory import SharedMemory
from .task import ProcessFuture
from .wire import FAILED, MESSAGE, READY, SKIPPED, SMALL, TAKES_PROGRESS, Message, content, message, outcome, without_frames

if TYPE_CHECKING:
    from .pool import Workers

IN_ADVANCE = 4
"""How many tasks are sent together at most."""
_LITTLE = 0.02
"""Seconds in which a worker has done with what it was sent, if it is sent several tasks together."""
_PLACES = IN_ADVANCE + 2
"""Slots of a worker: for those, for the task that runs, and for the one whose end is being told."""
MEMORY_SIZE = _PLACES * SLOT_SIZE
_PAUSE = 0.3
"""Seconds until a process is started again where none could be."""
_TRIES = 3
"""How many workers may die before they have begun one and the same task."""


class WorkerDied(BrokenProcessPool):
    """The worker process died while it ran this task. No other task is concerned, and the pool works on.

    `pid` is the process, `exitcode` that of `multiprocessing.Process`: negative, the number of the signal that killed it.
    `state` is the last progress of the task.
    """

    pid: int | None = None
    exitcode: int | None = None
    state: ProgressState | None = None


def _death(pid: int, exitcode: int | None, stopped: bool) -> str:
    """How a worker has ended, for people."""
    how = "has ended" if exitcode is None else f"ended with exit code {exitcode}"
    if exitcode is not None and exitcode < 0:
        name = f"signal {-exitcode}"
        with suppress(ValueError):
            name = signal.Signals(-exitcode).name
        how = f"was killed by {name}"
        if name == "SIGKILL" and not stopped:
            how += " (by the system, if it was out of memory: see its log)"
    return f"worker process {pid} {how}"


class _Given:
    """A task that a worker is to run; `future` is None when it was taken back."""

    __slots__ = ("future", "slot", "tries")

    slot: Slot

    def __init__(self, future: ProcessFuture) -> None:
        self.future: ProcessFuture | None = future
        self.tries = 0  # how many workers it was sent to


def _packed(future: ProcessFuture) -> memoryview | None:
    """The call of its task; None if it cannot be pickled, with which the future ends."""
    task = future._task
    call = task.call
    if call is None:  # it was cancelled just now, and will not be sent
        return memoryview(bytearray(1))
    task.reports = takes_progress(call)
    try:
        return message(TAKES_PROGRESS if task.reports else 0, call)
    except BaseException as error:
        why = without_frames(error)
    if not isinstance(why, Exception) or isinstance(why, (LookupError, OSError)):
        # These do not tell by themselves that it was the pickling; and an interrupt is not for who asks for the result.
        cause, why = why.__cause__, PicklingError(f"cannot pickle the call: {type(why).__name__}: {why}")
        why.__cause__ = cause
    if future.running() or future.set_running_or_notify_cancel():
        future._end(error=why)
    return None


class Link:
    """One worker process after the other, for one thread of the pool."""

    def __init__(self, workers: "Workers") -> None:
        self._workers = workers
        self._launched: Launched | None = None
        self._ready = False
        self._slots: list[Slot] = []
        self._count = 0  # how many tasks the process was given
        self._gave_at = -inf
        self._again: deque[_Given] = deque()  # tasks that have not begun though they were to run
        self._lock = threading.RLock()  # for what follows; a finalizer may cancel
        self._running: _Given | None = None
        self._next: deque[_Given] = deque()  # given in advance
        self._killed: _Given | None = None  # for which the process was killed

    @property
    def process(self) -> Any:
        """The worker process, if there is one."""
        launched = self._launched
        return None if launched is None else launched.process

    # In the thread of the pool

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

    def launch(self) -> None:
        """Start a worker process."""
        memory = SharedMemory(MEMORY_SIZE)
        self._slots = [Slot(memory.view[at : at + SLOT_SIZE]) for at in range(0, MEMORY_SIZE, SLOT_SIZE)]
        self._count = 0
        self._launched = launch(self._workers, memory)
        if self._workers.stopped:  # since just now
            self._launched.process.kill()

    def dismiss(self) -> None:
        """Let the worker process go, and wait for its end."""
        self._reap(patient=True)

    def _begin(self) -> bool:
        """Give the worker a task; False if there will be none."""
        workers = self._workers
        if self._killed is not None:
            self._bury()
        if not self._ready and self._is_needed():
            self._start()
        if self._again:
            given = self._again.popleft()
            if given.future is not None and self._ready:
                self._give(given)
            elif given.future is not None:
                given.future._end(error=workers.error() or CancelledError())
            return True
        if workers.broken is not None and not self._ready:
            return False
        future = workers.take()
        if future is None:
            return False
        if self._ready:
            if future.set_running_or_notify_cancel():
                self._give(_Given(future))
        elif workers.stopped:
            call_each([future._cancel_pending])
        elif not future.done():  # it was submitted just as the executor was closed
            workers.put_back(future)
        return True

    def _is_needed(self) -> bool:
        """Whether there may be a task for the worker."""
        workers = self._workers
        again = (given.future for given in self._again)
        return not workers.stopped and (
            any(future is not None and not future._task.cancel_requested for future in again) or workers.is_needed()
        )

    def _start(self) -> None:
        """Have a worker that is ready, unless the pool breaks, or there is nothing left to do."""
        workers = self._workers
        while workers.broken is None and self._is_needed():
            try:
                if self._launched is None:
                    self.launch()
            except Exception as error:
                sleep(_PAUSE)
                if not workers.ready:  # else others do the work until there is room for this one
                    workers.note_death(f"no worker process could be started: {error!r}")
                continue
            answer = self._receive()
            if answer is not None and answer[0] == READY:
                self._ready = True
                workers.count_ready(1)
                workers.deaths = 0
                return
            pid, exitcode = self._reap()
            if answer is not None and answer[0] == FAILED:
                workers.break_down(BrokenProcessPool("the initializer of a worker process failed: its log says why"))
            elif self._is_needed():  # else it is `kill_unready` that has ended it
                workers.note_death(f"{_death(pid, exitcode, workers.stopped)} before it was ready")

    def _give(self, given: _Given) -> None:
        """Send a task to the worker, which has none, and more in advance."""
        assert given.future is not None
        packet = _packed(given.future)
        if packet is None:
            return
        with self._lock:
            attached = self._attach(given, packet)
            if attached:
                self._running = given
        if attached:
            given.tries += 1
            self._send(packet)
            del packet  # it may be large
            self._give_in_advance()
        else:  # it was cancelled meanwhile
            given.future._end(error=CancelledError())

    def _give_in_advance(self) -> None:
        """Send the worker, which runs a task and has no other, the next ones if they are plain."""
        workers, now, size = self._workers, monotonic(), 0
        packets: list[Message] = []
        most = IN_ADVANCE if now - self._gave_at < _LITTLE else 1
        self._gave_at = now
        while len(packets) < most and self._count != workers.max_tasks and (future := workers.take_plain()) is not None:
            packet = _packed(future)
            if packet is None:
                continue
            size += len(packet)
            given = _Given(future)
            with self._lock:
                if self._killed is not None or size > SMALL:
                    workers.put_back(future)
                    break
                attached = self._attach(given, packet)
                if attached:
                    self._next.append(given)
            if attached:
                packets.append(packet)
            else:  # it was cancelled meanwhile, or all are
                call_each([future._cancel_pending])
        if packets:
            self._send(packets[0] if len(packets) == 1 else b"".join(packets))
            workers.wake_one()  # who is idle takes one back

    def _attach(self, given: _Given, packet: memoryview) -> bool:
        """Give the task a slot; False if it was cancelled."""
        assert given.future is not None
        place = self._count % _PLACES
        given.slot = self._slots[place].renewed()
        packet[0] = packet[0] & TAKES_PROGRESS | place
        if not given.future._task.attach(self, given.slot):
            return False
        self._count += 1
        return True

    def _send(self, packet: Message) -> None:
        assert self._launched is not None
        try:
            self._launched.send(packet)
        except OSError:  # the worker has died: `_receive` tells
            pass

    def _receive(self) -> Message | None:
        """The worker's next answer; None if it has died, or its answer is too large for this process."""
        assert self._launched is not None
        try:
            return self._launched.receive()
        except (EOFError, OSError, MemoryError):
            return None

    def _take_answer(self) -> None:
        """Wait for what the task that runs says, or for its outcome, with which its future ends."""
        answer = self._receive()
        if answer is None:
            self._bury()
            return
        if answer[0] == MESSAGE:
            self._hear(answer)
            return
        with self._lock:
            given, self._running = self._running, self._next.popleft() if self._next else None
            begins = None if self._running is None else self._running.future
        if begins is not None:
            begins.set_running_or_notify_cancel()
        if self._running is not None and not self._next:
            self._give_in_advance()  # first: the worker does not wait for those who are told of the other one
        assert given is not None
        future = given.future
        if future is None:  # it was taken back
            return
        if answer[0] == SKIPPED:
            if future._task.cancel_requested:
                future._end(error=CancelledError())
            else:  # it was taken back, but an interrupt kept that from being noted
                self._again.append(given)
            return
        value, error = outcome(answer)
        del answer, given  # what they hold may be large, and others are called back now
        future._end(value, error)

    def _hear(self, answer: Message) -> None:
        given = self._running
        if given is not None and given.future is not None:
            try:
                told = content(answer)
            except Exception:  # what is sent can be unpickled there, and not here
                told = LOST, 1, 0
            given.future._task.hear(told)

    def _reap(self, patient: bool = False) -> tuple[int, int | None]:
        """Have the worker end, and forget it; its pid and exit code."""
        launched = self._launched
        if launched is None:
            return 0, None
        launched.hang_up()
        process = launched.process
        if not patient and not launched.ends_within(PATIENCE):
            process.kill()
        launched.join()
        launched.close()
        if self._ready:
            self._workers.count_ready(-1)
        self._launched, self._ready = None, False
        return process.pid, process.exitcode

    def _bury(self) -> None:
        """The worker has died: its task fails, and those that were given in advance go to other workers."""
        pid, exitcode = self._reap()
        with self._lock:
            for future in reversed([*iter(self.take_back, None)]):
                self._workers.put_back(future)
            lost = [given for given in (self._running, *self._next) if given is not None]
            killed, self._killed, self._running = self._killed, None, None
            self._next.clear()
        for given in lost:
            if given.future is not None:
                self._lose(given, given.future, given is killed, pid, exitcode)

    def _lose(self, given: _Given, future: ProcessFuture, killed: bool, pid: int, exitcode: int | None) -> None:
        """End the future of a task whose worker has died, unless it can be given to another one."""
        task, begun = future._task, given.slot.started_at is not None
        task.broken = True
        if killed or (task.cancel_requested and not begun):
            future._end(error=CancelledError())
        elif not begun and given.tries < _TRIES and not self._workers.stopped:
            self._again.append(given)
        else:
            state = task.snapshot()
            where = f"at n={state['n']}, total={state['total']}, status={state['status']!r}"
            error = WorkerDied(f"{_death(pid, exitcode, self._workers.stopped)} while it ran this task, {where}")
            error.pid, error.exitcode, error.state = pid, exitcode, state
            future._end(error=error)

    # In any thread

    def take_back(self, task: Task | None = None) -> ProcessFuture | None:
        """The future of the first task that was given in advance and has not begun, which is pending again; None if none is.

        With `task`, only if it is that one.
        """
        if not self._next:
            return None
        with self._lock:
            for given in self._next:
                future = given.future
                if future is None or (task is not None and future._task is not task) or not given.slot.take_back():
                    continue
                given.future = None
                future._task.detach()
                return future
            return None

    @property
    def waiting(self) -> float:
        """The number of the first task that was given in advance; infinite if there is none."""
        for given in tuple(self._next):
            if (future := given.future) is not None:
                return future._task.number
        return inf

    def kill(self, task: Task) -> bool:
        """Kill the process if it runs this task; False if that is being given to a worker just now."""
        with self._lock:
            running = self._running
            if running is None or running.future is None or running.future._task is not task:
                return task.finished
            for future in reversed([*iter(self.take_back, None)]):
                self._workers.put_back(future)
            if all(given.future is None for given in self._next):  # else one of those has begun, so the task has ended
                self._killed = running
                if self._launched is not None:
                    self._launched.process.kill()
            return True

    def kill_idle(self) -> None:
        """Kill a process that runs no task."""
        with self._lock:
            launched = self._launched
            if launched is not None and self._running is None:
                launched.process.kill()

    def kill_unready(self) -> None:
        """Kill a process that is only starting."""
        launched = self._launched
        if launched is not None and not self._ready:
            launched.process.kill()
