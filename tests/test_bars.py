"""The tqdm adapter."""

import concurrent.futures
import io
import re
import signal
import threading
from typing import ClassVar

import pytest
import tqdm

from progress_executor import ProgressGroup
from progress_executor._monitor import after_delivery

from . import jobs
from .conftest import open_gate, until


class RecordedBar:
    """Has what the adapter needs of a bar, and remembers what was done with it."""

    made: ClassVar = []

    def __init__(self, **kwargs):
        self.kwargs = kwargs
        self.n, self.total, self.postfix = 0, None, None
        self.shown = []
        self.closed = 0
        self.made.append(self)

    def set_postfix_str(self, text, refresh=True):
        assert not refresh
        self.postfix = text

    def refresh(self):
        self.shown.append((self.n, self.total, self.postfix))

    def close(self):
        self.closed += 1


@pytest.fixture
def bars(monkeypatch):
    monkeypatch.setattr(RecordedBar, "made", [])
    return RecordedBar.made


def test_a_bar_is_made_now_and_ends_with_the_final_state(executor, bars):
    future = executor.submit(jobs.count, 10)
    future.add_tqdm_callback(RecordedBar, {"desc": "ten"})
    assert len(bars) == 1
    future.result()
    (bar,) = bars
    assert bar.kwargs == {"desc": "ten"}
    assert bar.shown[-1] == (10, 10, "done")
    assert bar.closed == 1


def test_a_pending_bar_says_so(pool, bars, gate):
    for _ in range(5):
        pool.submit(jobs.wait_for, gate)
    pool.submit(jobs.count, 10).add_tqdm_callback(RecordedBar)
    assert bars[0].shown == [(0, None, "pending")]


def test_a_bar_is_made_when_the_task_runs(pool, bars, gate):
    blockers = [pool.submit(jobs.wait_for, gate) for _ in range(2)]
    future = pool.submit(jobs.count, 10)
    future.add_tqdm_callback(RecordedBar, triggers=["running"])
    assert not bars
    open_gate(gate)
    future.result()
    assert [blocker.result() for blocker in blockers] == ["waited"] * 2
    assert bars[0].shown[-1] == (10, 10, "done")


def test_a_cancelled_task_that_never_ran_has_a_bar_only_if_that_was_asked_for(local_pool, bars, gate):
    for _ in range(5):
        local_pool.submit(jobs.wait_for, gate)
    for triggers in (["running"], ["cancelled"], {"running", "cancelled"}, "cancelled"):
        future = local_pool.submit(jobs.count, 10)
        future.add_tqdm_callback(RecordedBar, triggers=triggers)
        future.cancel()
        assert future.cancelled()
        future._wait(None)
        assert len(bars) == (0 if triggers == ["running"] else 1)
        for bar in bars:
            assert bar.shown == [(0, None, "cancelled")]
            assert bar.closed == 1
        bars.clear()
    open_gate(gate)


def test_trigger_is_another_name_for_triggers(executor, bars):
    future = executor.submit(jobs.count, 1)
    future.add_tqdm_callback(RecordedBar, trigger={"running"})
    assert not bars
    future.result()
    assert len(bars) == 1


def test_the_status_is_the_postfix_on_one_line(pool, bars, gate):
    future = pool.submit(jobs.report_and_wait, 1, 2, "two\nlines", gate)
    future.add_tqdm_callback(RecordedBar)
    until(lambda: future.state["n"] == 1)
    other = pool.submit(jobs.count_slowly, 20, 0.02)
    other.result()
    assert (1, 2, "two lines") in bars[0].shown
    open_gate(gate)


def test_a_bar_that_cannot_be_made_now_is_the_callers_error(executor):
    future = executor.submit(jobs.count, 1)
    with pytest.raises(TypeError):
        future.add_tqdm_callback(RecordedBar, ["no mapping"])
    assert future.result() == 1


def test_a_bar_that_cannot_be_made_later_is_tried_once(executor, caplog):
    future = executor.submit(jobs.count_slowly, 30, 0.01)

    def broken(**kwargs):
        raise OSError("no screen")

    future.add_tqdm_callback(broken, triggers=["running"])
    assert future.result() == 30
    assert caplog.text.count("OSError: no screen") == 1


def test_bars_of_tqdm_show_the_final_state(executor):
    file = io.StringIO()
    future = executor.submit(jobs.count, 10)
    future.add_tqdm_callback(tqdm.tqdm, {"file": file, "desc": "ten"})
    future.result()
    assert file.getvalue().splitlines()[-1].split("\r")[-1].startswith("ten: 100%|")
    assert "10/10" in file.getvalue()
    assert "done" in file.getvalue()


def test_without_a_class_it_is_tqdms_own(executor, capsys):
    future = executor.submit(jobs.count, 10)
    future.add_tqdm_callback(init_kwargs={"desc": "ten"})
    future.result()
    assert "ten: 100%" in capsys.readouterr().err


def test_a_disabled_bar_is_left_alone(executor):
    future = executor.submit(jobs.count, 10)
    future.add_tqdm_callback(tqdm.tqdm, {"disable": True})
    assert future.result() == 10


def test_a_bar_with_a_delay_is_not_shown_before(executor):
    file = io.StringIO()
    future = executor.submit(jobs.count, 10)
    future.add_tqdm_callback(tqdm.tqdm, {"file": file, "delay": 1000})
    future.result()
    assert file.getvalue() == ""


def test_the_time_in_the_queue_does_not_count(pool, gate):
    clock = [1000.0]

    class Bar(tqdm.tqdm):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self._time = lambda: clock[0]
            self.start_t = self.last_print_t = clock[0]

    blockers = [pool.submit(jobs.step_until, gate) for _ in range(4)]
    made: ClassVar = []
    future = pool.submit(jobs.count_slowly, 30, 0.02)
    future.add_tqdm_callback(lambda **kwargs: made.append(Bar(**kwargs)) or made[0], {"file": io.StringIO()})
    clock[0] = 5000.0
    open_gate(gate)
    future.result()
    assert 4970 < made[0].start_t < 5000
    for blocker in blockers:
        blocker.result()


def test_a_tasks_own_status_does_not_end_its_bar(pool, bars, gate):
    future = pool.submit(jobs.report_and_wait, 1, 2, "done", gate)
    future.add_tqdm_callback(RecordedBar, triggers=["now"])
    until(lambda: future.state["n"] == 1)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    assert bars[0].shown[-1] == (1, 2, "done")
    assert not bars[0].closed
    open_gate(gate)
    future.result()
    assert bars[0].closed == 1


def test_arguments_are_taken_as_they_are_when_the_bar_is_asked_for(executor, bars):
    kwargs = {"desc": "first"}
    future = executor.submit(jobs.count, 1)
    future.add_tqdm_callback(RecordedBar, kwargs, triggers=["running"])
    kwargs["desc"] = "second"
    future.result()
    assert bars[0].kwargs == {"desc": "first"}


def test_a_file_that_is_no_terminal_and_does_not_say_so(executor):
    class File:
        def __init__(self):
            self.text = ""

        def write(self, text):
            self.text += text

    file = File()
    future = executor.submit(jobs.count, 10)
    future.add_tqdm_callback(tqdm.tqdm, {"file": file})
    future.result()
    assert "100%" in file.text


def test_control_characters_of_a_status_do_not_reach_the_screen(pool, bars, gate):
    future = pool.submit(jobs.report_and_wait, 1, 2, "\x1b[2Jred\x07\n", gate)
    future.add_tqdm_callback(RecordedBar)
    until(lambda: future.state["n"] == 1)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    assert bars[0].postfix == "[2Jred"
    open_gate(gate)
    future.result()


def test_bars_in_a_file_are_a_line_each_at_the_end_without_control_codes(executor):
    file = io.StringIO()
    futures = [executor.submit(jobs.count_slowly, 20, 0.01) for _ in range(3)]
    for number, future in enumerate(futures):
        future.add_tqdm_callback(tqdm.tqdm, {"file": file, "desc": f"bar {number}", "leave": None, "position": number})
    for future in futures:
        future.result()
    lines = file.getvalue().split("\n")
    assert lines.pop() == ""
    assert sorted(line.split(":")[0] for line in lines) == ["bar 0", "bar 1", "bar 2"]
    assert all("20/20" in line for line in lines)
    assert "\x1b" not in file.getvalue()


def test_a_bar_in_a_file_that_is_not_to_be_left_leaves_no_line(executor):
    file = io.StringIO()
    future = executor.submit(jobs.count, 3)
    future.add_tqdm_callback(tqdm.tqdm, {"file": file, "leave": False})
    future.result()
    assert file.getvalue() == ""


def test_a_bar_in_a_file_is_made_without_control_codes_beside_others(executor):
    file, other = io.StringIO(), io.StringIO()
    with tqdm.tqdm(file=other), tqdm.tqdm(file=other):
        future = executor.submit(jobs.count, 3)
        future.add_tqdm_callback(tqdm.tqdm, {"file": file})
        future.result()
    assert "\x1b" not in file.getvalue()
    assert file.getvalue().count("\n") == 1


def test_no_time_passes_for_a_pending_bar(pool, gate):
    for _ in range(4):
        pool.submit(jobs.wait_for, gate)
    made = []
    future = pool.submit(jobs.count, 3)
    future.add_tqdm_callback(lambda **kwargs: made.append(tqdm.tqdm(**kwargs)) or made[0], {"file": io.StringIO()})
    assert made[0].format_dict["elapsed"] == 0
    open_gate(gate)
    future.result()
    assert made[0].format_dict["elapsed"] > 0


def test_a_bars_clock_moves_although_nothing_is_reported(pool, bars, gate, monkeypatch):
    import progress_executor._bars

    monkeypatch.setattr(progress_executor._bars, "_CLOCK", 0.05)
    future = pool.submit(jobs.report_and_wait, 1, 2, "", gate)
    future.add_tqdm_callback(RecordedBar)
    until(lambda: future.state["n"] == 1)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.35)
    assert bars[0].shown.count((1, 2, "running")) > 1
    open_gate(gate)
    future.result()


def test_mininterval_is_kept(pool, bars, monkeypatch):
    monkeypatch.setattr("progress_executor._bars._CLOCK", 0.001)
    future = pool.submit(jobs.count_slowly, 50, 0.01)
    future.add_tqdm_callback(RecordedBar)
    bars[0].mininterval = 1000
    future.result()
    assert len(bars[0].shown) == 2
    assert bars[0].shown[-1] == (50, 50, "done")


def test_a_bar_is_drawn_at_once_on_a_machine_that_was_just_started(pool, bars, monkeypatch):
    import progress_executor._bars

    monkeypatch.setattr(progress_executor._bars, "monotonic", lambda: 0.1)
    future = pool.submit(jobs.count_slowly, 50, 0.01)
    future.add_tqdm_callback(RecordedBar)
    bars[0].mininterval = 0.15
    future.result()
    assert len(bars[0].shown) == 2


def test_a_tasks_time_ends_with_it_however_late_its_bar_is_drawn_or_made(pool, monkeypatch):
    future = pool.submit(jobs.count, 3)
    other = pool.submit(jobs.count, 3)
    made = []

    def make(**kwargs):
        made.append(tqdm.tqdm(file=io.StringIO(), **kwargs))
        return made[-1]

    future.add_tqdm_callback(make)
    until(lambda: future.done() and other.done())
    now = tqdm.std.time
    monkeypatch.setattr("tqdm.std.time", lambda: now() + 1000)
    monkeypatch.setattr("progress_executor._bars.time", lambda: now() + 1000)
    made[0]._time = tqdm.std.time  # it looked up the clock when it was made
    other.add_tqdm_callback(make)
    ProgressGroup([future, other]).add_tqdm_callback(make)
    future.result()
    other.result()
    pool._monitor.poll()
    assert len(made) == 3
    assert all(0 < bar.format_dict["elapsed"] < 500 for bar in made)


def test_a_bar_keeps_its_own_total_until_the_task_tells_one(executor):
    file = io.StringIO()
    first, second = executor.submit(jobs.advance, 7), executor.submit(jobs.count, 7)
    for future in (first, second):
        future.add_tqdm_callback(tqdm.tqdm, {"file": file, "total": 20, "initial": 5})
    first.result()
    second.result()
    assert "| 7/20 [" in file.getvalue()
    assert "| 7/7 [" in file.getvalue()
    assert "-" not in file.getvalue()


def test_bars_of_a_thread_that_has_ended_are_live_in_whichever_waits(pool, bars):
    def submit():
        futures.append(pool.submit(jobs.count_slowly, 20, 0.01))
        futures[0].add_tqdm_callback(RecordedBar)

    futures = []
    thread = threading.Thread(target=submit)
    thread.start()
    thread.join()
    pool.submit(jobs.count_slowly, 50, 0.01).result()
    assert len({n for n, _, _ in bars[0].shown}) > 2
    assert bars[0].closed


def test_ctrl_c_while_a_bar_is_made_leaves_none_that_nobody_closes(executor):
    made = []

    def make():
        made.append(RecordedBar())
        signal.raise_signal(signal.SIGINT)
        return made[0]

    future = executor.submit(jobs.count, 3)
    with pytest.raises(KeyboardInterrupt):
        future.add_tqdm_callback(make)
    future.result()
    assert made[0].closed == 1


def test_what_is_to_be_drawn_is_drawn_the_next_time_if_ctrl_c_came_in_between():
    calls = []

    def draw():
        calls.append("draw")
        if len(calls) == 1:
            raise KeyboardInterrupt

    after_delivery.add(draw)
    with pytest.raises(KeyboardInterrupt):
        after_delivery.run()
    after_delivery.run()
    after_delivery.run()
    assert calls == ["draw"] * 2


class FakeTerminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_that_cannot_be_drawn_or_closed_harms_no_other(executor, caplog):
    class Broken(tqdm.tqdm):
        broken = False

        @property
        def format_dict(self):
            if self.broken:
                raise OSError("no numbers")
            return super().format_dict

    screen, made = FakeTerminal(), []

    def make(**kwargs):
        made.append(Broken(file=screen, **kwargs))
        return made[-1]

    futures = [executor.submit(jobs.count_slowly, 5, 0.01) for _ in range(3)]
    for number, future in enumerate(futures):
        future.add_tqdm_callback(make, {"desc": f"bar{number}"})
    made[0].broken = True
    for future in futures:
        future.result()
    assert "no numbers" in caplog.text
    assert all(bar.disable for bar in made)
    assert screen.getvalue().count("5/5") >= 2


def test_where_all_bars_are_hidden_they_appear_when_the_users_bar_is_closed(pool, gate):
    screen = FakeTerminal()
    users = tqdm.tqdm(file=screen, desc="user")
    future = pool.submit(jobs.step_until, gate)
    future.add_tqdm_callback(init_kwargs={"file": screen, "desc": "task", "nrows": 2})
    wait_until(future, lambda: future.state["n"])
    assert "task" not in screen.getvalue()
    users.close()
    wait_until(future, lambda: "task" in screen.getvalue())
    open_gate(gate)
    future.result()


def wait_until(future, condition):
    """Deliver until it holds."""

    def look():
        concurrent.futures.wait([future], timeout=0.01)
        return condition()

    until(look)


def test_a_line_of_wide_characters_is_cut_to_the_columns_of_the_terminal(executor):
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 40))
    with open(ours, "rb", buffering=0) as screen, open(theirs, "w") as terminal:
        future = executor.submit(jobs.count, 3)
        look = {"file": terminal, "desc": 25 * "\u9032", "bar_format": "{desc}", "ncols": 60, "delay": 1e-9}
        future.add_tqdm_callback(init_kwargs=look)  # with a delay tqdm itself draws nothing
        future.result()
        terminal.write("the end")
        terminal.flush()
        columns, _ = tqdm.utils._screen_shape_wrapper()(terminal)  # newer tqdm leaves the last one free
        text = b""
        while not text.endswith(b"the end"):
            text += screen.read(1 << 16)
    drawn = re.findall("\u9032+", text.decode())
    assert set(drawn) == {columns // 2 * "\u9032"}


def test_bars_on_a_standard_error_that_is_no_terminal_write_no_control_codes(executor, capsys):
    with tqdm.tqdm(desc="user"):
        futures = [executor.submit(jobs.count, 3) for _ in range(3)]
        for future in futures:
            future.add_tqdm_callback()
        for future in futures:
            future.result()
    assert "\x1b" not in capsys.readouterr().err


def test_a_bar_of_ones_own_needs_no_total(executor):
    class Bar:
        shown = 0

        def set_postfix_str(self, text, refresh):
            pass

        def refresh(self):
            self.shown += 1

        def close(self):
            pass

    bar = Bar()
    future = executor.submit(jobs.count, 3)
    future.add_tqdm_callback(lambda: bar)
    future.result()
    assert bar.shown
    assert (bar.n, bar.total) == (3, 3)
