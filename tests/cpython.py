"""CPython's own tests of `concurrent.futures`, with our executors and futures in the place of the standard library's.

`python -m tests.cpython` runs all of them, each module in an interpreter of its own, as CPython does; with the names of
modules, classes or tests (`test.test_concurrent_futures.test_wait`) it runs those in this one.
"""

import concurrent.futures
import contextlib
import importlib
import importlib.util
import pkgutil
import subprocess
import sys

PACKAGE = "test.test_concurrent_futures"
HANGS = 120
"""Seconds after which a test hangs; the longest takes seven."""

_ALONE = "what cannot be unpickled fails its own future, and the pool goes on"
_ONE_DEATH = "a worker that dies fails the one task that it ran, and the pool goes on"
_MANAGER = "waits for the one thread that manages a pool of the standard library, or for its queues"
_TRACEBACK = "the remote traceback is of multiprocessing's class, and not of a private one; WorkerDied has the exit code"
_OPERATION = "replaces a private method to see that it is called"

EXCLUDED = {
    "FutureTests.test_cancel": "cancel() reaches running tasks, and whoever waits for a pending one hears of it at once",
    **{
        f"ProcessPool{method}{test}": why
        for method in ("Fork", "Forkserver", "Spawn")
        for test, why in {
            "ExecutorDeadlockTest.test_error_at_task_unpickle": _ALONE,
            "ExecutorDeadlockTest.test_exit_at_task_unpickle": _ALONE,
            "ExecutorDeadlockTest.test_error_during_result_unpickle_in_result_handler": _ALONE,
            "ExecutorDeadlockTest.test_exit_during_result_unpickle_in_result_handler": _ALONE,
            "ExecutorDeadlockTest.test_shutdown_deadlock_pickle": _MANAGER,
            "ProcessPoolExecutorTest.test_failed_worker_replacement_breaks_pool": _MANAGER,
            "ProcessPoolExecutorTest.test_force_shutdown_during_max_tasks_worker_exit": _MANAGER,
            "ProcessPoolExecutorTest.test_gc_during_max_tasks_worker_exit_gh152967": _MANAGER,
            "ProcessPoolExecutorTest.test_kill_workers": _OPERATION,
            "ProcessPoolExecutorTest.test_killed_child": _ONE_DEATH,
            "ProcessPoolExecutorTest.test_python_finalization_error": "fails the start of a thread that we do not need",
            "ProcessPoolExecutorTest.test_shutdown_no_wait_max_tasks_gh119592": _MANAGER,
            "ProcessPoolExecutorTest.test_terminate_workers": _OPERATION,
            "ProcessPoolExecutorTest.test_traceback": _TRACEBACK,
            "ProcessPoolExecutorTest.test_traceback_when_child_process_terminates_abruptly": _TRACEBACK,
            "ProcessPoolShutdownTest.test_del_shutdown": _MANAGER,
            "ProcessPoolShutdownTest.test_shutdown_gh_132969_case_1": _MANAGER,
            "ProcessPoolShutdownTest.test_shutdown_gh_132969_case_2": _MANAGER,
            "ProcessPoolShutdownTest.test_shutdown_no_wait": _MANAGER,
        }.items()
    },
}
"""What must fail, by class and test (in which module they are depends on the version): where we promise something else."""

NOT_RUN = {
    f"ProcessPool{method}{test}": why
    for method in ("Fork", "Forkserver", "Spawn")
    for test, why in {
        "ProcessPoolExecutorTest.test_broken_process_pool_traceback": _ONE_DEATH + "; it would hang",
        "ProcessPoolShutdownTest.test_cancel_futures": "what has not begun is cancelled, and here mostly none has",
    }.items()
}
"""Likewise, but they cannot be seen to fail: one waits for what never comes, the other one passes at times."""


def modules() -> list[str]:
    """The names of CPython's test modules; none where the interpreter comes without them."""
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except ModuleNotFoundError:  # not even their parent
        spec = None
    if spec is None:
        return []
    folders = spec.submodule_search_locations
    if folders is None:  # 3.11 has them in one file
        return [PACKAGE]
    names = [module.name for module in pkgutil.iter_modules(folders) if module.name.startswith("test_")]
    return [f"{PACKAGE}.{name}" for name in names if name != "test_interpreter_pool"]


def replace_executors() -> None:
    """Give everybody who asks the standard library for an executor from now on one of ours."""
    from concurrent.futures import process, thread

    with contextlib.suppress(ImportError):  # from 3.14 on; it is a subclass of the standard library's
        importlib.import_module("concurrent.futures.interpreter")

    from progress_executor import ProcessPoolProgressExecutor, ThreadPoolProgressExecutor

    concurrent.futures.ThreadPoolExecutor = thread.ThreadPoolExecutor = ThreadPoolProgressExecutor
    concurrent.futures.ProcessPoolExecutor = process.ProcessPoolExecutor = ProcessPoolProgressExecutor
    for executor in (ThreadPoolProgressExecutor, ProcessPoolProgressExecutor):
        setattr(concurrent.futures, executor.__name__, executor)  # tests write programs that import it by its name


def load(names):
    """The tests that `names` name, but those of interpreters' pools; what they start sees our classes, too."""
    import unittest
    from unittest import mock

    from test.support import script_helper

    from progress_executor import ProgressFuture
    from progress_executor._monitor import Monitor
    from progress_executor._tasks import Task

    class Future(ProgressFuture):
        """One that belongs to no executor, under the name that the tests look for in its repr."""

        def __init__(self):
            super().__init__(Task(Monitor(), (int, (), {})))

    def assert_python_ok(option, program):
        begin = f"import sys; sys.path[:] = {sys.path}; from tests.cpython import replace_executors; replace_executors()\n"
        return original(option, begin + program)

    original, script_helper.assert_python_ok = script_helper.assert_python_ok, assert_python_ok
    replace_executors()
    # Only while the tests are imported: ours goes on being a subclass of the standard library's.
    with mock.patch("concurrent.futures._base.Future", Future):
        suite = unittest.defaultTestLoader.loadTestsFromNames(names)
    return unittest.TestSuite(test for test in tests_of(suite) if "Interpreter" not in type(test).__name__)


def tests_of(suite):
    """The single tests of a suite."""
    for test in suite:
        yield from tests_of(test) if hasattr(test, "__iter__") else [test]


def run_here(names) -> bool:
    """Whether the tests that `names` name pass and leave nothing behind, and the excluded ones among them fail."""
    import faulthandler
    import gc
    import threading
    import unittest

    from test import support

    def why_excluded(test, excluded=EXCLUDED):
        return excluded.get(".".join(test.id().split(".")[-2:]))

    class Result(unittest.TextTestResult):
        def startTest(self, test):  # noqa: N802
            if why_excluded(test):
                unittest.expectedFailure(test)
            if why_not := why_excluded(test, NOT_RUN):
                setattr(test, test._testMethodName, unittest.skip(why_not)(lambda: None))
            support.environment_altered = False
            faulthandler.dump_traceback_later(HANGS, exit=True)
            super().startTest(test)

        def stopTest(self, test):  # noqa: N802
            faulthandler.cancel_dump_traceback_later()
            if why_excluded(test):  # it has failed before it could shut down its executor
                gc.collect()
                for thread in set(threading.enumerate()) - {threading.main_thread()}:
                    thread.join(HANGS)
            elif support.environment_altered:
                self.failures.append((test, "It has left threads or processes behind."))
            super().stopTest(test)

    support.verbose = 0
    result = unittest.TextTestRunner(resultclass=Result).run(load(names))
    print(f"{result.testsRun} tests, {len(result.skipped)} skipped, {len(result.expectedFailures)} excluded")
    for test, _ in result.expectedFailures:
        print(f"    {test.id().removeprefix(PACKAGE + '.')}: {why_excluded(test)}")
    return result.wasSuccessful()


def run_all() -> bool:
    """Whether all modules pass. Two run at a time: they mostly sleep."""

    def run(module):
        return subprocess.run(
            [sys.executable, "-m", "tests.cpython", module], capture_output=True, encoding="utf-8", timeout=1200
        )

    passed = True
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        found = modules()
        for module, done in zip(found, executor.map(run, found), strict=True):
            print(f"{module}: {done.stdout}", end="", flush=True)
            if done.returncode:
                passed = False
                print(f"FAILED, status {done.returncode}\n{done.stderr}", flush=True)
    return passed


if __name__ == "__main__":
    if not modules():
        print(f"not run: this interpreter comes without {PACKAGE}")
    elif len(sys.argv) > 1:
        sys.exit(not run_here(sys.argv[1:]))
    else:
        sys.exit(not run_all())
