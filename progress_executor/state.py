"""What a caller sees of a task: `ProgressState`, and the statuses that the library itself gives."""

from math import copysign
from typing import Final, TypedDict

PENDING: Final = "pending"
RUNNING: Final = "running"
DONE: Final = "done"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"


def on_one_line(status: str) -> str:
    """Without what would move a cursor."""
    if status.isprintable():
        return status
    return " ".join("".join(char if char.isprintable() else " " for char in status).split())


def drawable(number: float) -> float:
    """Within what a bar can calculate with: its rates and times are quotients, and it cannot say an infinite one."""
    if isinstance(number, int) or 1e-100 <= abs(number) <= 1e100:
        return number
    return 0.0 if abs(number) < 1 else copysign(1e100, number)


class ProgressState(TypedDict):
    """A snapshot of a task's progress: three fields that belong together.

    `n` is how much is done, `total` how much there is to do (None: unknown). `status` is "pending", then "running" or
    the task's own text, at the end "done", "failed" or "cancelled".
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
