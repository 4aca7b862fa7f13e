"""The slots of one process pool, in one shared-memory segment, and the same segment seen from a worker.

Apart from `slots` so that nobody imports multiprocessing who does not run processes.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import signal
import threading
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import Literal

from ._speedups._layout import SLOT_SIZE
from .slots import Slot


class Segment:
    """The shared memory as a worker sees it: slots by their index."""

    def __init__(self, size: int, memory: SharedMemory | None) -> None:
        self._size = size
        self._memory = memory
        self._slots: list[Slot] = []

    def slot(self, index: int) -> Slot:
        """Slot `index`."""
        if not self._slots:
            assert self._memory is not None
            assert self._memory.buf is not None
            view = self._memory.buf
            self._slots = [Slot(view[at : at + SLOT_SIZE]) for at in range(0, self._size * SLOT_SIZE, SLOT_SIZE)]
        return self._slots[index]


class Arena(Segment):
    """The caller's side: makes the segment, claims and releases its slots, removes it. Their number never changes.

    Pickled for a worker (spawn, forkserver) it becomes a `Segment`; forked ones inherit it, and use it as one.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size, None)
        self._owner = os.getpid()
        self._closed = False
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._lock = threading.RLock()

    def open(self) -> None:
        """Create the segment, unless that is done or it is too late. OSError where the machine has no room for it.

        Comes before the first worker starts: forked ones must inherit the segment, and the resource tracker with it.
        """
        if self._memory is not None:
            return
        with self._lock:
            if self._memory is None and not self._closed:
                self._memory = _create(self._size * SLOT_SIZE)
                for index in range(self._size):
                    self._free.put(index)

    def claim(self) -> tuple[int, Slot]:
        """A free slot, cleared. Waits for one; RuntimeError when the arena is closed meanwhile."""
        index = self._free.get()
        if index is None:
            self._free.put(None)  # for the next one who waits
            # Not an IndexError: multiprocessing's feeder thread takes that for its own empty buffer.
            raise RuntimeError("the executor is shut down")
        slot = self.slot(index)
        slot.clear()
        return index, slot

    def release(self, index: int) -> None:
        """Give slot `index` back."""
        self._free.put(index)

    def close(self) -> None:
        """Remove the segment; only in the process that made it, and only once. Nobody may use a slot any more."""
        if self._owner != os.getpid():
            return
        with self._lock:
            self._closed = True
            if self._memory is None:
                return
            memory, self._memory = self._memory, None
            self._free.put(None)
            for slot in self._slots:
                slot.release()
            self._slots = []
            # Under the lock: a daemon thread may be in the midst of this when the program ends, which has to wait for it.
            memory.close()
            memory.unlink()

    def __reduce__(self) -> tuple[Callable[[int, str], Segment], tuple[int, str]]:
        assert self._memory is not None
        return _attached, (self._size, self._memory.name)


def start_tracker() -> None:
    """Start multiprocessing's resource tracker, if it does not run, so that it outlives what ends everybody else.

    A terminal that is closed sends SIGHUP to the whole process group, Ctrl-\\ SIGQUIT; the tracker itself sees to SIGINT and
    SIGTERM only, and if it is killed with the program, nobody removes the segment.
    """
    if os.name == "posix":
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGQUIT})
        try:
            resource_tracker.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _create(size: int) -> SharedMemory:
    # The standard library's kind of name, but it tells whose it is. Nobody can guess it; only the owner may open it.
    name = f"psm_{os.getpid()}_{secrets.token_hex(8)}"
    _note(
        "register", name
    )  # before there is anything, though SharedMemory does it, too: this process may be killed in between
    try:
        memory = SharedMemory(name, create=True, size=size)
        try:
            if hasattr(os, "posix_fallocate"):
                # A segment has no memory before it is written to, and where there is none left, that kills the process.
                os.posix_fallocate(memory._fd, 0, size)  # type: ignore[attr-defined]
        except OSError:
            memory.close()
            memory.unlink()
            raise
    except OSError as error:
        _note("register", name)  # SharedMemory may have taken it back, and the tracker complains of what it does not know
        _note("unregister", name)
        raise OSError(
            error.errno,
            f"no shared memory for the progress of the tasks ({size} bytes; /dev/shm on Linux): {error.strerror}",
        ) from error
    return memory


def _note(what: Literal["register", "unregister"], name: str) -> None:
    """Tell the process that removes what a killed one leaves, where the system does not do so itself."""
    if os.name == "posix":
        getattr(resource_tracker, what)(f"/{name}", "shared_memory")


class _Attached(SharedMemory):
    def __del__(self) -> None:
        # A task may have kept its Updater, and with it a view: the process ends, and there is nothing to complain about.
        with contextlib.suppress(BufferError):
            self.close()


def _attached(size: int, name: str) -> Segment:
    return Segment(size, _Attached(name))
