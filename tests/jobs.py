"""What the tests have executors run: functions that every kind of worker can import."""

import asyncio
import os
import signal
import threading
import time


def add(a, b=1):
    return a + b


def fail(message="on purpose"):
    raise ValueError(message)


def count(n, progress):
    """n steps, as fast as it goes."""
    for _ in progress(range(n)):
        pass
    return n


def count_slowly(n, step, progress):
    for _ in progress(range(n)):
        time.sleep(step)
    return n


def count_then_fail(n, progress):
    count(n, progress)
    raise ValueError("after counting")


def advance(n, progress):
    """Tells no total."""
    progress.update(n)


def fail_after(n, progress):
    progress.update(n)
    raise ValueError


def follow_totals(totals, gate, progress):
    """One step and one total for each file `gate` with a number."""
    for number, total in enumerate(totals):
        wait_for(f"{gate}{number}")
        progress.total = total
        progress.update()
    wait_for(gate)


def wait_in_the_last_step(n, gate, progress):
    for i in progress(range(n)):
        if i == n - 1:
            wait_for(gate)


def step_until(gate, progress):
    """Steps until the file `gate` is there; returns the number of steps."""
    while not os.path.exists(gate):
        progress.update()
        time.sleep(0.001)
    return progress.n


def wait_for(gate):
    """Like step_until, for a task without progress."""
    while not os.path.exists(gate):
        time.sleep(0.001)
    return "waited"


def note_and_wait(entered, gate, progress):
    """Leaves the file `entered` behind when its function is entered."""
    with open(entered, "w"):
        pass
    return step_until(gate, progress)


def chatter(gate, finished, progress):
    """Says something new all the time; the file `finished` tells of its end."""
    progress.total = 10**6
    while not os.path.exists(gate):
        progress.update()
        progress.status = f"{progress.n} and a long text"
        time.sleep(0.001)
    progress.n = progress.total
    with open(finished, "w"):
        pass


def clean_up_when_cancelled(gate, cleaned, progress):
    try:
        return step_until(gate, progress)
    except asyncio.CancelledError:
        with open(cleaned, "a") as file:
            file.write("except ")
        raise
    finally:
        with open(cleaned, "a") as file:
            file.write("finally")


def return_when_cancelled(value, progress):
    try:
        while True:
            progress.update()
            time.sleep(0.001)
    except asyncio.CancelledError:
        return value


def set_all(n, total, status, progress):
    progress.total = total
    progress.status = status
    progress.n = n


def report_and_wait(n, total, status, gate, progress):
    set_all(n, total, status, progress)
    wait_for(gate)


def follow(fails, steps, gates, progress):
    """Shows one (n, total) after the other, each but the last until the file `gates` + its index is there."""
    for index, (n, total) in enumerate(steps):
        progress.total = total
        progress.n = n
        while index < len(steps) - 1 and not os.path.exists(f"{gates}{index}"):
            time.sleep(0.001)
            progress.check()
    if fails:
        fail()


def kill_self(gate, progress):
    progress.update(7)
    wait_for(gate)
    os.kill(os.getpid(), signal.SIGKILL)


def share_with_threads(threads, steps, progress):
    """Threads of the task count on its Updater."""

    def work():
        for _ in range(steps):
            progress.update()

    crew = [threading.Thread(target=work) for _ in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    return progress.n


def implementation():
    import progress_executor

    return progress_executor.IMPLEMENTATION


class Worker:
    """Callables of every kind, for the filling-in of `progress`."""

    def method(self, n, progress):
        return count(n, progress)

    @classmethod
    def of_class(cls, n, progress):
        return count(n, progress)

    @staticmethod
    def static(n, *, progress):
        return count(n, progress)

    def __call__(self, n, progress=None):
        return count(n, progress)


class IndexErrorWhenPickled:
    def __reduce__(self):
        raise IndexError("pickled")


class BrokenPipeWhenPickled:
    def __reduce__(self):
        raise BrokenPipeError(32, "pickled")


def _cannot():
    raise ValueError("unpickled")


class FailsWhenUnpickled:
    def __reduce__(self):
        return _cannot, ()


class InterruptsWhenPickled:
    def __reduce__(self):
        raise KeyboardInterrupt


class Secretive:
    """A callable that raises IndexError where it is asked for `attribute`."""

    def __init__(self, attribute):
        self.attribute = attribute

    def _reveal(self, attribute):
        if self.attribute == attribute:
            raise IndexError(attribute)

    @property
    def __signature__(self):
        self._reveal("__signature__")

    def __hash__(self):
        self._reveal("__hash__")
        return 1

    def __call__(self, value):
        return value


def leave_a_thread_writing(progress):
    def write():
        for i in range(2000):
            progress.status = str(i)

    progress.n = 42
    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(0.001)
