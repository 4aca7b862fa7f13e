"""CPython's own tests of `concurrent.futures`, with our executors and futures in the place of the standard library's.

`python -m tests.cpython` runs all of them, each module in an interpreter of its own, as CPython does; with the names of
modules, classes or tests (`test.test_concurrent_futures.test_wait`) it runs those in this one.
"""

import concurrent.futures
import importlib.util
import pkgutil
import subprocess
import sys

PACKAGE = "test.test_concurrent_futures"
HANGS = 120
"""Seconds after which a test hangs; the longest takes seven."""

EXCLUDED = {
    "FutureTests.test_cancel": "cancel() reaches running tasks, and whoever waits for a pending one hears of it at once",
    **{
        f"ProcessPool{method}ExecutorDeadlockTest.{test}": "a call that cannot be unpickled fails alone, the pool goes on"
        for method in ("Fork", "Forkserver", "Spawn")
        for test in ("test_error_at_task_unpickle", "test_exit_at_task_unpickle")
    },
}
"""What must fail, by class and test (in which module they are depends on the version): where we promise something else."""


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
    return [f"{PACKAGE}.{module.name}" for module in pkgutil.iter_modules(folders) if module.name.startswith("test_")]


def replace_executors() -> None:
    """Give everybody who asks the standard library for an executor from now on one of ours."""
    from concurrent.futures import process, thread

    from progress_executor import ProcessPoolProgressExecutor, ThreadPoolProgressExecutor

    concurrent.futures.ThreadPoolExecutor = thread.ThreadPoolExecutor = ThreadPoolProgressExecutor
    concurrent.futures.ProcessPoolExecutor = process.ProcessPoolExecutor = ProcessPoolProgressExecutor
    for executor in (ThreadPoolProgressExecutor, ProcessPoolProgressExecutor):
        setattr(concurrent.futures, executor.__name__, executor)  # tests write programs that import it by its name


def load(names):
    """The tests that `names` name; they see our classes, and so do the programs that they start."""
    import unittest
    from unittest import mock

    from test.support import script_helper

    from progress_executor import ProgressFuture
    from progress_executor.delivery import Board
    from progress_executor.tasks import Task

    class Future(ProgressFuture):
        """One that belongs to no executor, under the name that the tests look for in its repr."""

        def __init__(self):
            super().__init__()
            self._adopt(self, Task(Board(), (int, (), {})))

    def assert_python_ok(option, program):
        begin = f"import sys; sys.path[:] = {sys.path}; from tests.cpython import replace_executors; replace_executors()\n"
        return original(option, begin + program)

    original, script_helper.assert_python_ok = script_helper.assert_python_ok, assert_python_ok
    replace_executors()
    # Only while the tests are imported: the pools go on making plain futures, which become ours in their queues.
    with mock.patch("concurrent.futures._base.Future", Future):
        return unittest.defaultTestLoader.loadTestsFromNames(names)


def run_here(names) -> bool:
    """Whether the tests that `names` name pass and leave nothing behind, and the excluded ones among them fail."""
    import faulthandler
    import gc
    import threading
    import unittest

    from test import support

    def why_excluded(test):
        return EXCLUDED.get(".".join(test.id().split(".")[-2:]))

    class Result(unittest.TextTestResult):
        def startTest(self, test):  # noqa: N802
            if why_excluded(test):
                unittest.expectedFailure(test)
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
        return subprocess.run([sys.executable, "-m", "tests.cpython", module], capture_output=True, encoding="utf-8")

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
