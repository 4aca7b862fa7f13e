"""The rich adapter."""

import io

import pytest

from . import jobs
from .conftest import DEADLINE, open_gate, until

rich_progress = pytest.importorskip("rich.progress")
console = pytest.importorskip("rich.console")


@pytest.fixture
def progress():
    """A Progress that is drawn by nobody but by us."""
    screen = console.Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    columns = ["{task.description}", rich_progress.MofNCompleteColumn(), "{task.fields[status]}"]
    return rich_progress.Progress(*columns, console=screen, auto_refresh=False)


def text(progress):
    progress.console.file.seek(0)
    progress.console.file.truncate()
    progress.console.print(progress.get_renderable())
    return [line.split() for line in progress.console.file.getvalue().splitlines() if line.strip()]


def test_each_future_has_a_row_that_ends_with_its_final_state(executor, progress):
    futures = [executor.submit(jobs.count, n) for n in (3, 4)]
    for future in futures:
        future.add_rich_callback(progress, description="counting")
    for future in futures:
        future.result()
    assert text(progress) == [["counting", "3/3", "done"], ["counting", "4/4", "done"]]
    assert progress.finished


def test_a_pending_row_does_not_run(pool, progress, gate):
    blockers = [pool.submit(jobs.wait_for, gate) for _ in range(4)]
    future = pool.submit(jobs.count, 3)
    future.add_rich_callback(progress, description="later")
    (row,) = progress.tasks
    assert not row.started
    assert text(progress) == [["later", "0/?", "pending"]]
    open_gate(gate)
    future.result()
    for blocker in blockers:
        blocker.result()
    assert progress.tasks[0].started


def test_the_clock_counts_from_the_start_of_the_task(pool, progress, gate):
    future = pool.submit(jobs.report_and_wait, 1, 2, "", gate)
    until(lambda: future.state["n"] == 1)
    clock = [0.0]
    progress.get_time = lambda: clock[0]
    future.add_rich_callback(progress)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    assert -DEADLINE < progress.tasks[0].start_time < 0
    open_gate(gate)
    future.result()


def test_a_failed_task_stays_where_it_stopped_and_its_clock_stands_still(executor, progress):
    future = executor.submit(jobs.count_then_fail, 4)
    future.add_rich_callback(progress, description="failing")
    future.exception()
    assert text(progress)[0][1:] == ["4/4", "failed"]
    assert progress.tasks[0].stop_time is not None


def test_a_task_without_a_total_is_full_when_it_is_done(executor, progress):
    future = executor.submit(jobs.set_all, 7, None, "")
    future.add_rich_callback(progress)
    future.result()
    assert text(progress) == [["7/7", "done"]]


def test_fields_reach_the_row(executor, progress):
    future = executor.submit(jobs.count, 1)
    future.add_rich_callback(progress, description="d", visible=False, colour="red")
    assert progress.tasks[0].fields["colour"] == "red"
    assert not progress.tasks[0].visible
    future.result()


def test_a_row_that_the_user_has_removed_is_forgotten(executor, progress, caplog):
    future = executor.submit(jobs.count, 3)
    future.add_rich_callback(progress)
    progress.remove_task(progress.task_ids[0])
    assert future.result() == 3
    assert not caplog.records


def test_a_group_has_a_row(executor, progress):
    from progress_executor import ProgressGroup

    group = ProgressGroup([executor.submit(jobs.count, n) for n in (3, 4)])
    group.add_rich_callback(progress, description="all")
    group.result()
    assert text(progress) == [["all", "7/7", "2", "done"]]


def test_a_total_that_changes_keeps_the_speed_and_one_that_gets_unknown_is_unknown(pool, progress, gate):
    totals = [10, 11, 12, 13, 14, 15, None, 16]
    future = pool.submit(jobs.follow, False, [(number + 1, total) for number, total in enumerate(totals)], gate)
    future.add_rich_callback(progress)
    for number, total in enumerate(totals[:-1]):
        until(lambda number=number: future.state["n"] == number + 1)
        with pytest.raises(TimeoutError):
            future.result(timeout=0.11)
        (row,) = progress.tasks
        assert (row.completed, row.total) == (number + 1, total)
        open_gate(f"{gate}{number}")
    assert row.speed
    future.result()


def test_a_row_of_a_task_that_told_no_total_comes_to_its_end_whatever_that_is(executor, progress):
    future = executor.submit(jobs.fail_after, 3)
    future.add_rich_callback(progress)
    future.exception()
    assert progress.finished
    assert progress.tasks[0].total == 3


def test_a_status_is_on_one_line_from_the_beginning(pool, progress, gate):
    future = pool.submit(jobs.report_and_wait, 1, 2, "two\nlines", gate)
    until(lambda: future.state["n"] == 1)
    future.add_rich_callback(progress)
    assert progress.tasks[0].fields["status"] == "two lines"
    open_gate(gate)
    future.result()
