"""The rich adapter: a listener that owns one task of a caller's `rich.progress.Progress`. Imports nothing of rich."""

from collections.abc import Mapping
from time import time
from typing import TYPE_CHECKING, Any

from .delivery import Watched
from .state import DONE, ProgressState, on_one_line

if TYPE_CHECKING:
    from rich.progress import Progress


class RichBar:
    """Shows states as one row of `progress`, whose clock starts with the task and stands still at the end.

    The status is the row's field `status`, on one line; as it may be any text, its column should not read it as markup.
    """

    hidden = False

    def __init__(self, progress: "Progress", fields: Mapping[str, Any], watched: Watched) -> None:
        self._progress = progress
        self._watched = watched
        self._shown: ProgressState | None = None
        self._started = False
        row = {"description": "", "total": None, "start": False, "status": self._status(watched.state), **fields}
        self._id = progress.add_task(**row)

    def _status(self, state: ProgressState) -> str:
        return on_one_line(self._watched._describe(state))

    def tell(self, state: ProgressState, ended: bool) -> None:
        """Take over a state."""
        if state == self._shown and not ended:
            return
        self._shown = state.copy()
        if self._id not in self._progress.task_ids:  # the user has removed the row
            return
        started_at, now = self._watched._since(), time()
        row = next(task for task in self._progress.tasks if task.id == self._id)
        if not self._started and started_at is not None:
            self._started = True
            self._progress.start_task(self._id)
            row.start_time = self._progress.get_time() - max(0, now - started_at)
        total = state["total"]
        if total is None and ended and state["status"] == DONE:
            total = state["n"]  # else the bar would look as if it were still on its way
        self._progress.update(self._id, completed=state["n"], total=total, status=self._status(state))
        if ended:
            self._progress.stop_task(self._id)
            if started_at is not None and row.start_time is not None:
                row.stop_time = row.start_time + max(0, (self._watched._until() or now) - started_at)
