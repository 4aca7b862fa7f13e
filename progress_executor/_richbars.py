"""The rich adapter: a listener that owns one task of a caller's `rich.progress.Progress`. Imports nothing of rich."""

from collections.abc import Mapping
from time import time
from typing import TYPE_CHECKING, Any

from ._interrupts import SigintDeferred
from ._messages import LOG
from ._sinks import ScreenSink, View
from ._state import drawable, on_one_line, printable

if TYPE_CHECKING:
    from rich.progress import Progress


class RichBar(ScreenSink):
    """Shows states as one row of `progress`, whose clock starts with the task and stands still at the end.

    The status is the row's field `status`, on one line; as it may be any text, its column should not read it as markup.
    """

    def __init__(self, progress: "Progress", fields: Mapping[str, Any], view: View) -> None:
        self._progress = progress
        self._shown: View | None = None
        self._began: float | None = None
        self._knows_total = False  # from the task
        row = {"description": "", "total": None, "start": False, "status": on_one_line(view.described()), **fields}
        self._id = progress.add_task(**row)

    def update(self, view: View) -> None:
        self._tell(view, False)

    def close(self, view: View) -> None:
        self._tell(view, True)

    def _tell(self, view: View, ended: bool) -> None:
        if view == self._shown and not ended:
            return
        self._shown = view
        with SigintDeferred():
            try:
                self._show(view, ended)
            except KeyError:  # the user has removed the row
                pass

    @property
    def listens(self) -> bool:  # type: ignore[override]
        return not self._progress.disable

    def place(self) -> object:
        return self._progress.console

    def message(self, kind: str, payload: Any) -> None:
        """Print what a task says, above the rows."""
        if kind == LOG:
            text = printable(payload)
            self._progress.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _show(self, view: View, ended: bool) -> None:
        row = self._progress._tasks[self._id]  # `tasks` makes a list of all
        started_at, now = view.since, time()
        if started_at is not None and started_at != self._began:
            if self._began is None:
                self._progress.start_task(self._id)
            else:  # it stood still; the speed goes by samples of the last half minute
                moved = [sample._replace(timestamp=sample.timestamp + started_at - self._began) for sample in row._progress]
                row._progress.clear()
                row._progress.extend(moved)
            row.start_time = self._progress.get_time() - max(0, now - started_at)
            self._began = started_at
        n, total = drawable(view.n), view.total
        self._knows_total = self._knows_total or total is not None
        if total is None and ended:
            total = n  # else the bar would look as if it were still on its way
        if self._knows_total or ended:  # else the row keeps the one that it was made with
            # `update` would forget the speed, and takes None for no change.
            row.total, row.finished_time = None if total is None else drawable(total), None
        self._progress.update(self._id, completed=n, status=on_one_line(view.described()))
        if ended:
            self._progress.stop_task(self._id)
            if started_at is not None and row.start_time is not None:
                row.stop_time = row.start_time + max(0, (view.ended or now) - started_at)
