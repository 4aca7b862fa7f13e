"""What the tests have executors run: functions that every kind of worker can import."""

import asyncio
import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
import sys
import threading
import time
from multiprocessing import connection

from progress_executor._speedups._layout import SEQUENCE, STATUS_BYTE, N
from progress_executor.executors import process


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


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def exit_at_once():
    os._exit(0)


def fault():
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


_hoard = []


def limit_memory(room):
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + room, size + room))


def run_out_of_memory():
    """Until there is not even enough to tell of it."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    limit_memory(16 << 20)
    # The small ones of each size: a large process has many that are free and within its limit.
    for size in (*(1 << power for power in range(20, 9, -1)), *range(512, 0, -8)):
        with contextlib.suppress(MemoryError):
            while True:
                _hoard.append(bytes(size))
    raise MemoryError


def ask_for_too_much_memory(progress):
    progress.n = 7
    limit_memory(1 << 30)
    bytearray(1 << 40)


DEATHS = {function.__name__: function for function in (be_killed, exit_at_once, fault)}


def die(how, gate, progress):
    """Report, and end the worker without a word when the file `gate` is there."""
    set_all(7, 9, "dying", progress)
    wait_for(gate)
    DEATHS[how]()


def begin_to_write(gate, progress):
    """Report; when the file `gate` is there, report by half. Returns what writes the other half."""
    set_all(7, 9, "dying", progress)
    wait_for(gate)
    slot = next(slot for slot in process._arena._slots if slot.snapshot()["status"] == "dying")
    slot._words[SEQUENCE] += 1
    slot._words[N] = 8
    slot.buffer[STATUS_BYTE : STATUS_BYTE + 5] = b"write"

    def end():
        slot._words[SEQUENCE] += 1

    return end


def die_between_two_stores(gate, progress):
    begin_to_write(gate, progress)
    be_killed()


def stop_between_two_stores(half, gate, progress):
    end = begin_to_write(half, progress)
    wait_for(gate)
    end()


def die_while_the_result_is_sent(sent, gate, progress):
    """Return so much that it takes many writes, and be killed after the first `sent` bytes of it."""

    def write(self, data, write=os.write):
        if len(data) > sent:
            write(self._handle, data[:sent])
            be_killed()

    set_all(7, 9, "dying", progress)
    wait_for(gate)
    connection.Connection._send = write
    return bytes(1 << 20)


def report_without_end(progress):
    """Write total, status and n in turn, as fast as it goes: see `is_of_one_moment`."""
    n = 0
    while True:
        n += 1
        progress.total = 2 * n
        progress.status = f"{n} " * 20
        progress.n = n


def is_of_one_moment(state):
    """Whether `report_without_end` has written this."""
    n, total = state["n"], state["total"] // 2
    status = {int(word) for word in state["status"].split()}
    return (n, total, status) in [(n, n, {n}), (n, n + 1, {n}), (n, n + 1, {n + 1})]


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


def report_pid(gate, progress):
    """Tells in which process it runs, and steps."""
    progress.status = str(os.getpid())
    return step_until(gate, progress)


def report_pid_and_wait(gate, progress):
    progress.status = str(os.getpid())
    wait_for(gate)
    progress.update()


def kill_oneself():
    os.kill(os.getpid(), signal.SIGKILL)
