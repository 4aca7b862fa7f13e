"""What a caller sees of a task: `ProgressState`, and the statuses that the library itself gives."""

import re
from math import copysign
from typing import Final, TypedDict

PENDING: Final = "pending"
RUNNING: Final = "running"
PAUSED: Final = "paused"
DONE: Final = "done"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"


_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # a terminal's control sequence: a colour, say


def on_one_line(status: str) -> str:
    """Without what would move a cursor."""
    if status.isprintable():
        return status
    return " ".join("".join(char if char.isprintable() else " " for char in status).split())


def printable(text: str) -> str:
    """The lines of a text, without what would move a cursor in them."""
    lines = (_SEQUENCE.sub("", line).expandtabs() for line in text.splitlines())
    return "\n".join("".join(char if char.isprintable() or char in "\xa0\u200d" else " " for char in line) for line in lines)


def drawable(number: float) -> float:
    """As a bar can show it: a third of a part is no sixteen digits.

    And within what it can calculate with: its rates and times are quotients, and it cannot say an infinite one.
    """
    if isinstance(number, int):
        return number
    size = abs(number)
    if size < 1:
        return 0.0 if size < 1e-100 else float(f"{number:.3g}")
    return round(number, 3) if size <= 1e100 else copysign(1e100, number)


class ProgressState(TypedDict):
    """A snapshot of a task's progress: three fields that belong together.

    `n` is how much is done, `total` how much there is to do (None: unknown). `status` is "pending", then "running" or
    the task's own text, "paused" while it stands still, at the end "done", "failed" or "cancelled".
    """

    n: int | float
    total: int | float | None
    status: str


class GroupState(ProgressState):
    """A snapshot of a group's progress: the sums of n and total, and how many of its members are in which status."""

    pending: int
    running: int
    done: int
    failed: int
    cancelled: int
