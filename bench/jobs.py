"""What the benchmarks submit: in a module of its own, so that a spawned worker need not import more than this."""

import os
import random
import threading
import time
from asyncio import CancelledError
from typing import Any


def nothing() -> None:
    pass


def nothing_for(_: Any) -> None:
    """The same for a `map`."""


def who(seconds: float) -> tuple[int, int]:
    """The process and the thread that ran it; takes so long that others are needed."""
    time.sleep(seconds)
    return os.getpid(), threading.get_ident()


def millisecond() -> None:
    """A millisecond of computing."""
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass


def same(value: Any) -> Any:
    return value


def notice(progress: Any) -> float:
    """Steps of 1 ms until it is cancelled; returns when it noticed.

    The monotonic clock is the machine's on the systems that we support, so another process may subtract.
    """
    try:
        for _ in progress(range(10_000)):
            time.sleep(0.001)
    except CancelledError:
        pass
    return time.monotonic()


def write(count: int, seed: int, progress: Any) -> None:
    """Write the time `count` times, at moments that have nothing to do with the interval of those who look."""
    chance = random.Random(seed)
    for _ in range(count):
        time.sleep(chance.uniform(0.25, 0.35))  # apart by more than two intervals: a cluster samples twice
        progress.n = time.monotonic()
    time.sleep(0.25)  # or the last one may be told with the end


def work(steps: int, progress: Any) -> None:
    """Steps of about a microsecond of work each."""
    for _ in progress(range(steps)):
        sum(range(64))


def work_untold(steps: int) -> None:
    """The same without progress."""
    for _ in range(steps):
        sum(range(64))


def report_until(stop: str, progress: Any) -> None:
    """Report about 50 times a second until there is a file called `stop`."""
    while not os.path.exists(stop):
        time.sleep(0.02)
        progress.update()


def wait_until(stop: str) -> None:
    """The same without progress."""
    while not os.path.exists(stop):
        time.sleep(0.02)
