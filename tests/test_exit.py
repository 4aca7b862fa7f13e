"""The ends of programs, of their children and of tasks: nothing hangs, nothing is left, and nobody else is touched."""

import copyreg
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor

import pytest

from . import jobs
from .conftest import CONCURRENT, DEADLINE, POOLS, START_METHODS, make_executor, open_gate, session, until

BEGIN = """
import asyncio, os, sys, threading, time
import tqdm
from progress_executor import *
from tests import jobs
from tests.conftest import make_executor, until
"""


def run(program, *arguments, before=(), warnings=("-W", "error")):
    """What the program prints; it must end by itself, say nothing to standard error and leave nothing behind."""
    program = BEGIN + textwrap.dedent(program)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [*before, sys.executable, "-X", "dev", *warnings, "-c", program, *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=2 * DEADLINE)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # with the children that hold its pipes, for whose end all would wait
            raise
    assert (process.returncode, errors) == (0, "")
    if sys.platform == "linux":
        until(lambda: not session(process.pid), "the end of all processes")
    return output


FORKING = """
    kind, way, gate = sys.argv[1:]
    with make_executor(kind, 2) as executor, open(gate + ".bars", "w") as file:
        futures = [executor.submit(jobs.step_until, gate) for _ in range(4)]
        for future in futures:
            future.add_tqdm_callback(init_kwargs={"file": file})
        if kind != "sync":
            until(lambda: futures[0].state["n"])
        if not (child := os.fork()):
            with make_executor(kind, 2) as own:  # it may have one of its own
                assert own.submit(jobs.count, 10).result() == 10
            if way == "Ctrl-C":
                def interrupt():
                    os.getpid = getpid
                    raise KeyboardInterrupt
                getpid, os.getpid = os.getpid, interrupt  # as the executor asks whose it is
                try:
                    executor.__exit__(None, None, None)
                except KeyboardInterrupt:
                    os._exit(4 if any(future.done() for future in futures) else 3)
                os._exit(5)
            if way == "os._exit":
                os._exit(3)
            sys.exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        assert not any(future.done() for future in futures)
        open(gate, "w").close()
        values = [future.result() for future in futures]
        assert [future.state["n"] for future in futures] == values
    print(open(gate + ".bars").read().count("\\n"))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("way", ["os._exit", "sys.exit", "Ctrl-C"])
@pytest.mark.parametrize("kind", ["thread", "fork", "sync"])  # a forked child cannot use its parent's fork server
def test_a_forked_child_leaves_the_executors_of_its_parent_alone(kind, way, tmp_path):
    # Forking beside threads is what CPython warns of.
    assert run(FORKING, kind, way, tmp_path / "gate", warnings=["-W", "ignore"]) == "4\n"


DROPPING = """
    import signal
    kind, way, gate = sys.argv[1:]
    def work(progress):
        try:
            jobs.say_and_wait(["here"], gate, progress)
        finally:
            open(gate + ".cleaned", "w").close()
    def print_state(old, new):
        print(new["status"], flush=True)
    def main():
        future = make_executor(kind, 2).submit(work)
        future.add_log_callback(print)
        future.add_progress_callback(print_state)
        until(lambda: future.state["n"])
        if way == "interrupted":
            signal.raise_signal(signal.SIGINT)
        threading.Timer(0.3, lambda: open(gate, "w").close()).start()
    try:
        main()
    except KeyboardInterrupt as error:
        sys.last_type = KeyboardInterrupt  # as if it had ended the program, which would print it
"""


@pytest.mark.parametrize("way", ["ends", "interrupted"])
@pytest.mark.parametrize("kind", ["thread", "fork"])
def test_a_program_that_has_dropped_its_executor_leaves_it_at_exit(kind, way, tmp_path):
    output = run(DROPPING, kind, way, tmp_path / "gate").splitlines()
    assert output[0] == "here" or output[1] == "here"
    assert output[-1] == ("done" if way == "ends" else "cancelled")
    assert (tmp_path / "gate.cleaned").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("kind", [*POOLS, "sync"])
def test_a_forked_child_is_told_that_it_cannot_submit_to_an_executor_of_its_parent(kind):
    output = run(
        """
        with make_executor(sys.argv[1], 2) as executor:
            assert executor.submit(jobs.count, 3).result() == 3
            if not (child := os.fork()):
                for submit in (executor.submit, executor.map):
                    try:
                        submit(jobs.add, [1])
                    except RuntimeError as error:
                        print(error, flush=True)
                os._exit(3)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
            assert executor.submit(jobs.count, 3).result() == 3
        """,
        kind,
        warnings=["-W", "ignore"],
    )
    assert output.count("a forked process cannot submit to an executor of its parent") == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_whatever_a_forked_child_does_to_a_running_task_of_its_parent_reaches_it_not(tmp_path):
    run(
        """
        gate, told = sys.argv[1], []
        with make_executor("process", 2) as executor:
            futures = [executor.submit(jobs.say_and_wait, [str(n)], gate) for n in range(3)]
            until(lambda: all(future.state["n"] for future in futures[:2]))
            if not (child := os.fork()):
                for future in futures:
                    future.add_log_callback(print)
                    future._task.pass_on()
                    assert future.state["n"] == (future is not futures[2])
                futures[0].cancel()
                futures[1].pause()
                futures[2].cancel()
                os._exit(3)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
            for future in futures:
                future.add_log_callback(told.append)
            open(gate, "w").close()
            for future in futures:
                future.result()
                assert future.state["status"] == "done"
        assert sorted(told) == ["0", "1", "2"]
        """,
        tmp_path / "gate",
        warnings=["-W", "ignore"],
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_can_read_a_state_whose_lock_another_thread_held(tmp_path):
    run(
        """
        import signal
        with make_executor("process", 2) as executor:
            future = executor.submit(jobs.step_until, sys.argv[1])
            until(lambda: future.state["n"])
            held, go = threading.Event(), threading.Event()
            def hold():
                with executor._monitor.lock:
                    held.set()
                    go.wait()
            threading.Thread(target=hold).start()
            held.wait()
            if not (child := os.fork()):
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(10)
                os._exit(3 if future.state["n"] else 4)
            go.set()
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            open(sys.argv[1], "w").close()
            assert status == 3, status
        """,
        tmp_path / "gate",
        warnings=["-W", "ignore"],
    )


@pytest.mark.parametrize("kind", [*POOLS, "sync"])
def test_a_program_may_end_with_its_loop_while_tasks_run(kind):
    run(
        """
        async def main():
            executor = make_executor(sys.argv[1], 2)
            futures = [executor.submit(jobs.count_slowly, 50, 0.01) for _ in range(4)]
            for future in futures:
                future.add_tqdm_callback(init_kwargs={"disable": True})
                asyncio.create_task(future.check_for_progress())
            await asyncio.sleep(0.05)
        asyncio.run(main(), debug=False)
        """,
        kind,
    )


@pytest.mark.parametrize("kind", POOLS)
def test_a_program_may_end_while_a_daemon_thread_uses_an_executor(kind):
    run(
        """
        def use():
            with make_executor(sys.argv[1], 2) as executor:
                future = executor.submit(jobs.count_slowly, 50, 0.01)
                submitted.set()
                future.result()
        submitted = threading.Event()
        threading.Thread(target=use, daemon=True).start()
        submitted.wait()
        """,
        kind,
    )


def _exit(progress):
    progress.update(3)
    sys.exit(5)


def test_sys_exit_in_a_task_is_what_the_task_raises_and_ends_nothing_else(executor, monkeypatch):
    if isinstance(executor, ProcessPoolExecutor):  # Dask's tblib, once imported, has all processes pickle it without `code`
        monkeypatch.delitem(copyreg.dispatch_table, SystemExit, raising=False)
    future = executor.submit(_exit)
    with pytest.raises(SystemExit) as caught:
        future.result()
    assert caught.value.code == 5
    assert future.state == {"n": 3, "total": None, "status": "failed"}
    assert executor.submit(jobs.count, 3).result() == 3


@pytest.mark.parametrize("kind", CONCURRENT)
def test_threads_that_outlive_their_task_change_nothing_any_more(kind, gate):
    with make_executor(kind, 1) as executor:
        future = executor.submit(jobs.leave_a_thread_writing, 42, gate)
        future.result()
        for _ in range(20):  # a process has three slots, which are used in turn
            following = executor.submit(jobs.count_slowly, 5, 0.001)
            following.result()
            assert following.state == {"n": 5, "total": 5, "status": "done"}
        assert future.state == {"n": 42, "total": 42, "status": "done"}
        open_gate(gate)


def _nested(kind, progress):
    with make_executor(kind, 2) as executor:
        futures = [executor.submit(jobs.count, n) for n in range(4)]
        return sum(future.result() for future in progress(futures))


@pytest.mark.parametrize("inner", POOLS)
def test_a_task_may_have_an_executor_of_any_kind(pool, inner):
    future = pool.submit(_nested, inner)
    assert future.result() == 6
    assert future.state == {"n": 4, "total": 4, "status": "done"}


def with_shm(mounted):
    """The command before one that is to see this file system as /dev/shm."""
    if (
        sys.platform != "linux"
        or not shutil.which("unshare")
        or subprocess.run(["unshare", "-m", "true"], stderr=subprocess.DEVNULL).returncode
    ):
        pytest.skip("mounting something else as /dev/shm takes Linux, and a privilege that this user does not have")
    return ["unshare", "-m", "sh", "-c", f'mount {mounted} /dev/shm && exec "$@"', "sh"]


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize(
    ("mounted", "error"),
    [("-t proc proc", "No such file or directory"), ("-t tmpfs -o nr_inodes=1 none", "No space left on device")],
    ids=["missing", "full"],
)
def test_a_process_pool_needs_no_dev_shm(mounted, error, method, tmp_path):
    output = run(
        """
        try:
            open("/dev/shm/file", "w")
        except OSError as error:
            print(error.strerror)
        with make_executor(sys.argv[1]) as executor:
            counted, said = executor.submit(jobs.count, 3), executor.submit(jobs.say, ["here"])
            said.add_log_callback(print)
            stopped = executor.submit(jobs.step_until, sys.argv[2])
            until(lambda: stopped.state["n"])
            stopped.cancel()
            print(counted.result(), counted.state)
        assert stopped.cancelled()
        """,
        method,
        tmp_path / "gate",
        before=with_shm(mounted),
    ).splitlines()
    assert output[0] == error
    assert sorted(output[1:]) == ["3 {'n': 3, 'total': 3, 'status': 'done'}", "here"]


def test_a_callback_that_ends_the_program_keeps_no_executor_from_telling_the_end():
    output = run(
        """
        def end(old, new):
            if new["status"] == "done":
                raise SystemExit(0)

        executors = [make_executor("thread", 1) for _ in range(4)]
        for number, executor in enumerate(executors):
            future = executor.submit(jobs.count, 3)
            if number % 2:
                future.add_progress_callback(end)
            future.add_progress_callback(lambda old, new: new["status"] == "done" and print("told", flush=True))
        """
    )
    assert output == 4 * "told\n"


def test_an_executor_that_cannot_be_left_keeps_no_other_from_telling_the_end():
    output = run(
        """
        import logging

        class Broken(ThreadPoolProgressExecutor):
            def shutdown(self, wait=True, *, cancel_futures=False):
                super().shutdown(wait, cancel_futures=cancel_futures)
                raise OSError("broken")

        logging.basicConfig(stream=sys.stdout)
        executors = [kind(1) for kind in (ThreadPoolProgressExecutor, Broken, ThreadPoolProgressExecutor)]
        for executor in executors:
            future = executor.submit(jobs.count, 3)
            future.add_progress_callback(lambda old, new: new["status"] == "done" and print("told", flush=True))
        """
    )
    assert output.count("told\n") == 3
    assert "could not be left at exit" in output


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_that_is_forked_beside_threads_that_add_callbacks_may_add_some():
    run(
        """
        sys.setswitchinterval(1e-5)
        stop = []

        def add():
            executor = make_executor("sync")
            while not stop:
                executor.submit(jobs.count, 3).add_progress_callback(print)
                executor._futures.clear()

        threads = [threading.Thread(target=add) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            if not os.fork():
                future = make_executor("sync").submit(jobs.count, 3)
                future.add_progress_callback(lambda old, new: None)
                os._exit(future.result())
            assert os.waitstatus_to_exitcode(os.wait()[1]) == 3
        stop.append(True)
        """,
        warnings=["-W", "ignore"],
    )
