"""What the tests have executors run: functions that every kind of worker can import."""

import asyncio
import contextlib
import contextvars
import ctypes
import faulthandler
import gc
import os
import re
import resource
import signal
import sys
import threading
import time
from multiprocessing.connection import Client
from pathlib import Path

from progress_executor import current_progress
from progress_executor._slots import Slot
from progress_executor._speedups._layout import SEQUENCE, STATUS_BYTE, N


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


def wait_in_the_last_step(n, entered, gate, progress):
    for i in progress(range(n)):
        if i == n - 1:
            Path(entered).touch()
            wait_for(gate)


def step_until(gate, progress):
    """Steps until the file `gate` is there; returns the number of steps."""
    while not os.path.exists(gate):
        progress.update()
        time.sleep(0.001)
    return progress.n


def say_why_it_stops(said, progress):
    try:
        while True:
            progress.update()
            time.sleep(0.001)
    except asyncio.CancelledError as error:
        Path(said).write_text(repr(error.args))
        raise


def say_what_it_used(gate, progress):
    """The seconds of processor time and of all time that the progress call took before which the gate was opened."""
    wait_for(gate)
    used, began = time.thread_time(), time.monotonic()
    progress.update()
    return time.thread_time() - used, time.monotonic() - began


def leave_a_thread_that_counts(ended, counted, gate, progress):
    """Ends when there is `ended`; the thread counts when there is the gate."""

    def count_late():
        wait_for(gate)
        progress.update()
        Path(counted).touch()

    threading.Thread(target=count_late).start()
    wait_for(ended)


def check_until(gate):
    while not os.path.exists(gate):
        current_progress().check()
        time.sleep(0.001)


def step_in_threads_until(gate, threads, progress):
    running = [threading.Thread(target=step_until, args=(gate, progress)) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return progress.n


def step_deeply(gate):
    """The same, but nothing is handed through."""

    def deeper():
        while not os.path.exists(gate):
            current_progress().update()
            time.sleep(0.001)
        return current_progress().n

    return deeper()


def count_deeply(n, step):
    for _ in current_progress()(range(n)):
        time.sleep(step)


def report_deeply(n, total, status):
    progress = current_progress()
    progress.n, progress.total, progress.status = n, total, status
    return current_progress() is progress


def is_the_current_one(progress):
    return current_progress() is progress


def count_in_threads_of_its_context(threads, n):
    def count_up():
        for _ in range(n):
            current_progress().update()

    contexts = [contextvars.copy_context() for _ in range(threads)]
    running = [threading.Thread(target=context.run, args=(count_up,)) for context in contexts]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return current_progress().n


def count_in_an_event_loop(n):
    async def main():
        await asyncio.to_thread(lambda: current_progress().update(n))

    asyncio.run(main())
    return current_progress().n


def leave_a_thread_that_asks_later(asked):
    """Ends first; the thread then counts in what it is given, which is nobody's."""

    def ask():
        wait_for(asked)
        current_progress().update(5)
        Path(asked + ".counted").touch()

    threading.Thread(target=contextvars.copy_context().run, args=(ask,)).start()


def ask_when(gate):
    """Whether it was stopped when it first asked."""
    wait_for(gate)
    current_progress().check()
    return "not stopped"


def step_on(gate, progress):
    """Like step_until, for the states of a group: it does not count what a running task without a total has done."""
    progress.total = 10**6
    return step_until(gate, progress)


def wait_for(gate):
    """Like step_until, for a task without progress. Not for ever: a test that fails may leave its gates shut."""
    too_late = time.monotonic() + 60
    while not os.path.exists(gate):
        if time.monotonic() > too_late:
            raise TimeoutError(f"nobody opened {gate}")
        time.sleep(0.001)
    return "waited"


def note_and_wait_for(noted, gate):
    Path(noted).touch()
    return wait_for(gate)


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


def step_until_cancelled(n, progress):
    """At most n steps of a fifth of a millisecond."""
    for _ in range(n):
        progress.update()
        time.sleep(0.0002)
    progress.total = n
    return n


def step_until_cancelled_and_return(n, progress):
    """The same, but returns the number of its steps all the same."""
    try:
        return step_until_cancelled(n, progress)
    except asyncio.CancelledError:
        return progress.n


def return_when_cancelled(value, progress):
    try:
        while True:
            progress.update()
            time.sleep(0.001)
    except asyncio.CancelledError:
        return value


def fail_when_cancelled(progress):
    with contextlib.suppress(asyncio.CancelledError):
        report_and_hang(1, progress)
    fail()


def linger_when_cancelled(gate, progress):
    """Does not stop before the file `gate` is there."""
    try:
        report_and_hang(1, progress)
    finally:
        wait_for(gate)


def report_and_hang(n, progress):
    """Shows n, and then nothing new until it is stopped."""
    progress.n = n
    while True:
        progress.check()
        time.sleep(0.001)


def set_all(n, total, status, progress):
    progress.total = total
    progress.status = status
    progress.n = n


def report_and_wait(n, total, status, gate, progress):
    set_all(n, total, status, progress)
    wait_for(gate)


def report_and_step(n, total, status, gate, progress):
    set_all(n, total, status, progress)
    step_until(gate, progress)


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


_hoard = None


def limit_memory(room):
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + room, size + room))


def run_out_of_memory():
    """Until there is not even enough to tell of it."""
    global _hoard
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    gc.collect()  # what it freed later would be enough to tell
    limit_memory(16 << 20)
    # The small ones of each size: a large process has many that are free and within its limit.
    for size in (*(1 << power for power in range(20, 9, -1)), *range(1008, 0, -8)):
        try:
            while True:
                _hoard = (_hoard,) * (size // 8)  # keeps the one before, and needs nothing else for it: no other size
        except MemoryError:  # to call `suppress` may find no memory, and end this before there is none at all
            pass
    raise MemoryError


def ask_for_too_much_memory(progress):
    progress.n = 7
    limit_memory(1 << 30)
    bytearray(1 << 40)


DEATHS = {function.__name__: function for function in (be_killed, exit_at_once, fault, run_out_of_memory)}


def die(how, gate, progress):
    """Report, and end the worker without a word when the file `gate` is there."""
    set_all(7, 9, "dying", progress)
    wait_for(gate)
    DEATHS[how]()


def slot_of_the_worker():
    """That of the task which runs in this process: the worker has it while it calls the task's function."""
    frame = sys._getframe()
    while not isinstance(frame.f_locals.get("slot"), Slot):
        frame = frame.f_back
    return frame.f_locals["slot"]


def begin_to_write(gate, progress, status="dying"):
    """Report; when the file `gate` is there, report by half. Returns what writes the other half."""
    set_all(7, 9, status, progress)
    wait_for(gate)
    slot = slot_of_the_worker()
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


def stay_between_two_stores(progress):
    """Report by half, and stop in the midst of it."""
    begin_to_write(os.devnull, progress, f"in process {os.getpid()}")
    time.sleep(10**6)


def die_while_the_result_is_sent(sent, gate, progress):
    """Return so much that it takes many writes, and be killed after the first `sent` bytes of it."""

    def write_some(file, data, write=os.write):
        write(file, data[:sent])
        be_killed()

    set_all(7, 9, "dying", progress)
    wait_for(gate)
    os.write = write_some
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


def leave_a_thread_writing(n, gate, progress):
    """Report `n`, and return while a thread writes it as the total until the file `gate` is there."""

    def write():
        while not os.path.exists(gate):
            progress.total = n

    progress.n = n
    threading.Thread(target=write, daemon=True).start()
    while progress.total != n:
        time.sleep(0.001)


def leave_a_child_writing(written, gate, progress):
    """Fork a process that writes until the file `gate` is there; `written` tells that it has begun to."""
    progress.n = 42
    if not os.fork():
        try:
            while not os.path.exists(gate):
                progress.total = 777
                progress.status = "of the child"
                progress.update()
                with open(written, "w"):
                    pass
        finally:
            os._exit(0)
    while not os.path.exists(written):
        time.sleep(0.001)


def report_pid(gate, progress):
    """Tells in which process it runs, and steps."""
    progress.status = str(os.getpid())
    return step_until(gate, progress)


def report_pid_and_wait(gate, progress):
    progress.status = str(os.getpid())
    wait_for(gate)
    progress.update()


def leave_a_thread_that_sleeps():
    """One that the end of the process waits for."""
    threading.Thread(target=time.sleep, args=(60,)).start()
    return os.getpid()


def stop_when_done():
    """The process stops when it has told the value."""
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGSTOP)).start()
    return os.getpid()


def kill_oneself():
    os.kill(os.getpid(), signal.SIGKILL)


def say(texts, progress):
    """Each text, and a step behind it."""
    for text in texts:
        progress.log(text)
        progress.update()


def say_numbers(n, size, progress):
    """The numbers up to n, each filled up to `size` characters; returns how many seconds that took."""
    began = time.monotonic()
    for i in range(n):
        progress.log(f"{i} ".ljust(size, "."))
    return time.monotonic() - began


def say_slowly(n, pause, progress):
    """Texts, and no step."""
    for i in range(n):
        progress.log(str(i))
        time.sleep(pause)
    return n


def say_and_wait(texts, gate, progress):
    say(texts, progress)
    while not os.path.exists(gate):
        time.sleep(0.001)
        progress.check()


def say_at_gates(texts, gates, progress):
    for text, gate in zip(texts, [*gates, None], strict=True):
        progress.log(text)
        progress.update()
        if gate is not None:
            wait_for(gate)


def say_then_fail_later(tried, seconds, progress):
    """Fail when that much time has passed; the second time, return."""
    again = os.path.exists(tried)
    Path(tried).touch()
    progress.log("second" if again else "first")
    time.sleep(seconds)
    return 2 if again else fail()


def say_then(fn, texts, progress):
    """What `say` does, and then what is in DEATHS, or fail."""
    say(texts, progress)
    if fn is None:
        fail()
    DEATHS[fn]()


def send_objects(progress):
    from progress_executor._executors.process import worker

    for payload in ({"a": (1, 2.5)}, None, b"x" * 100_000):
        worker._running.say("object", payload, 10)


def say_deeply(text):
    current_progress().log(text)


def say_in_threads(threads, n, size, progress):
    def say_all(name):
        for i in range(n):
            progress.log(f"{name} {i} ".ljust(size, "."))

    workers = [threading.Thread(target=say_all, args=(name,)) for name in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def say_in_a_child(progress):
    progress.log("before")
    child = os.fork()
    if not child:
        try:
            progress.log("in the child")
            progress.update(7)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    progress.log(f"child: {status}")


def say_beside_steps(n, progress):
    speaker = threading.Thread(target=lambda: [progress.log(str(i)) for i in range(n)])
    speaker.start()
    while speaker.is_alive():
        progress.update(1)
    speaker.join()


def say_in_parts(progress):
    progress.total = 2
    progress.log("before")
    with progress.sub(1) as part:
        part.log("in a part")
    progress.log("between")
    with progress.sub(1).sub(1) as part:
        part.log("in a part of a part")
    progress.log("after")


def say_without_end(progress):
    while True:
        progress.log("." * 1000)


def leave_a_thread_that_speaks(ended, gate, spoke, progress):
    """Speaks; ends when there is `ended`; when there is the gate, the thread speaks, of more than there is room for."""

    def speak_late():
        wait_for(gate)
        began = time.monotonic()
        for _ in range(100):
            progress.log("late " * 100)
        Path(f"{spoke}.part").write_text(str(time.monotonic() - began))
        os.rename(f"{spoke}.part", spoke)

    progress.log("here")
    threading.Thread(target=speak_late).start()
    wait_for(ended)


def swallow_for_ever(progress):
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            progress.check()


def loop_for_ever(_):
    while True:
        pass


HANGS = {
    "a loop": loop_for_ever,
    "a long sleep": lambda _: time.sleep(3600),
    "a match that takes for ever": lambda _: re.fullmatch("(a+)+b", "a" * 100),
    "a long calculation": lambda _: pow(3, 10**8),
    "swallowed errors": swallow_for_ever,
    "a stopped process": lambda _: os.kill(os.getpid(), signal.SIGSTOP),
}


def hang_by(how, progress):
    """Report, and never end, whoever asks: as soon as the report is seen, and the call may not be over."""
    with contextlib.suppress(asyncio.CancelledError):
        set_all(7, 9, "hanging", progress)
    HANGS[how](progress)


SAID_AT = range(0, 20, 4)


def report_and_return(number, size, notes, progress):
    """Twenty steps, some texts, and so many bytes. Its beginning and its end are noted."""
    note(notes, f"{number} begins")
    progress.status = str(os.getpid())
    for step in progress(range(20)):
        if step in SAID_AT:
            progress.log(f"{number} at {step}")
        time.sleep(0.0005)
    note(notes, f"{number} ends")
    return number, bytes([number % 256]) * size


def note(file, line):
    """In one write, which no kill splits."""
    file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def puppet(address, number, progress):
    """Does what it is told: "return" a value, "fail", or count. When it is asked to stop, "step" does, "swallow" returns.

    "ignore" goes on.
    """
    with Client(address) as orders:
        orders.send((number, os.getpid()))
        while True:
            order, argument = orders.recv()
            if order == "return":
                return argument
            if order == "fail":
                raise ValueError(number)
            try:
                progress.update(argument)
            except BaseException:
                orders.send("cancelled")
                if order == "swallow":
                    return "swallowed"
                if order == "step":
                    raise
            else:
                orders.send("counted")
