"""What a caller sees of a task: `ProgressState`, and the statuses that the library itself gives."""

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
