"""The slots of one process pool, in one shared-memory segment, and the same segment seen from a worker.

Apart from `slots` so that nobody imports multiprocessing who does not run processes.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import threading
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory

from ._speedups._layout import SLOT_SIZE
from .slots import Slot


class Arena:
    """Slots for the work items of one process pool; their number never changes.

    It is pickled for a worker (spawn, forkserver) or inherited by it (fork); there it only hands out buffers. The
    caller's process claims and releases slots and is the only one to unlink the segment.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._owner = os.getpid()
        self._memory: SharedMemory | None = None
        self._closed = False
        self._slots: list[Slot] = []
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._lock = threading.Lock()

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

    def slot(self, index: int) -> Slot:
        """Slot `index`."""
        if not self._slots:
            assert self._memory is not None
            assert self._memory.buf is not None
            view = self._memory.buf
            self._slots = [Slot(view[at : at + SLOT_SIZE]) for at in range(0, self._size * SLOT_SIZE, SLOT_SIZE)]
        return self._slots[index]

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
        memory.close()
        memory.unlink()

    def __reduce__(self) -> tuple[Callable[[int, str], Arena], tuple[int, str]]:
        assert self._memory is not None
        return _attached, (self._size, self._memory.name)


def _create(size: int) -> SharedMemory:
    # The standard library's kind of name, but it tells whose it is. Nobody can guess it; only the owner may open it.
    name = f"psm_{os.getpid()}_{secrets.token_hex(8)}"
    try:
        return SharedMemory(name, create=True, size=size)
    except OSError as error:
        raise OSError(
            error.errno,
            f"no shared memory for the progress of the tasks ({size} bytes; /dev/shm on Linux): {error.strerror}",
        ) from error


class _Attached(SharedMemory):
    def __del__(self) -> None:
        # A task may have kept its Updater, and with it a view: the process ends, and there is nothing to complain about.
        with contextlib.suppress(BufferError):
            self.close()


def _attached(size: int, name: str) -> Arena:
    arena = Arena(size)
    arena._memory = _Attached(name)
    arena._owner = 0
    return arena
