"""Ctrl-C in a terminal, and SIGTERM: tasks clean up, the terminal is as it was, nothing is left behind."""

import asyncio
import concurrent.futures
import contextlib
import io
import itertools
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
import tqdm

import progress_executor
from progress_executor import (
    ProcessPoolProgressExecutor,
    ProgressExecutor,
    ProgressFuture,
    SyncProgressExecutor,
    ThreadPoolProgressExecutor,
)
from progress_executor._executors.crew import Crew, PoolExecutor
from progress_executor._executors.process.link import Link
from progress_executor._executors.process.pool import Workers
from progress_executor._executors.process.task import ProcessTask
from progress_executor._executors.sync import SyncFuture, SyncTask
from progress_executor._interrupts import SafeCondition, SigintDeferred
from progress_executor._monitor import Monitor
from progress_executor._tasks import Task

from . import jobs
from .conftest import DEADLINE, POOLS, START_METHODS, make_executor, open_gate, until
from .terminal import Terminal
from .test_exit import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

AT_ONCE = 1
"""Seconds in which a program ends after its tasks' last step, not counting those in which its main thread, or the test's,
was ready to run but had no processor."""

PROGRAM = """
import asyncio, contextlib, itertools, multiprocessing, os, signal, sys, threading, time, traceback
from concurrent.futures import wait
from progress_executor import *

kind, style, moment, folder = sys.argv[1:]

def note(what, number="", text=""):
    # And no file object, which a second Ctrl-C might leave open.
    file = os.open(os.path.join(folder, f"{what}{number}"), os.O_CREAT | os.O_WRONLY)
    os.write(file, text.encode())
    os.close(file)

def work(number, progress):
    try:
        note("entered", number)
        for _ in progress(range(10**9)):
            time.sleep(0.001)
    finally:
        note("cleaning", number)
        while not os.path.exists(os.path.join(folder, "go on")):
            time.sleep(0.005)
        note("cleaned", number)

def make():
    global made
    if kind == "sync":
        made = SyncProgressExecutor()
    elif kind == "thread":
        made = ThreadPoolProgressExecutor(2)
    else:
        made = ProcessPoolProgressExecutor(2, multiprocessing.get_context(kind))
    return made

def submit(executor):
    for number in itertools.count() if moment == "submit" else range(6):
        future = executor.submit(work, number)
        if number < 6:
            future.add_tqdm_callback(init_kwargs={"desc": f"bar {number}", "leave": False}, triggers=["running"])
        note("submitted")
        yield future
        if moment == "submit":
            time.sleep(0.0005)

def leave(futures):
    ProgressGroup(futures).add_tqdm_callback(init_kwargs={"desc": "bar of all", "leave": False})
    note("leaving")

def main():
    with make() as executor:
        futures = list(submit(executor))
        if moment == "running":
            wait(futures)
        leave(futures)

def interrupt_if_asyncio_loses_a_wake_up(loop):
    # Where KeyboardInterrupt takes its place, the task stays asleep though what it waits for is there: it takes a third one.
    # Likewise where that takes the place of the callback in which a TaskGroup hears of the end of its last task.
    def asleep():
        waiting = {(task, task._fut_waiter) for task in asyncio.all_tasks(loop)}
        lost = group._on_completed_fut if group and all(task.done() for task in group._tasks) else None
        return {(task, waiter) for task, waiter in waiting if waiter is not None and (waiter.done() or waiter is lost)}

    with contextlib.suppress(RuntimeError):  # the loop is closed
        while True:
            time.sleep(0.5)
            tasks, turns = asleep(), threading.Semaphore(0)
            for _ in range(3):  # in which the loop wakes whom it has to
                loop.call_soon_threadsafe(turns.release)
                turns.acquire()
            if tasks & asleep():
                note("wake-up lost")
                os.kill(os.getpid(), signal.SIGINT)

group = None

async def main_in_loop():
    global group
    threading.Thread(target=interrupt_if_asyncio_loses_a_wake_up, args=[asyncio.get_running_loop()], daemon=True).start()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    async with make() as executor:
        if moment == "shutdown":
            leave(list(submit(executor)))
            return
        async with asyncio.TaskGroup() as group:
            for future in submit(executor):
                group.create_task(future)
                await asyncio.sleep(0)

if __name__ == "__main__":
    print("begun", flush=True)
    word = "not interrupted"
    try:
        try:
            asyncio.run(main_in_loop()) if style == "asyncio" else main()
        except asyncio.CancelledError:
            word = "terminated"
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the second one, if it comes when all is over
    except KeyboardInterrupt as error:  # the first one, or the second before that line
        word = "interrupted"
        if made._with_block_thread is not None:
            note("never left", text="".join(traceback.format_exception(error)))
            doors = [type(made).__exit__.__code__, type(made).__aexit__.__code__]
            places = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
            if any((code, code.co_firstlineno) in places for code in doors):
                note("at the door")
    print(word, flush=True)
"""


IGNORED = re.compile(
    r"Exception ignored in: <function WeakSet\.\S+\._remove at \w+>\r\nTraceback .*\r\n(?: .*\r\n)+KeyboardInterrupt: \r\n"
)
"""What Python tells of a Ctrl-C that comes in a weak reference's callback, of asyncio's set of tasks here: it is lost."""


FORKING = "ignore:This process:DeprecationWarning"
"""Of a pool's first fork beside a thread of the program's: from 3.15 on it would be raised, as in the standard library."""


class Program(Terminal):
    """The program above on a terminal."""

    def __init__(self, folder, kind, style, moment):
        script = folder / "program.py"
        script.write_text(PROGRAM)
        self.kind, self.moment = kind, moment
        self._notes, self._temporary = folder / "notes", folder / "temporary"
        self._notes.mkdir()
        self._temporary.mkdir()
        root = str(Path(progress_executor.__file__).parents[1])
        super().__init__(
            [sys.executable, "-W", "error", "-W", FORKING, str(script), kind, style, moment, str(self._notes)],
            env={**os.environ, "PYTHONPATH": root, "TMPDIR": str(self._temporary)},
            clean=True,
        )
        self.wait_for(lambda screen: "begun" in screen.text)
        self.before = self.settings

    def interrupt(self):
        """Ctrl-C; returns when the signal has been sent."""
        echoed = self.output.count("\x03")
        super().interrupt()
        self.wait_for(lambda screen: screen.output.count("\x03") > echoed)

    def noted(self, what):
        """The numbers of the tasks that have noted this, and when."""
        return {path.name.removeprefix(what): path.stat().st_mtime for path in self._notes.glob(f"{what}*")}

    def wait_for_the_moment(self):
        if self.moment == "submit":
            self.wait_for(lambda _: self.noted("submitted"))
        if self.moment == "shutdown":
            self.wait_for(lambda _: self.noted("leaving"))
        if self.kind == "sync" and self.moment == "submit":
            return
        # Both workers: one that is still starting when it is told to end has to start first.
        self.wait_for(lambda _: len(self.noted("entered")) >= (1 if self.kind == "sync" else 2))

    def go_on(self):
        """Let the tasks clean up."""
        self._waited = self._waits_for_a_processor()
        (self._notes / "go on").touch()

    def _waits_for_a_processor(self):
        """For how many seconds its main thread, and this one, which sees its end, have been ready to run but did not."""
        files = [Path(f"/proc/{thread}/schedstat") for thread in (self.pid, "thread-self")]
        return sum(int(file.read_text().split()[1]) for file in files if file.exists()) / 1e9  # not each kernel tells

    def check(self, word, cleaned=True, again=False, left=True):
        """It ends at once, has said this `word`, and the terminal, and all else, is as before.

        `cleaned`: whether its tasks came to the end of their `finally`; None if that is not known. `again`: a second Ctrl-C
        has followed; where it hits a task of the event loop, asyncio tells at length, and Python where it cannot be raised.
        `left`: that leaving the executor began, unless Ctrl-C came before its first line: then the bars stand.
        """
        self.read_to_the_end()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)  # and is still known to /proc
        ended = time.time()
        starved = self._waits_for_a_processor() - self._waited
        assert self.finish() == 0, self.text
        entered, finished = self.noted("entered"), self.noted("cleaned")
        assert self.kind != "sync" or set(entered) <= {"0"}  # one runs, and after Ctrl-C no other begins
        assert cleaned is None or set(finished) == (set(entered) if cleaned else set())
        for steps in (self.noted("wake-up lost"), finished, self.noted("cleaning")):
            if steps:
                assert ended - max(steps.values()) < AT_ONCE + starved
                break
        told = IGNORED.sub("", self.output) if again else self.output
        if not again or "never retrieved" not in told:
            assert not re.search(r"Traceback|Exception ignored|Warning", told), self.output
            if not self.noted("never left") and told == self.output:
                assert self.lines[:2] == ["begun", word], self.text
                assert not any(self.lines[2:]), self.text
        if left and self.noted("never left") and not self.noted("wake-up lost"):
            assert self.noted("at the door"), (self._notes / "never left").read_text()
        assert self.column == 0
        assert self.settings == self.before
        until(lambda: not self.processes(), "the end of all processes")
        assert not list(self._temporary.iterdir())


STYLES = ["with", "asyncio"]
MOMENTS = ["submit", "running", "shutdown"]
QUICK = [("thread", "running"), ("fork", "running"), ("fork", "shutdown"), ("sync", "running")]


def combinations(kinds, moments=MOMENTS, quick=QUICK):
    pairs = itertools.product(kinds, moments)
    return [pytest.param(*pair, marks=() if pair in quick else pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("kind", "moment"), combinations(["thread", *START_METHODS, "sync"]))
def test_ctrl_c_cancels_all_tasks_and_leaves_the_terminal_as_it_was(kind, style, moment, tmp_path):
    with Program(tmp_path, kind, style, moment) as program:
        program.wait_for_the_moment()
        program.interrupt()
        program.go_on()
        program.check("interrupted")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["forkserver", "spawn"])
def test_ctrl_c_while_a_worker_starts_lets_the_tasks_of_the_others_clean_up(kind, tmp_path):
    with Program(tmp_path, kind, "with", "running") as program:
        program.wait_for(lambda _: program.noted("entered"))
        program.interrupt()
        program.go_on()
        program.finish()
        assert "interrupted" in program.text
        assert program.noted("cleaned").keys() == program.noted("entered").keys()
        until(lambda: not program.processes(), "the end of all processes")


AGAIN = [
    again
    for again in itertools.product(["thread", *START_METHODS, "sync"], MOMENTS, STYLES)
    if again != ("sync", "submit", "with")  # where no task runs, and the first one ends the program
]


@pytest.mark.slow
@pytest.mark.parametrize("second", ["at once", "while tasks clean up"])
@pytest.mark.parametrize(("kind", "moment", "style"), AGAIN)
def test_ctrl_c_twice_in_a_row(kind, moment, style, second, tmp_path):
    with Program(tmp_path, kind, style, moment) as program:
        program.wait_for_the_moment()
        if second == "while tasks clean up":  # in the sync executor it may not have begun, and then has nothing to clean up
            program.wait_for(lambda _: program.noted("entered"))
        program.interrupt()
        if second == "while tasks clean up":
            program.wait_for(lambda _: program.noted("cleaning"))
        program.interrupt()
        cleaned = True
        if kind == "sync":  # the second one interrupts what the task does in its `finally`, if it has come there
            cleaned = None if second == "at once" else False
        if cleaned is False:
            program.wait_for(lambda screen: "interrupted" in screen.output)  # it may have scrolled away behind a traceback
        program.go_on()
        program.check("interrupted", cleaned, again=True, left=second != "at once")


@pytest.mark.parametrize("kind", POOLS)
def test_a_second_ctrl_c_is_raised_though_tasks_have_not_stopped(kind, gate, monkeypatch):
    leaving, left = threading.Event(), threading.Event()

    def give_up():
        left.wait(5)
        open_gate(gate)

    giving_up = threading.Thread(target=give_up)
    giving_up.start()
    with contextlib.suppress(KeyboardInterrupt), make_executor(kind, 1) as executor:
        future = executor.submit(jobs.wait_for, gate)
        until(future.running)
        leave = executor._leave

        def interrupt_once_more():
            if not leaving.is_set():
                leaving.set()
                os.kill(os.getpid(), signal.SIGINT)
            leave()

        monkeypatch.setattr(executor, "_leave", interrupt_once_more)
        raise KeyboardInterrupt
    assert leaving.is_set()
    assert not future.done()
    left.set()
    giving_up.join()
    executor.shutdown()


@pytest.mark.parametrize(("kind", "moment"), combinations(["thread", *START_METHODS], quick=QUICK[1:2]))
def test_sigterm_with_asyncios_handler_cancels_all_tasks(kind, moment, tmp_path):
    """Not of the sync executor: while a task runs there, the loop does not hear of a signal."""
    with Program(tmp_path, kind, "asyncio", moment) as program:
        program.wait_for_the_moment()
        os.kill(program.pid, signal.SIGTERM)
        program.go_on()
        program.check("terminated")


def interrupted_at_line(number, codes, fn, begun=lambda: True):
    """Call `fn()` with a Ctrl-C at the line of that number of all that it runs of `codes`; whether there was such a line.

    Those count at which `begun()`. In an interpreter of its own: what is raised at a line of an `except` block may leave the
    exception behind that was handled there, and whatever is raised later has it as its context.
    """
    lines = itertools.count()

    def trace(frame, event, arg):
        if frame.f_code in codes and event == "line" and begun() and next(lines) == number:
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)
        return trace if frame.f_code in codes else None

    sys.settrace(trace)
    try:
        fn()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return next(lines) > number


def code_of(*classes):
    """Of all their methods."""
    return {method.__code__ for owner in classes for method in vars(owner).values() if hasattr(method, "__code__")}


RUNNING_HERE = code_of(SyncTask, SyncFuture, Task, ProgressFuture, Future)


@pytest.mark.parametrize("task", ["count", "count_then_fail"])
def test_ctrl_c_at_any_line_of_running_a_sync_task_ends_all_futures(task):
    run("from tests.test_interrupts import interrupt_sync; interrupt_sync(getattr(jobs, sys.argv[1]))", task)


def interrupt_sync(task):
    for number in itertools.count():
        done, futures = [], []
        with contextlib.suppress(KeyboardInterrupt), SyncProgressExecutor() as executor:
            futures = [executor.submit(task, 3) for _ in range(2)]
            for future in futures:
                future.add_done_callback(done.append)
            reached = interrupted_at_line(number, RUNNING_HERE, futures[0].exception)
            raise KeyboardInterrupt
        assert all(future.done() for future in futures)
        assert set(done) == set(futures)
        assert len(done) == 2
        if not reached:
            break
    assert number > 30


@pytest.mark.parametrize("wait", ["result", "exception", "shutdown"])
def test_ctrl_c_at_any_line_after_a_sync_task_keeps_its_value(wait):
    run("from tests.test_interrupts import interrupt_returned; interrupt_returned(sys.argv[1])", wait)


def interrupt_returned(wait):
    for number in itertools.count():
        returned, interrupts = [], []

        def work(returned=returned):
            returned.append(True)
            return "kept"

        def wait_for_it(interrupts=interrupts):
            try:
                getattr(executor if wait == "shutdown" else future, wait)()  # noqa: B023
            except KeyboardInterrupt as error:
                interrupts.append(error)

        with SyncProgressExecutor() as executor:
            future = executor.submit(work)
            reached = interrupted_at_line(number, RUNNING_HERE, wait_for_it, lambda returned=returned: bool(returned))
            assert future.done()
            assert future.result() == "kept"
            assert future.state["status"] == "done"
        assert len(interrupts) == reached
        if not reached:
            break
    assert number > 10


def in_a_sync_task(act):
    with SyncProgressExecutor() as executor:
        executor.submit(act).result()


def in_a_done_callback(act):
    with SyncProgressExecutor() as executor:
        future = executor.submit(jobs.add, 1)
        future.add_done_callback(lambda _: act())
        future.result()


def where_a_pending_task_is_cancelled(act):
    with SyncProgressExecutor() as executor:
        executor.submit(jobs.add, 1).add_done_callback(lambda _: act())
        executor.shutdown(cancel_futures=True)


def in_the_class_of_a_bar(act, method):
    class Bar(tqdm.tqdm):
        pass

    def call(self, *args, **kwargs):
        act()
        return getattr(super(Bar, self), method)(*args, **kwargs)

    setattr(Bar, method, call)
    with ThreadPoolProgressExecutor(1) as executor:
        future = executor.submit(jobs.count, 3)
        future.add_tqdm_callback(Bar, {"file": io.StringIO()})
        future.result()


WHERE_CTRL_C_WAITS = [
    in_a_sync_task,
    in_a_done_callback,
    where_a_pending_task_is_cancelled,
    *(pytest.param(partial(in_the_class_of_a_bar, method=name), id=f"in {name} of a bar") for name in ("__init__", "close")),
]


@pytest.fixture
def sigint():
    """Python's own handler of SIGINT, which is put back."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("where", WHERE_CTRL_C_WAITS)
def test_a_handler_of_sigint_that_is_set_meanwhile_stays(where, sigint):
    def handler(*_):
        pass

    where(lambda: signal.signal(signal.SIGINT, handler))
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("where", WHERE_CTRL_C_WAITS)
def test_a_handler_of_sigint_that_is_kept_meanwhile_works(where, sigint):
    """As somebody would keep it who sets another one, and puts it back later."""
    kept = []
    where(lambda: kept.append(signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, kept[0])
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_while_a_thread_pool_starts_a_thread_lets_its_task_clean_up():
    run("from tests.test_interrupts import interrupt_threads; interrupt_threads()")


def interrupt_threads():
    for number in itertools.count():
        entered, cleaned = [], []

        def work(progress, entered=entered, cleaned=cleaned):
            entered.append(1)
            try:
                while True:
                    progress.update()
                    time.sleep(0.001)
            finally:
                time.sleep(0.01)
                cleaned.append(1)

        with contextlib.suppress(KeyboardInterrupt), ThreadPoolProgressExecutor(1) as executor:
            reached = interrupted_at_line(number, {threading.Thread.start.__code__}, lambda: executor.submit(work))
            raise KeyboardInterrupt
        assert cleaned == entered
        if not reached:
            break
    assert number > 3


SUBMITTING = code_of(
    *(ProgressExecutor, PoolExecutor, ThreadPoolProgressExecutor, ProcessPoolProgressExecutor),
    *(Crew, Workers, Link, ProcessTask, Task, ProgressFuture, threading.Thread),
)


@pytest.mark.parametrize("kind", ["thread", pytest.param("fork", marks=pytest.mark.slow)])
def test_ctrl_c_at_any_line_of_submit_leaves_the_pool_working(kind):
    run("from tests.test_interrupts import interrupt_submit; interrupt_submit(sys.argv[1])", kind)


def interrupt_submit(kind):
    for number in itertools.count():
        with make_executor(kind, 2) as executor:
            reached = interrupted_at_line(number, SUBMITTING, lambda executor=executor: executor.submit(jobs.add, 1))
            assert executor.submit(jobs.add, 1, 3).result(DEADLINE) == 4
        until(lambda: threading.active_count() == 1 and not multiprocessing.active_children(), "the end of the pool")
        if not reached:
            break
    assert number > 20


@pytest.mark.parametrize("style", STYLES)
def test_ctrl_c_at_any_call_of_leaving_an_executor_ends_its_tasks(style):
    run("from tests.test_interrupts import interrupt_leaving; interrupt_leaving(sys.argv[1])", style)


def interrupt_leaving(style):
    """A second one, at each call that `__exit__` or `__aexit__` makes itself: what they call has tests of its own.

    Not at their entry, where Python lets nobody hear.
    """
    own = {ThreadPoolProgressExecutor.__exit__.__code__, ThreadPoolProgressExecutor.__aexit__.__code__}

    def interrupt(frame, event, arg):
        caller = {"c_call": frame, "call": frame.f_back}.get(event)
        if caller and caller.f_code in own and next(calls) == number:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    def leave():
        with executor:
            futures.append(executor.submit(jobs.step_until_cancelled, 10**9))
            sys.setprofile(interrupt)
            raise KeyboardInterrupt

    async def leave_in_loop():
        async with executor:
            futures.append(executor.submit(jobs.step_until_cancelled, 10**9))
            sys.setprofile(interrupt)
            raise KeyboardInterrupt

    for number in itertools.count():
        calls, futures, executor = itertools.count(), [], ThreadPoolProgressExecutor(1)
        loop = asyncio.new_event_loop()
        try:
            leave() if style == "with" else loop.run_until_complete(leave_in_loop())
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
            loop.close()
        assert executor._with_block_thread is None
        assert not concurrent.futures.wait(futures, DEADLINE).not_done
        executor.shutdown()
        if next(calls) <= number:
            break
    assert number > 3


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", POOLS)
def test_who_leaves_an_executor_sleeps_until_its_tasks_end(kind, style):
    status = Path(f"/proc/self/task/{threading.get_native_id()}/status")
    counted = []

    def count(_):
        counted.append(int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status.read_text(), re.M)[1]))

    def begin(executor):
        executor.submit(jobs.add, 1).result()  # its worker is there
        executor.submit(time.sleep, 1).add_done_callback(count)
        count(None)

    async def leave_in_loop():
        async with make_executor(kind, 1) as executor:
            begin(executor)

    def naps():
        counted.clear()
        if style == "asyncio":
            asyncio.run(leave_in_loop())
        else:
            with make_executor(kind, 1) as executor:
                begin(executor)
        return counted[1] - counted[0]

    # Of three attempts one is enough: on a busy machine a thread sleeps also where it waits for another one.
    assert any(naps() < 5 for _ in range(3))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("held_back", [SigintDeferred, pytest.param(SafeCondition, id="while futures are waited for")])
def test_a_child_that_another_thread_forks_while_ctrl_c_waits_hears_of_it(held_back):
    statuses = []

    def fork():
        child = os.fork()
        if not child:
            try:
                with SafeCondition():  # nor does a later wait make it wait
                    pass
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                os._exit(3)
            finally:
                os._exit(4)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    thread = threading.Thread(target=fork)
    context = held_back()
    context.__enter__() if held_back is SigintDeferred else context.acquire()
    try:
        thread.start()
        thread.join()
    finally:
        context.__exit__() if held_back is SigintDeferred else context.release()
    assert statuses == [3]


def interrupt_often(fn, *args):
    """Call `fn(*args)` over and over until it is interrupted; more interrupts follow close behind, while it is left."""

    left = 3

    def interrupt(signum, frame):
        nonlocal left
        while left and frame is not None:
            if frame.f_code is fn.__code__:
                left -= 1
                signal.setitimer(signal.ITIMER_REAL, 1e-6)  # the next one
                raise KeyboardInterrupt
            frame = frame.f_back
        if left:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1e-4))

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 3e-4))
    try:
        while True:
            fn(*args)
    except KeyboardInterrupt:
        pass
    left = 0
    signal.setitimer(signal.ITIMER_REAL, 0)  # first: the handler from before may be that of another timer
    signal.signal(signal.SIGALRM, before)


def step_into(condition):
    with condition:
        pass


def wait_for(condition):
    with condition:
        condition.wait(1e-6)


def assert_free(conditions):
    """That another thread can hold each of these."""
    thread = threading.Thread(target=lambda: [step_into(condition) for condition in conditions], daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive()


not_on_3_14 = pytest.mark.skipif(
    sys.version_info[:2] == (3, 14), reason="CPython 3.14 may handle a signal between the entry of any lock and its block"
)


@not_on_3_14
@pytest.mark.parametrize("use", [step_into, wait_for])
def test_an_interrupt_leaves_no_condition_locked(use):
    """`threading.Condition` fails this in half of the rounds."""
    for _ in range(100):
        condition = SafeCondition()
        interrupt_often(use, condition)
        assert_free([condition])


@not_on_3_14
def test_ctrl_c_leaves_no_future_locked_that_is_waited_for():
    futures = [ProgressFuture(Task(Monitor(), None)) for _ in range(10)]
    handler = signal.getsignal(signal.SIGINT)
    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        for _ in range(300):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1e-4))
                while True:
                    concurrent.futures.wait(futures, timeout=0)
            assert_free([future._condition for future in futures])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("kind", POOLS)
def test_tasks_are_cancelled_where_ctrl_c_came_before_the_first_line_of_leaving(kind, gate):
    """As it often does behind another one. Nobody will ever wait for the tasks, then."""
    executor = make_executor(kind)
    executor.__enter__()
    future = executor.submit(jobs.step_until, gate)
    pending = [executor.submit(jobs.step_until, gate) for _ in range(3)]
    until(lambda: future.state["n"])
    del executor
    assert concurrent.futures.wait([future, *pending], DEADLINE).not_done == set()
    assert all(each.cancelled() for each in (future, *pending))
