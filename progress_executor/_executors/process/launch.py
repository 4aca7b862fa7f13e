"""How a worker process is started, and what a forked process must not keep of it.

A worker sees by the end of a pipe that its caller has ended, and the caller that a worker has. That end comes when nobody
holds the other end of the pipe, so whoever is forked, another worker or a process of the user's, closes those it inherits.
"""

import multiprocessing
import multiprocessing.process
import operator
import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple

from .forker import ForkedWorker, fork_on_request
from .memory import SharedMemory
from .wire import Message, receiver, sender
from .worker import work

if TYPE_CHECKING:
    from .pool import Workers

_ends: set[Any] = set()
"""All ends of pipes to workers that this process has."""
PATIENCE = 1.0
"""Seconds for a process to end by itself that has closed its pipes."""
_LOOK, _GLANCE = 0.002, 0.1
_lock = threading.RLock()
"""Held while pipes are made, and by who forks: nobody is forked who does not know them."""
_own = threading.local()
"""The ends that are for the worker which this thread is starting."""
_processes: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""The worker processes of all pools of this process."""


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    for end in _ends.difference(getattr(_own, "ends", ())):
        end.close()
    _ends.clear()
    # multiprocessing would join them at exit, and whoever is no child of this process cannot be joined.
    multiprocessing.process._children.difference_update(_processes)  # type: ignore[attr-defined]
    _processes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _lock.acquire(), after_in_parent=lambda: _lock.release(), after_in_child=_after_fork_in_child
    )


class Launched(NamedTuple):
    """A worker process, and what sends to it and receives from it."""

    process: Any  # what is needed of a `multiprocessing.Process`
    send: Callable[[Message], object]
    receive: Callable[[], Message]
    ends: list[Connection]

    def hang_up(self) -> None:
        """Send and receive no more, which has the worker end when its task has."""
        _close(self.ends[:2])

    def close(self) -> None:
        """Close the other pipes, too, which kills a worker that has not ended."""
        _close(self.ends)

    def is_alive(self) -> bool:
        with _lock:  # who starts a process asks all others how they have ended; of two who ask at once, one is told wrong
            return bool(self.process.is_alive())

    def join(self) -> None:
        """Wait for the end of the process."""
        while self.is_alive() and not connection.wait([self.process.sentinel], _GLANCE):
            pass  # a child of its own that lives on may hold the other end of the sentinel
        self.ends_within(PATIENCE)
        self.process.join()  # one that has closed its files lives on; where SIGCHLD is ignored, nobody knows of its end

    def ends_within(self, seconds: float) -> bool:
        # A join with a timeout would wait for ever for a process that has closed its files, and lives.
        end = monotonic() + seconds
        while self.is_alive():
            if monotonic() > end:
                return False
            sleep(_LOOK)
        return True


def launch(workers: "Workers", memory: SharedMemory) -> Launched:
    """Start a worker. OSError where there are no more processes, or no more pipes."""
    ours: list[Connection] = []
    theirs: list[Connection] = []
    try:
        # For calls, for answers, and one through which nothing goes: its end tells the worker that the caller has ended.
        for caller_writes in (True, False, True):
            with _lock:
                reader, writer = workers.context.Pipe(duplex=False)
                _ends.update((reader, writer))
            ours.append(writer if caller_writes else reader)
            theirs.append(reader if caller_writes else writer)
        if workers.forker is not None:
            process = workers.forker.fork(theirs, memory)
            ours.append(process.sentinel)
        else:
            arguments = (*theirs, memory, workers.initializer, workers.initargs)
            process = _started(workers.context, work, arguments, theirs)
    except BaseException:
        _close(ours)
        raise
    finally:
        _close(theirs)
        memory.close_handle()
    return Launched(process, sender(ours[0]), receiver(ours[1]), ours)


class Forker:
    """The process that forks workers which take the place of dead ones."""

    def __init__(self, workers: "Workers", size: int) -> None:
        with _lock:
            self._requests, theirs = socket.socketpair()
            _ends.update((self._requests, theirs))
        arguments = (theirs, size, workers.initializer, workers.initargs)
        try:
            self._process = _started(workers.context, fork_on_request, arguments, [theirs])
        except BaseException:
            _close([self._requests])
            raise
        finally:
            _close([theirs])
        self._requesting = threading.Lock()

    def fork(self, ends: list[Connection], memory: SharedMemory) -> ForkedWorker:
        with _lock:
            status = multiprocessing.Pipe(duplex=False)
            _ends.update(status)
        try:
            with self._requesting:
                return ForkedWorker(self._requests, ends, memory, *status)
        except BaseException:
            _close([status[0]])
            raise
        finally:
            _close([status[1]])

    def close(self) -> None:
        """Have it end."""
        _close([self._requests])
        self._process.join()


def _close(ends: list[Any]) -> None:
    with _lock:  # who is forked before has them, and knows them
        for end in ends:
            end.close()
        _ends.difference_update(ends)


def _started(context: Any, target: Callable[..., object], arguments: tuple[Any, ...], ends: list[Any]) -> Any:
    """A process that runs `target(*arguments)`, and keeps these ends of pipes."""
    process = context.Process(target=target, args=arguments)
    if context.get_start_method() == "forkserver":
        # It serves others, too, whose processes must not begin with SIGINT blocked.
        process.name = _NameOfQuiet(process.name)
        forkserver.ensure_running()
    _own.ends = ends
    try:
        with _lock, _sigint_blocked():
            process.start()
    finally:
        _own.ends = ()
    _processes.add(process)
    return process


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """A worker that is started meanwhile has SIGINT blocked until it ignores it: no traceback in between."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _NameOfQuiet(str):
    """The name of a worker that the fork server starts: the first thing that it unpickles, and makes it ignore SIGINT.

    The mask is no help there: it would be the server's. And to import what the tasks need takes long: Ctrl-C meanwhile would
    end the worker, with a traceback.
    """

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return operator.getitem, ([str(self), _IgnoreSigint()], 0)


class _IgnoreSigint:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return signal.signal, (int(signal.SIGINT), int(signal.SIG_IGN))
