"""The rich adapter: a listener that owns one task of a caller's `rich.progress.Progress`. Imports nothing of rich."""

from collections.abc import Callable, Mapping
from time import time
from typing import TYPE_CHECKING, Any

from ._interrupts import SigintDeferred
from ._monitor import Said, Watched
from ._state import ProgressState, drawable, on_one_line, printable

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
        self._began: float | None = None
        self._knows_total = False  # from the task
        row = {"description": "", "total": None, "start": False, "status": self._status(watched.state), **fields}
        self._id = progress.add_task(**row)

    def _status(self, state: ProgressState) -> str:
        return on_one_line(self._watched._describe(state))

    def tell(self, state: ProgressState, ended: bool) -> None:
        """Take over a state."""
        if state == self._shown and not ended and self._watched._since() == self._began:
            return
        self._shown = state.copy()
        with SigintDeferred():
            try:
                self._show(state, ended)
            except KeyError:  # the user has removed the row
                pass

    @property
    def hear(self) -> Callable[[Said], None] | None:
        return None if self._progress.disable else self._hear

    def _hear(self, said: Said) -> None:
        """Print what a task says, above the rows."""
        console = self._progress.console
        if console not in said.places:
            said.places.append(console)
            console.print(printable(said.text), markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _show(self, state: ProgressState, ended: bool) -> None:
        row = self._progress._tasks[self._id]  # `tasks` makes a list of all
        started_at, now = self._watched._since(), time()
        if started_at is not None and started_at != self._began:
            if self._began is None:
                self._progress.start_task(self._id)
            else:  # it stood still; the speed goes by samples of the last half minute
                moved = [sample._replace(timestamp=sample.timestamp + started_at - self._began) for sample in row._progress]
                row._progress.clear()
                row._progress.extend(moved)
            row.start_time = self._progress.get_time() - max(0, now - started_at)
            self._began = started_at
        n, total = drawable(state["n"]), state["total"]
        self._knows_total = self._knows_total or total is not None
        if total is None and ended:
            total = n  # else the bar would look as if it were still on its way
        if self._knows_total or ended:  # else the row keeps the one that it was made with
            # `update` would forget the speed, and takes None for no change.
            row.total, row.finished_time = None if total is None else drawable(total), None
        self._progress.update(self._id, completed=n, status=self._status(state))
        if ended:
            self._progress.stop_task(self._id)
            if started_at is not None and row.start_time is not None:
                row.stop_time = row.start_time + max(0, (self._watched._until() or now) - started_at)
