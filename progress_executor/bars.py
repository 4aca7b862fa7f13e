"""The tqdm adapter: a progress callback that owns one bar, and the closing of bars on a terminal.

The only module that knows tqdm.
"""

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from time import time
from typing import Any, Literal, get_args

from .interrupts import SigintDeferred
from .state import CANCELLED, ProgressState

Trigger = Literal["now", "running", "cancelled"]
_TRIGGERS: tuple[str, ...] = get_args(Trigger)


class TqdmCallback:
    """Shows a future's states in a bar that it makes at the first of its triggers and closes at the end.

    The bar's postfix is the status; its clock starts with the task.
    """

    def __init__(
        self,
        tqdm_cls: Callable[..., Any] | None,
        init_kwargs: Mapping[str, Any] | None,
        triggers: Iterable[Trigger] | None,
        since: Callable[[], float | None],
    ) -> None:
        if tqdm_cls is None:
            import tqdm

            tqdm_cls = tqdm.tqdm
        chosen: Iterable[str] = ("now",) if triggers is None else triggers
        self._triggers = {chosen} if isinstance(chosen, str) else set(chosen)
        for trigger in self._triggers:
            if trigger not in _TRIGGERS:
                raise ValueError(f"unknown trigger {trigger!r}: a bar is made at 'now', 'running' or 'cancelled'")
        self._make: Callable[[], Any] | None = partial(tqdm_cls, **(init_kwargs or {}))
        self._bar: Any = None
        self._since = since
        self._clock_is_set = False
        if "now" in self._triggers:
            with SigintDeferred():
                self._open()

    def _open(self) -> None:
        make, self._make = self._make, None  # where it raises, once is enough
        assert make is not None
        self._bar = make()

    def __call__(self, old: ProgressState, new: ProgressState, ended: bool) -> None:
        with SigintDeferred():
            self._show(new, ended)

    def _show(self, new: ProgressState, ended: bool) -> None:
        started_at = self._since()
        cancelled = ended and new["status"] == CANCELLED
        if self._make is not None:
            if "running" in self._triggers and started_at is not None:
                self._open()
            elif "cancelled" in self._triggers and cancelled:
                self._open()
        if self._bar is None:
            return
        if not self._clock_is_set and started_at is not None:
            self._clock_is_set = True
            _set_clock(self._bar, started_at)
        try:
            self._bar.total = new["total"]
            self._bar.n = new["n"]
            self._bar.set_postfix_str(_on_one_line(new["status"]), refresh=False)
            _draw(self._bar)
        finally:
            if ended:
                bar, self._bar = self._bar, None
                _close(bar)


def _on_one_line(status: str) -> str:
    """Without what would move the cursor."""
    return " ".join("".join(char if char.isprintable() else " " for char in status).split())


def _set_clock(bar: Any, started_at: float) -> None:
    """Have the bar's rate and remaining time count from the start of the task, not from its own or from the queue."""
    if _is_plain(bar):
        bar.start_t = bar.last_print_t = bar._time() - max(0, time() - started_at)


def _draw(bar: Any) -> None:
    if not _is_plain(bar):
        bar.refresh()
    elif bar._time() >= bar.start_t + bar.delay:
        bar.refresh()
        bar.last_print_t = bar._time()  # close() takes a bar that was never printed for one that was never shown


def _close(bar: Any) -> None:
    """Close `bar`, and on a terminal put the bars that stay in order again.

    tqdm moves at most one of them (its issue 1496): a bar that is left on the screen pushes all others one row down
    without their knowing, one that is erased leaves a hole. Here all of them move up, each row erased before it is drawn
    anew because a longer line may have stood there.
    """
    if not (_is_plain(bar) and getattr(bar.fp, "isatty", bool)()):
        bar.close()
        return
    with bar.get_lock():
        rows = 1 + max((abs(other.pos) for other in _live(bar)), default=0)
        bar.close()
        pinned = {abs(other.pos): other for other in _live(bar) if other.pos < 0}
        free = (row for row in itertools.count() if row not in pinned)
        owners = dict(pinned)
        for other in sorted((other for other in _live(bar) if other.pos >= 0), key=lambda other: other.pos):
            other.pos = next(free)
            owners[other.pos] = other
        for row in range(min(max([rows, *(row + 1 for row in owners)]), bar.nrows or 20)):
            bar.moveto(row)
            bar.fp.write("\r\x1b[2K")
            bar.moveto(-row)
            if row in owners:
                owners[row].display()
        bar.fp.write("\r")
        bar.fp.flush()


def _live(bar: Any) -> list[Any]:
    """The bars on the screen of `bar`, itself included while it is open. tqdm wraps the file anew for each."""
    return [other for other in type(bar)._instances if hasattr(other, "pos") and getattr(other, "fp", None) == bar.fp]


def _is_plain(bar: Any) -> bool:
    """Whether it is one of tqdm's bars for terminals and files, and active."""
    std = sys.modules.get("tqdm.std")
    return std is not None and isinstance(bar, std.tqdm) and not bar.disable and not bar.gui and hasattr(bar, "sp")
