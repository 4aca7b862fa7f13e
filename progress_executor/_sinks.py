"""Who is told of a task or of a group of tasks. `View` and `Sink` are public: docs/extending.md."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from ._messages import LOG
from ._state import PAUSED, PENDING, RUNNING, GroupState, ProgressState

ProgressCallback = Callable[[ProgressState, ProgressState], object]
LogCallback = Callable[[str], object]


class View(NamedTuple):
    """What a sink is told of a task, or of a group: a snapshot that changes no more.

    `n`, `total` and `status` are those of the state. `began` and `ended` are times, in seconds since the epoch, or None;
    `paused` is for how many seconds it has been paused since it began. `counts` says how many members of a group are in
    which status; None for a task.
    """

    n: int | float
    total: int | float | None
    status: str
    began: float | None = None
    ended: float | None = None
    paused: float = 0.0
    counts: Mapping[str, int] | None = None

    @property
    def since(self) -> float | None:
        """The zero of a clock that stands while the task is paused: when it began, later by `paused`."""
        return None if self.began is None else self.began + self.paused

    @property
    def state(self) -> ProgressState | GroupState:
        """The state, as callbacks are told it."""
        state = ProgressState(n=self.n, total=self.total, status=self.status)
        return state if self.counts is None else cast(GroupState, {**state, **self.counts})

    def described(self) -> str:
        """What a bar says beside the numbers."""
        if self.counts is None:
            return self.status
        running = PAUSED if self.status == PAUSED else RUNNING
        counts = {running: self.counts[RUNNING], **{name: n for name, n in self.counts.items() if name != RUNNING}}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


class Sink:
    """Something that is told of a task, or of a group: subclass it, and give it to `add_sink()` of a future or a group.

    Its methods are called like progress callbacks: in the thread that has added it, when that waits for anything on the
    executor or polls it, or in the event loop that awaits the future. What they raise is logged. These do nothing.

    `idle` is True while it needs no updates: then nobody reads the task's state for it.

    ```python
    class Longest(Sink):
        seconds = 0.0

        def close(self, view):
            if view.began is not None and view.ended is not None:
                Longest.seconds = max(Longest.seconds, view.ended - view.began - view.paused)
    ```
    """

    idle: bool = False

    def update(self, view: View) -> None:
        """Called while it runs, at most once per interval, and whether something has changed or not."""

    def message(self, kind: str, payload: Any) -> None:
        """Called with each message, in order, before the update that follows it. A text that is logged is a "log"."""

    def close(self, view: View) -> None:
        """Called once, last, with the final view."""


class SharedMessage:
    """A message on its way to sinks; one object for all of them."""

    __slots__ = ("kind", "payload", "places", "told")

    def __init__(self, kind: str, payload: Any) -> None:
        self.kind = kind
        self.payload = payload
        self.told = False
        self.places: list[object] = []
        """Where it is shown: once on each terminal, however many bars stand there."""


class ScreenSink(Sink, ABC):
    """One that shows messages above the bars of the place where it stands."""

    listens: bool = True
    """Whether it shows messages just now."""

    @abstractmethod
    def place(self) -> object:
        """Where it stands; None if it shows nothing."""

    def show(self, message: SharedMessage) -> None:
        """Show it, unless that was done there."""
        place = self.place()
        if place is not None and place not in message.places:
            message.places.append(place)
            self.message(message.kind, message.payload)


def listens(sink: Sink) -> bool:
    """Whether it wants to be told messages."""
    return sink.listens if isinstance(sink, ScreenSink) else type(sink).message is not Sink.message


class Callback(Sink):
    """Calls `fn(old_state, new_state)` when the state has changed."""

    def __init__(self, fn: ProgressCallback) -> None:
        self.fn: ProgressCallback = fn
        self._told: View | None = None
        self.called_last: bool = False

    def update(self, view: View) -> None:
        told = self._told or _at_first(view)
        if view[:3] != told[:3] or view.counts != told.counts:
            self._call(view)

    def close(self, view: View) -> None:
        self.called_last = True
        self._call(view)

    def _call(self, view: View) -> None:
        old, self._told = self._told or _at_first(view), view
        self.fn(old.state, view.state)

    def __repr__(self) -> str:
        return repr(self.fn)


def _at_first(view: View) -> View:
    """What it was before anything was told: pending, of a group all members."""
    counts = view.counts and {**dict.fromkeys(view.counts, 0), PENDING: sum(view.counts.values())}
    return View(0, None, PENDING, counts=counts)


class LogReader(Sink):
    """Calls `fn(text)` with each text that the task logs."""

    idle: bool = True

    def __init__(self, fn: LogCallback) -> None:
        self.fn: LogCallback = fn

    def message(self, kind: str, payload: Any) -> None:
        if kind == LOG:
            self.fn(payload)

    def __repr__(self) -> str:
        return repr(self.fn)
