"""The tqdm adapter: a listener that owns one bar, and the screens on which such bars stand.

The only module that knows tqdm.
"""

import inspect
import itertools
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from math import inf
from time import monotonic, time
from typing import Any, ClassVar, Literal, get_args

from ._interrupts import SigintDeferred
from ._messages import LOG
from ._monitor import INTERVAL, after_delivery, logger
from ._sinks import ScreenSink, View
from ._state import CANCELLED, DONE, drawable, on_one_line, printable

Trigger = Literal["now", "running", "cancelled"]
_TRIGGERS: tuple[str, ...] = get_args(Trigger)

_CLOCK = 1.0
"""Seconds after which a bar is drawn again although nothing was reported, so that its clock moves."""


class TqdmBar(ScreenSink):
    """Shows states in a bar that it makes at the first of its triggers and closes at the end.

    The bar's postfix is the status; its clock starts with the task.
    """

    def __init__(
        self,
        tqdm_cls: Callable[..., Any] | None,
        init_kwargs: Mapping[str, Any] | None,
        triggers: Iterable[Trigger] | None,
        look: Callable[[], View],
    ) -> None:
        """`look` gives the present view: for when the bar is made, and when it gets a row."""
        if tqdm_cls is None:
            import tqdm

            tqdm_cls = tqdm.tqdm
        chosen: Iterable[str] = ("now",) if triggers is None else triggers
        self._triggers = {chosen} if isinstance(chosen, str) else set(chosen)
        for trigger in self._triggers:
            if trigger not in _TRIGGERS:
                raise ValueError(f"unknown trigger {trigger!r}: a bar is made at 'now', 'running' or 'cancelled'")
        self._make: partial[Any] | None = partial(tqdm_cls, **(init_kwargs or {}))
        self._bar: Any = None
        self._look = look
        self._screen: _Screen | None = None
        self._hidden = False
        self._in_file = False
        self._clock: Callable[[], float] | None = None  # tqdm's, while the bar's own stands still
        self._knows_total = False  # from the task
        self._shown: View | None = None
        self._began: float | None = None
        self._drawn_at = -inf  # not 0: where the machine was started a moment ago, that is just now
        if "now" in self._triggers:
            self._open()
            self.update(look())  # nobody else does while it is pending

    def update(self, view: View) -> None:
        self._tell(view, False)

    def close(self, view: View) -> None:
        self._tell(view, True)

    def _tell(self, view: View, ended: bool) -> None:
        if self._screen is not None:
            after_delivery.add(self._screen.draw)
        now = monotonic()
        if not ended and now < self._drawn_at + (max(_CLOCK, self._pause) if view == self._shown else self._pause):
            return
        if ended or self._make is not None:
            with SigintDeferred():  # a bar that is opened or closed by half would stay for ever
                self._show(view, ended)
        else:
            self._show(view, ended)
        self._shown = view
        self._drawn_at = now

    @property
    def listens(self) -> bool:  # type: ignore[override]
        """Not if it is disabled, or made only when the task is cancelled."""
        if self._bar is None:
            return self._make is not None and "running" in self._triggers
        return not getattr(self._bar, "disable", False)

    def place(self) -> object:
        if self._make is not None:
            with SigintDeferred():
                self._open()  # it is the time to make it
                self._show(self._look(), False)
        bar = self._bar
        return None if bar is None else _terminal(bar.fp) if _is_plain(bar) else type(bar)

    def message(self, kind: str, payload: Any) -> None:
        """Write what a task says above the bars; as tqdm's `write` does where they are on no terminal and in no file."""
        bar = self._bar
        if bar is None or kind != LOG:
            return
        text = printable(payload)
        if self._screen is not None:
            self._screen.texts.append(text)
            self._screen.changed[bar] = None
            after_delivery.add(self._screen.draw)
        elif self._in_file:
            bar.fp.write(f"{text}\n")
            bar.fp.flush()
        else:
            getattr(bar, "write", print)(text)

    @property
    def idle(self) -> bool:  # type: ignore[override]
        """Whether the terminal has no row for it, as last drawn: to read a thousand states for nothing takes long."""
        if self._hidden and self._screen is not None:
            after_delivery.add(self._screen.draw)  # which looks whether there is one now
        return self._hidden

    def set_hidden(self, hidden: bool) -> None:
        """Told by the screen when it draws all bars."""
        self._hidden = hidden
        if not hidden and self._bar is not None:
            self._take_over(self._bar, self._look())

    @property
    def _pause(self) -> float:
        """Seconds between two drawings, if the bar wants more than one interval of them."""
        pause = getattr(self._bar, "mininterval", 0)
        return pause if pause > INTERVAL else 0.0

    def _open(self) -> None:
        make, self._make = self._make, None  # where it raises, once is enough
        assert make is not None
        with _room_for(make):
            bar = self._bar = make()
        if _is_tqdm(bar):
            bar.initial = 0  # the rate is that of the task's n
            if bar.delay == inf:  # see `_room_for`
                bar.delay = 0
            # Until the task starts no time passes: the bar may be drawn again, because another one was closed, say.
            self._clock, bar._time = bar._time, partial(float, bar.start_t)
        if _is_plain(bar):
            if getattr(bar.fp, "isatty", bool)():
                self._screen = _Screen.add(bar, self)
            elif type(bar).display is sys.modules["tqdm.std"].tqdm.display:  # and not one that shows it somewhere else, too
                self._in_file = True
                bar.pos = _NOWHERE

    def _show(self, view: View, ended: bool) -> None:
        started_at = view.since
        if self._make is not None and (
            ("running" in self._triggers and started_at is not None)
            or ("cancelled" in self._triggers and ended and view.status == CANCELLED)
        ):
            self._open()
        bar = self._bar
        if bar is None:
            return
        screen = self._screen
        try:
            with nullcontext() if screen is None else bar.get_lock():  # another thread may draw, and have it catch up
                if ended:
                    self._bar = None
                self._take_over(bar, view, ended)
            if screen is None and not self._in_file:
                _refresh(bar)
        finally:
            if screen is not None:
                if ended:
                    screen.ended.append(bar)
                else:
                    screen.changed[bar] = None
                after_delivery.add(screen.draw)  # which may have been made just now
            elif ended and self._in_file:
                _write_line(bar)
            elif ended:
                _close(bar, view.status)

    def _take_over(self, bar: Any, view: View, ended: bool = False) -> None:
        started_at = view.since
        if self._clock is not None and (started_at is not None or ended):
            # Its rate and remaining time count from the start of the task, not from its own or from the queue.
            self._clock, bar._time = None, self._clock
            bar.start_t = bar.last_print_t = bar._time() - (0 if started_at is None else max(0, time() - started_at))
        elif started_at is not None and started_at != self._began and _is_tqdm(bar):
            # Nor does the time for which it stood still count; where it is run again, on a cluster, it starts anew.
            bar.start_t = bar._time() - max(0, time() - started_at)
        self._began = started_at
        if ended and _is_tqdm(bar):
            # And to the task's end, which may be long ago.
            ended_at = view.ended or started_at or 0
            bar._time = partial(float, max(bar.start_t, bar._time() - max(0, time() - ended_at)))
        n, total = _numbers(view)
        self._knows_total = self._knows_total or total is not None
        if self._knows_total:  # else the bar keeps the one that it was made with
            _set_total(bar, total)
        bar.n = n
        bar.set_postfix_str(on_one_line(view.described()), refresh=False)


def _numbers(view: View) -> tuple[float, float | None]:
    """n and total as tqdm can draw them. It drops a total that n exceeds by a half; of all else outside it warns."""
    n, total = drawable(view.n), view.total
    if total:
        total = drawable(total)
        n = max(n, 0) if n <= total or n >= total + 0.5 else total
    return n, total


# A bar that is no terminal's: in a file, or in a notebook


_NOWHERE = -(1 << 20)
"""The position of a bar in a file: behind all rows, where tqdm draws nothing, and taken from nobody."""


@contextmanager
def _room_for(make: "partial[Any]") -> Iterator[None]:
    """While `make` makes a bar in a file, no bar on a terminal has a row: tqdm would go past them with control codes."""
    file = make.keywords.get("file") or sys.stderr
    std = sys.modules.get("tqdm.std")
    if file is None or std is None or getattr(file, "isatty", bool)():
        yield
        return
    if _takes_delay(make.func, std.tqdm):
        make.keywords.setdefault("delay", inf)  # else it begins with drawing itself, before the line of another one
    with std.tqdm.get_lock():
        positions = [(bar, bar.pos) for bar in std.tqdm._instances if hasattr(bar, "pos")]
        try:
            for bar, _ in positions:
                bar.pos = _NOWHERE
            yield
        finally:
            for bar, position in positions:
                bar.pos = position


def _takes_delay(cls: Any, base: Any) -> bool:
    """Whether `cls` is one of tqdm's classes for terminals and files, or made of one and with all its arguments."""
    if not isinstance(cls, type) or not issubclass(cls, base) or getattr(cls, "display", None) is not base.display:
        return False
    try:
        inspect.signature(cls).bind_partial(delay=0)
    except TypeError:
        return False
    return True


def _write_line(bar: Any) -> None:
    """Close a bar in a file, with one line: what is drawn over and over in a terminal would fill a log."""
    if bar.leave is None:
        bar.leave = True
    if _is_due(bar):
        bar.last_print_t = bar._time()  # see `_Screen._close`
    bar.sp = bar.fp.write  # tqdm's own goes back to the beginning of the line first
    bar.close()


# Notebooks, where a bar is a widget, and all that is no bar of tqdm's at all


def _set_total(bar: Any, total: float | None) -> None:
    if total == getattr(bar, "total", None):
        return
    bar.total = total
    if _is_notebook(bar):  # whose widget hears of it only in `reset`, which has it show 0 for a moment
        known = total is not None and total > 0
        widget = _widget(bar)
        widget.max = total if known else 1
        widget.bar_style = "" if known else "info"
        if bar.ncols is None:
            widget.layout.width = None if known else "20px"


def _refresh(bar: Any) -> None:
    if not _is_tqdm(bar) or bar._time() >= bar.start_t + bar.delay:
        bar.refresh()


def _close(bar: Any, status: str) -> None:
    """Close it; in a notebook, green if the task is done and red if not. tqdm goes by whether n has reached the total."""
    if not _is_notebook(bar):
        bar.close()
        return
    widget = _widget(bar)
    with widget.hold_sync():  # it must not turn red on its way to green
        if status != DONE:
            widget.bar_style = "danger"
        bar.close()
        if status == DONE and widget.bar_style == "danger":
            widget.bar_style = "success"
            if not bar.leave:
                bar.display(close=True, check_delay=False)


def _widget(bar: Any) -> Any:
    """The part of a notebook's bar that is filled."""
    return bar.container.children[-2]


# Terminals


class _Screen:
    """The bars on one terminal, ours and others. Draws what changed, and everything where bars came or went.

    tqdm's own way goes wrong there (its issue 1496): a bar that is left on the screen pushes all others one row down without
    their knowing, one that is erased leaves a hole. Here all of them are erased, the closed ones written, and those that are
    left drawn again from the first row on. The cursor rests at the beginning of that row.
    """

    _all: ClassVar[list["_Screen"]] = []

    def __init__(self, bar: Any) -> None:
        self.changed: dict[Any, None] = {}
        self.ended: deque[Any] = deque()
        self.texts: deque[str] = deque()  # to be written above the bars
        self._fp = bar.fp
        self._terminal = _terminal(bar.fp)
        self._class = sys.modules["tqdm.std"].tqdm  # whose subclasses share its screens
        self._measure = sys.modules["tqdm.utils"]._screen_shape_wrapper()
        self._size = self._measure(bar.fp)
        self._seen: set[Any] = set()  # weak references
        self._delayed: list[Any] = []
        self._text: list[str] = []
        self._stale = False  # whether the last drawing was not completed
        self._trim = sys.modules["tqdm.utils"].disp_trim
        self._up = sys.modules["tqdm.utils"]._term_move_up()
        self._ours: dict[Any, TqdmBar] = {}

    @classmethod
    def add(cls, bar: Any, owner: TqdmBar) -> "_Screen":
        """The one on which `bar` stands, which is one of ours from now on."""
        with bar.get_lock():
            terminal = _terminal(bar.fp)
            screen = next((screen for screen in cls._all if screen._terminal == terminal), None)
            if screen is None:
                screen = cls(bar)
                cls._all.append(screen)
            screen._ours[bar] = owner
            # tqdm measures the standard streams only.
            columns, rows = screen._measure(bar.fp)
            bar.ncols, bar.nrows = bar.ncols or columns, bar.nrows or rows
            return screen

    def _print(self, text: str) -> None:
        # In place of tqdm's own, which pads a line to the length of the one before: that may not fit any more, and does not
        # cover another bar's line, where this one is written over it when it is closed.
        self._fp.write("\r\x1b[2K" + self._cut(text))
        self._fp.flush()

    def _cut(self, text: str) -> str:
        """What fits into one row: a bar may have been given more columns, and up to 4.67 tqdm cuts none without a meter."""
        columns = self._size[0]
        if not columns or (len(text) <= columns and not _may_be_wide(text)):
            return text
        return str(self._trim(text, columns))

    def draw(self) -> None:
        """Draw the bars that changed, and close those that ended. What one of them raises is logged, and harms no other."""
        with SigintDeferred(), self._class.get_lock():
            changed = self.changed.copy()
            # One that is open: the terminal's files may be several, and the first bar's was closed with it.
            self._fp = next((bar.fp for bar in (*self.ended, *changed)), self._fp)
            for bar in changed:
                self.changed.pop(bar, None)
            # All three, and before anything is drawn: lines of the old width would wrap.
            everything = [self._stale, self._others(), self._resized(), bool(self.ended or self.texts)]
            if any(everything) or any(map(_is_due, self._delayed)):
                self._stale = True
                self._try(self._close_ended)
                self._draw_all()
            elif changed:
                for bar in changed:
                    self._try(self._draw, bar)
            else:
                return
            self._flush("\r")
            self._stale = False
            if not self._ours and self in self._all:
                self._all.remove(self)

    def _try(self, fn: Callable[..., object], *args: object) -> None:
        try:
            fn(*args)
        except Exception:
            self._stale = True
            logger.exception("drawing a bar raised")

    def _close_ended(self) -> None:
        self._erase()
        while self.texts:
            self._text.append(f"{self.texts.popleft()}\n")
        self._try(self._flush)
        while self.ended:
            self._try(self._close, self.ended.popleft())

    def _erase(self) -> None:
        # From the second column on: what is erased from the first of all on, tmux takes for text that scrolls away.
        self._text.append("\r\x1b[2K\x1b[C\x1b[J\r")

    def _draw(self, bar: Any) -> None:
        if bar.disable or _is_hidden(bar, but_the_hint=True) or not _is_due(bar):
            return
        bar.last_print_t = bar._time()
        if bar not in self._ours or type(bar).display is not self._class.display:
            self._flush()
            bar.display()
            return
        # As `display` does, but all that is drawn at once is written at once.
        row = abs(bar.pos)
        self._text += ["\n" * row, "\r\x1b[2K", _HINT if _is_hidden(bar) else self._cut(str(bar)), self._up * row]

    def _flush(self, end: str = "") -> None:
        text, self._text = "".join(self._text) + end, []
        if text:
            self._fp.write(text)
            self._fp.flush()

    def _close(self, bar: Any) -> None:
        self.changed.pop(bar, None)
        self._ours.pop(bar, None)  # where one bar is given out for several tasks, it was closed before
        if bar.leave is None:
            bar.leave = bar.pos == 0
        bar.pos = 0  # all rows are erased
        bar.nrows = -_NOWHERE  # with fewer, tqdm gives the row of the closed one to a hidden bar, which then jumps the queue
        if _is_due(bar):
            bar.sp = self._print
            bar.last_print_t = bar._time()  # close() takes a bar that was never printed for one that was never shown
        bar.close()

    def _others(self) -> bool:
        """Whether other bars than before are alive, on whatever screen."""
        # The references in a WeakSet: to go through the set itself takes too long.
        before, self._seen = self._seen, self._class._instances.data.copy()
        return before != self._seen

    def _resized(self) -> bool:
        """Whether the terminal's size has changed; then bars that had the size of the terminal have it again."""
        before, self._size = self._size, self._measure(self._fp)
        if before == self._size:
            return False
        for bar in self._live():
            if bar.ncols == before[0]:
                bar.ncols = self._size[0]
            if bar.nrows == before[1]:
                bar.nrows = self._size[1]
        return True

    def _live(self) -> list[Any]:
        # What is being made in another thread has no start_t yet.
        bars = [bar for bar in self._class._instances if hasattr(bar, "start_t") and _is_plain(bar)]
        here = [bar for bar in bars if _terminal(bar.fp) == self._terminal]
        return sorted(here, key=lambda bar: (not _is_due(bar), abs(bar.pos)))

    def _draw_all(self) -> None:
        """Give the bars the rows from the first on, but for those whose row the user has chosen, and draw them."""
        live = self._live()
        self._delayed = [bar for bar in live if not _is_due(bar)]
        pinned = {-bar.pos for bar in live if bar.pos < 0}
        free = (row for row in itertools.count() if row not in pinned)
        self._erase()
        for bar in live:
            # `tqdm.write` draws all bars again, also those whose delay is not over.
            bar.sp = self._print if _is_due(bar) or bar not in self._ours else _keep_quiet
            if bar.pos >= 0:
                bar.pos = next(free)
            owner = self._ours.get(bar)
            if owner is not None:
                self._try(owner.set_hidden, _is_hidden(bar))
            self._try(self._draw, bar)


def _terminal(file: Any) -> object:
    """What is the same for all files of one terminal: standard output and standard error share their rows."""
    try:
        info = os.fstat(file.fileno())
    except (AttributeError, OSError, ValueError):  # no file of the system's, or closed
        return file
    return info.st_rdev or file  # where a terminal has no number, on Windows, each file is one of its own


def _is_due(bar: Any) -> bool:
    """Whether the bar's delay is over."""
    return bool(bar._time() >= bar.start_t + bar.delay)


_may_be_wide = re.compile("[\u1100-\u24ff\u25a0-\U0010ffff]").search
"""Whether a text may have characters of two columns. Those that bars are drawn with have one; tqdm measures each."""


def _keep_quiet(_: str) -> None:
    pass


_HINT = " ... (more hidden) ..."
"""What tqdm writes in the last row that it uses, if there are more bars than rows."""


def _is_hidden(bar: Any, but_the_hint: bool = False) -> bool:
    return bool(abs(bar.pos) >= (bar.nrows or 20) - (not but_the_hint))


def _is_tqdm(bar: Any) -> bool:
    """Whether it is one of tqdm's bars, and active."""
    std = sys.modules.get("tqdm.std")
    return std is not None and isinstance(bar, std.tqdm) and not bar.disable


def _is_plain(bar: Any) -> bool:
    """Whether it is one of those for terminals and files."""
    return _is_tqdm(bar) and not bar.gui and hasattr(bar, "sp")


def _is_notebook(bar: Any) -> bool:
    return _is_tqdm(bar) and hasattr(bar, "container")
