"""The programs in the examples folder do what their first lines promise."""

import asyncio
import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import progress_executor
from progress_executor._monitor import _loop_pollers

from .conftest import DEADLINE, LOCAL
from .terminal import Terminal
from .test_asyncio import until_async

EXAMPLES = Path(__file__).parents[1] / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(progress_executor.__file__).parents[1])}
VALUES = [30, 40, 35, 60, 20, 50, 38, 27]

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not next to the tests")


def watch_many(*arguments):
    return [sys.executable, "-W", "error", str(EXAMPLES / "watch_many.py"), "--scale", "0.02", *arguments]


def results(*arguments):
    done = subprocess.run(watch_many(*arguments), capture_output=True, encoding="utf-8", env=ENVIRONMENT, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("kind", LOCAL)
def test_watch_many_prints_the_value_of_each_task(kind):
    assert results(kind) == [f"task {i} of {value}: {value}" for i, value in enumerate(VALUES)]


@pytest.mark.parametrize("kind", LOCAL)
def test_watch_many_with_cancel_reports_the_first_task_as_cancelled(kind):
    first, *others = results(kind, "--cancel")
    assert first == "task 0 of 30: cancelled"
    assert len(others) == len(VALUES) - 1
    for i, (line, value) in enumerate(zip(others, VALUES[1:], strict=True), start=1):
        assert line in (f"task {i} of {value}: {value}", f"task {i} of {value}: cancelled")


@pytest.mark.parametrize("kind", LOCAL)
def test_watch_many_draws_live_bars_and_leaves_one_per_task_with_the_results_below(kind):
    with Terminal(watch_many(kind), env=ENVIRONMENT) as screen:
        screen.wait_for(lambda screen: re.search(r"^task \d: +[1-9]\d?%\|.*running", screen.text, re.MULTILINE))
        assert screen.finish() == 0
    bars, lines = screen.lines[: len(VALUES)], screen.lines[len(VALUES) : 2 * len(VALUES)]
    assert sorted(re.sub(r"\|.*\| (.*) \[.*, (\w+)\]$", r" \1 \2", bar) for bar in bars) == [
        f"task {i}: 100% {2 * value}/{2 * value} done" for i, value in enumerate(VALUES)
    ], screen.text
    assert lines == [f"task {i} of {value}: {value}" for i, value in enumerate(VALUES)], screen.text


# The web server

needs_aiohttp = pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="aiohttp is not installed")
SERVER = EXAMPLES / "serve_states.py"


class Server:
    """The running program, and a client of it."""

    def __init__(self, process):
        self._process = process
        self.address = process.stdout.readline().strip()
        assert self.address.startswith("http://127.0.0.1:")

    def _asked(self, method, path):
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"), timeout=DEADLINE)
        connection.request(method, path)
        return connection, connection.getresponse()

    def ask(self, method, path):
        connection, response = self._asked(method, path)
        with closing(connection):
            return response.status, response.read().decode()

    def events(self, path):
        """The states that are streamed; it must end as the page needs it to."""
        connection, response = self._asked("GET", path)
        with closing(connection):
            assert (response.status, response.getheader("Content-Type")) == (200, "text/event-stream")
            while (line := response.readline()).startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))
                assert response.readline() == b"\n"
            assert (line, response.read()) == (b"event: end\n", b"data:\n\n")

    def interrupt(self):
        self._process.send_signal(signal.SIGINT)
        out, err = self._process.communicate(timeout=DEADLINE)
        assert (self._process.returncode, out, err) == (0, "", "")


@pytest.fixture
def server():
    command = [sys.executable, "-W", "error", str(SERVER), "--port", "0", "--workers", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen(command, env=ENVIRONMENT, **pipes) as process:
        try:
            yield Server(process)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
                process.wait(DEADLINE)


@needs_aiohttp
def test_serve_states_streams_the_states_of_a_task_in_order_to_the_end(server):
    assert server.ask("POST", "/tasks?steps=10") == (201, "/tasks/1")
    states = list(server.events("/tasks/1"))
    assert states[-1] == {"n": 10, "total": 10, "status": "done"}
    assert len(states) > 2
    assert [state["n"] for state in states] == sorted(state["n"] for state in states)
    assert list(server.events("/tasks/1")) == states[-1:]
    server.interrupt()


@needs_aiohttp
def test_serve_states_cancels_a_task_and_its_streams_end(server):
    assert server.ask("POST", "/tasks?steps=100000") == (201, "/tasks/1")
    streams = [server.events("/tasks/1") for _ in range(2)]
    for stream in streams:
        next(state for state in stream if state["n"])
    assert server.ask("DELETE", "/tasks/1") == (204, "")
    for stream in streams:
        assert list(stream)[-1]["status"] == "cancelled"
    server.interrupt()


@needs_aiohttp
def test_serve_states_ends_on_ctrl_c_while_it_streams(server):
    server.ask("POST", "/tasks?steps=100000")
    stream = server.events("/tasks/1")
    next(state for state in stream if state["n"])
    server.interrupt()
    assert list(stream)[-1]["status"] == "cancelled"


@needs_aiohttp
def test_serve_states_has_a_page_and_refuses_what_it_does_not_know(server):
    status, page = server.ask("GET", "/")
    assert status == 200
    assert "EventSource" in page
    assert server.ask("POST", "/tasks?steps=many")[0] == 400
    assert server.ask("POST", "/tasks")[0] == 400
    for method in ("GET", "DELETE"):
        for number in ("0", "1", "x"):
            assert server.ask(method, f"/tasks/{number}")[0] == 404


@needs_aiohttp
def test_a_client_that_disconnects_leaves_the_task_running_and_nothing_behind(monkeypatch):
    from aiohttp import ClientSession, web

    monkeypatch.syspath_prepend(EXAMPLES)  # the worker has to find it, too
    example = importlib.import_module(SERVER.stem)

    async def main():
        loop = asyncio.get_running_loop()
        app = example.make_app(1)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            futures = []
            executor = app[example.EXECUTOR]
            submit = executor.submit
            executor.submit = lambda *args: futures.append(submit(*args)) or futures[0]
            async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
                async with client.post("/tasks?steps=100000") as response:
                    path = await response.text()
                async with client.get(path) as response:
                    while not json.loads((await response.content.readline()).removeprefix(b"data: "))["n"]:
                        assert await response.content.readline() == b"\n"
                    response.close()
                (future,) = futures
                await until_async(lambda: not future._waiters and loop not in _loop_pollers)
                n = future.state["n"]
                await until_async(lambda: future.state["n"] > n)
                assert not future.cancel_requested()
                assert not future._done_callbacks
        finally:
            await runner.cleanup()
        assert future.cancelled()

    asyncio.run(main())


def test_the_executor_on_loky_shows_stops_and_leaves_nothing(tmp_path):
    pytest.importorskip("loky")
    command = [sys.executable, str(EXAMPLES / "loky_executor.py")]
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=2 * DEADLINE)
    assert done.returncode == 0, done.stderr
    values, state = done.stdout.splitlines()
    assert values == "50 80"
    assert re.fullmatch(r"\{'n': \d+, 'total': 10000, 'status': 'cancelled'\}", state)
    assert re.search(r"^50 steps$", done.stderr, re.MULTILINE)
    assert re.search(r"100%.*50/50 .*done\]", done.stderr)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith("joblib")]


def test_the_metrics_page_has_the_steps_and_ends_of_all_tasks():
    command = [sys.executable, str(EXAMPLES / "metrics.py"), "0"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=ENVIRONMENT
    ) as process:
        address = re.fullmatch(r"http://(127\.0\.0\.1):(\d+)/metrics\n", process.stdout.readline())
        assert process.stdout.readline() == "Enter ends it\n"
        with closing(http.client.HTTPConnection(address[1], int(address[2]), timeout=DEADLINE)) as connection:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        process.communicate("\n")
    counts = dict(line.rsplit(" ", 1) for line in lines)
    assert counts["steps_total"] == "150"
    assert counts['tasks_total{status="done"}'] == "3"
    assert float(counts["seconds_total"]) > 1.5
