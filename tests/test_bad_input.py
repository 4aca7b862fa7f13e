"""Mistakes of the caller: a clear error where they are made, and nothing lost but the task that they concern."""

import concurrent.futures
import pickle

import pytest

from progress_executor import ProcessPoolProgressExecutor, SyncProgressExecutor, Updater

from . import jobs
from .conftest import KINDS, make_executor, until


@pytest.mark.parametrize("fn", [None, 3, "len"])
def test_submit_of_something_not_callable(executor, fn):
    with pytest.raises(TypeError, match="callable"):
        executor.submit(fn)
    assert executor.submit(jobs.add, 1).result() == 2


@pytest.mark.parametrize("kind", KINDS)
def test_submit_after_shutdown(kind):
    executor = make_executor(kind)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(jobs.add, 1)


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        (lambda: None, (pickle.PicklingError, AttributeError)),
        (jobs.IndexErrorWhenPickled(), pickle.PicklingError),
        (jobs.BrokenPipeWhenPickled(), pickle.PicklingError),
        (jobs.FailsWhenUnpickled(), ValueError),
    ],
    ids=["unpicklable", "IndexError", "EPIPE", "fails in the worker"],
)
def test_an_argument_that_cannot_be_pickled_fails_its_own_future_alone(argument, error):
    with ProcessPoolProgressExecutor(1) as executor:
        for _ in range(20):
            future = executor.submit(jobs.add, argument)
            with pytest.raises(error):
                future.result(timeout=30)
            assert future.state["status"] == "failed"
        assert executor.submit(jobs.count, 3).result() == 3


def test_a_result_that_cannot_be_pickled_fails_its_own_future_alone():
    with ProcessPoolProgressExecutor(1) as executor:
        for _ in range(20):
            future = executor.submit(jobs.Worker.static, n=1, progress=None)
            with pytest.raises(TypeError):
                future.result(timeout=30)
            with pytest.raises((pickle.PicklingError, AttributeError)):
                executor.submit(return_a_lambda).result(timeout=30)
        assert executor.submit(jobs.count, 3).result() == 3


def return_a_lambda():
    return lambda: None


class RaisesWhenPickled:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


@pytest.mark.parametrize("error", [IndexError, BrokenPipeError, KeyboardInterrupt, SystemExit])
def test_whatever_the_pickling_of_a_result_raises_fails_its_own_future_alone(error):
    with ProcessPoolProgressExecutor(1) as executor:
        for _ in range(5):
            future = executor.submit(RaisesWhenPickled, error("on purpose"))
            with pytest.raises(error):
                future.result(timeout=30)
            assert future.state["status"] == "failed"
        assert executor.submit(jobs.count, 3).result() == 3


def test_an_updater_cannot_be_sent_to_a_process():
    with ProcessPoolProgressExecutor(1) as executor:
        with pytest.raises(TypeError, match="cannot be pickled"):
            executor.submit(jobs.count, 3, progress=Updater()).result(timeout=30)
        assert executor.submit(jobs.count, 3).result() == 3


def test_an_updater_cannot_be_returned_from_a_process():
    with ProcessPoolProgressExecutor(1) as executor, pytest.raises(TypeError, match="cannot be pickled"):
        executor.submit(return_progress).result(timeout=30)


def return_progress(progress):
    return progress


@pytest.mark.parametrize("fn", [None, 3, "callback"])
def test_a_callback_that_is_not_callable(executor, fn):
    future = executor.submit(jobs.add, 1)
    with pytest.raises(TypeError, match="must be callable"):
        future.add_progress_callback(fn)
    assert future.result() == 2


@pytest.mark.parametrize("interval", [0, -1, float("nan")])
def test_an_interval_that_is_not_positive(executor, interval):
    future = executor.submit(jobs.add, 1)
    with pytest.raises(ValueError, match="positive"):
        future.check_for_progress(interval)
    with pytest.raises(ValueError, match="positive"):
        future.check_for_progress(interval=interval)


def test_an_unknown_trigger_names_the_known_ones(executor):
    future = executor.submit(jobs.add, 1)
    with pytest.raises(ValueError, match=r"'later'.*'now', 'running' or 'cancelled'"):
        future.add_tqdm_callback(triggers=["now", "later"])


def test_triggers_under_two_names(executor):
    future = executor.submit(jobs.add, 1)
    with pytest.raises(TypeError, match="another name"):
        future.add_tqdm_callback(triggers=["now"], trigger=["now"])


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("n", float("nan"), ValueError), ("total", -1, ValueError), ("total", "many", TypeError), ("status", 3, TypeError)],
)
def test_a_mistake_in_the_task_is_the_tasks_error(executor, name, value, error):
    future = executor.submit(assign, name, value)
    with pytest.raises(error, match=name):
        future.result()
    assert future.state["n"] == 1


def assign(name, value, progress):
    progress.update()
    setattr(progress, name, value)


def test_a_very_long_status_arrives_cut(executor):
    future = executor.submit(jobs.report_and_wait, 0, None, "ä" * 1000 + "\ud800", "/")
    texts = []
    future.add_progress_callback(lambda old, new: texts.append(new["status"]))
    future.result()
    assert all(text in ("running", "done", "ä" * 128) for text in texts)


def test_process_pool_arguments_are_checked_as_in_the_standard_library():
    with pytest.raises(TypeError, match="initializer must be a callable"):
        ProcessPoolProgressExecutor(initializer=3)
    with pytest.raises(ValueError, match="max_workers"):
        ProcessPoolProgressExecutor(0)
    with pytest.raises(ValueError, match="chunksize"), ProcessPoolProgressExecutor(1) as executor:
        executor.map(jobs.count, [1], chunksize=0)


def test_the_standard_librarys_cancelled_error_is_what_result_raises(executor, gate):
    future = executor.submit(jobs.step_until, gate)
    if not isinstance(executor, SyncProgressExecutor):  # there it runs in `result()` only
        until(lambda: future.state["n"])
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    assert future.cancelled()


def test_an_argument_whose_pickling_raises_no_exception_but_worse_fails_alone():
    with ProcessPoolProgressExecutor(1) as executor:
        with pytest.raises(pickle.PicklingError, match="KeyboardInterrupt"):
            executor.submit(jobs.add, jobs.InterruptsWhenPickled()).result(timeout=30)
        assert executor.submit(jobs.count, 3).result(timeout=30) == 3


@pytest.mark.parametrize("attribute", ["__signature__", "__hash__"])
def test_a_callable_that_does_not_tell_its_signature_is_called_without_progress(executor, attribute):
    assert executor.submit(jobs.Secretive(attribute), 3).result(timeout=30) == 3


def test_a_mock_can_be_submitted():
    from unittest.mock import Mock

    with make_executor("thread") as executor:
        assert executor.submit(Mock(return_value=3)).result() == 3


def test_an_iterable_and_an_amount():
    with pytest.raises(TypeError, match="not both"):
        Updater()([1], amount=2)
