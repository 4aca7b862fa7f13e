"""Progress and cancellation on loky's worker processes: `python examples/loky_executor.py`.

An executor needs three things: memory that a task and its caller share (here a file for each task), a call in the worker
that gives the function its Updater, and somebody who ends the future (here loky's own, when it is done).
"""

import mmap
import signal
import tempfile
import time
from pathlib import Path

import loky

from progress_executor import *
from progress_executor.adapters import *


class LokyTask(Task):
    """A task that is loky's; its slot is in a file."""

    def __init__(self, monitor, call, path):
        super().__init__(monitor, call)
        self.path = path
        self.path.write_bytes(EMPTY)
        self.start(slot_in(path), None)

    def began(self):
        return self.started_at if self.slot is None else self.slot.started_at

    def withdraw(self):
        """Whether it could be taken back, as it is pending."""
        return self.of_loky.cancel()

    def finish(self, status):
        self.started_at = self.began()
        super().finish(status)
        self.path.unlink(missing_ok=True)


class LokyFuture(ProgressFuture):
    def running(self):
        return not self.done() and self._task.began() is not None


class LokyProgressExecutor(ProgressExecutor):
    """loky's workers, with progress."""

    def __init__(self, max_workers=None):
        # Ctrl-C in a terminal is for the caller, which has the tasks stop.
        ignore = signal.SIGINT, signal.SIG_IGN
        self._loky = loky.ProcessPoolExecutor(max_workers, initializer=signal.signal, initargs=ignore)
        self._folder = tempfile.TemporaryDirectory()
        self._futures = set()
        self._closed = False
        self._set_up()

    def _enqueue(self, call):
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        with tempfile.NamedTemporaryFile(dir=self._folder.name, delete=False) as file:
            task = LokyTask(self._monitor, call, Path(file.name))
        future = LokyFuture(task)
        self._futures.add(future)
        task.of_loky = self._loky.submit(run, task.path, call)
        task.of_loky.add_done_callback(lambda of_loky: self._finish(future, of_loky))
        return future

    def _finish(self, future, of_loky):
        """In loky's thread, or in that which has cancelled it."""
        if of_loky.cancelled():
            future.cancel()
        elif (error := of_loky.exception()) is not None:
            future.set_exception(error)
        else:
            value, messages = of_loky.result()
            for message in messages:
                future._task.hear(message)
            future.set_result(value)
        self._futures.discard(future)
        self._end_if_over()

    def _close(self):
        self._closed = True
        self._end_if_over()

    def _end_if_over(self):
        if self._closed and not self._futures:
            self._end.reach()

    def _clean_up(self):
        self._loky.shutdown()
        self._folder.cleanup()

    def _pending(self):
        return [future._cancel_pending for future in list(self._futures)]


def slot_in(path):
    with open(path, "r+b") as file:
        return Slot(mmap.mmap(file.fileno(), SLOT_SIZE))


def run(path, call):
    """In the worker. What the task says comes with its outcome: loky has no other way back."""
    slot, messages = slot_in(path), []
    slot.start(time.time())
    return run_call(call, slot, messages.append), messages


def work(n, progress: Updater):
    progress.log(f"{n} steps")
    for _ in progress(range(n)):
        time.sleep(0.01)
    return n


if __name__ == "__main__":
    with LokyProgressExecutor(2) as executor:
        futures = [executor.submit(work, n) for n in (50, 80, 10_000)]
        for future in futures:
            future.add_tqdm_callback()
        print(futures[0].result(), futures[1].result())
        futures[2].cancel()
    print(futures[2].state)
