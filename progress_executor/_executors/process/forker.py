"""Replacing a worker that was forked, in a program that has threads by then.

A fork copies each lock that another thread holds in that moment, and nobody releases the copy: the new worker hangs at its
first import, its first log line, its first bar. So a process without threads is forked when the pool starts, as its workers
are, and forks those that take the place of dead ones, from the same memory as the first.
"""

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

from .memory import SharedMemory
from .worker import set_signals, work


class ForkedWorker:
    """A worker that is no child of this process: what is needed of a `multiprocessing.Process`."""

    def __init__(
        self,
        requests: socket.socket,
        ends: Iterable[Connection],
        memory: SharedMemory,
        status: Connection,
        theirs: Connection,
    ) -> None:
        """Have one forked by the process at the other end of `requests`. OSError if that has ended."""
        self.sentinel = status
        self._lock = threading.Lock()
        socket.send_fds(requests, [b"+"], [*(end.fileno() for end in (*ends, theirs)), memory.handle])
        theirs.close()  # or its end would not be seen
        try:
            self.pid: int = status.recv()
        except EOFError:
            raise OSError("the process that forks workers has ended") from None
        self.exitcode: int | None = None

    def join(self, timeout: float | None = None) -> None:
        with suppress(EOFError, OSError):  # who would tell has ended, too; or nobody asks any more
            connection.wait([self.sentinel], timeout)
            with self._lock:  # or of two threads only one would hear of it
                if self.exitcode is None and self.sentinel.poll():
                    self.exitcode = self.sentinel.recv()

    def is_alive(self) -> bool:
        self.join(0)
        return self.exitcode is None

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        if self.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def fork_on_request(
    requests: socket.socket, size: int, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> None:
    """Fork a worker for each request, until the caller ends, or wants no more."""
    set_signals()
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the guards
    while True:
        request, files, *_ = socket.recv_fds(requests, 1, 5)
        if not request:
            return
        if not os.fork():
            signal.signal(signal.SIGCHLD, before)
            requests.close()
            _guard(files, size, initializer, initargs)
        for file in files:
            os.close(file)


def _guard(files: list[int], size: int, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    """Run a worker as a child of this process, tell its pid and how it ends, and end."""
    try:
        for file in files:
            os.set_inheritable(file, False)  # what a task executes must not hold an end of a pipe
        *ends, status = (Connection(file) for file in files[:4])
        memory = SharedMemory(size, files[4])
        worker: Any = multiprocessing.get_context("fork").Process(
            target=work, args=(*ends, memory, initializer, initargs, status)
        )
        worker.start()
        status.send(worker.pid)
        for end in ends:
            end.close()
        worker.join()
        status.send(worker.exitcode)
    finally:
        os._exit(0)
