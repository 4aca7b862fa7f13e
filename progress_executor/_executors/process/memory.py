"""Shared memory without a name: it is gone with the last process that has it, however that ends."""

import mmap
import os
import secrets
import tempfile
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any


class SharedMemory:
    """`size` bytes, zero at first, in `view`; shared by a process that is started with this among its arguments.

    OSError where there is no memory for it.
    """

    def __init__(self, size: int, handle: int | str | None = None) -> None:
        self._size = size
        self.handle: Any
        if os.name == "nt":
            # A section of the paging file: only who knows the name can open it, and it goes with the last handle.
            self.handle = handle or f"progress_executor-{secrets.token_hex(16)}"
            self.view = memoryview(mmap.mmap(-1, size, tagname=self.handle))  # type: ignore[call-arg]
        else:
            self.handle = _allocated(size) if handle is None else handle
            self.view = memoryview(mmap.mmap(self.handle, size))

    def __reduce__(self) -> tuple[Callable[..., "SharedMemory"], tuple[Any, ...]]:
        """For spawn and the fork server."""
        return _shared, (self._size, self.handle if isinstance(self.handle, str) else reduction.DupFd(self.handle))

    def close_handle(self) -> None:
        """Give it to no more processes; the memory goes with the last view of it."""
        if not isinstance(self.handle, str):
            os.close(self.handle)


def _shared(size: int, handle: Any) -> SharedMemory:
    memory = SharedMemory(size, handle if isinstance(handle, str) else handle.detach())
    memory.close_handle()
    return memory


def _allocated(size: int) -> int:
    """A file without a name, in memory where the system can do that."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("progress_executor", os.MFD_CLOEXEC)
    else:
        file, path = tempfile.mkstemp()
        os.unlink(path)
    try:
        os.ftruncate(file, size)
        if hasattr(os, "posix_fallocate"):  # else a write kills the process where there is none left
            os.posix_fallocate(file, 0, size)
    except BaseException:
        os.close(file)
        raise
    return file
