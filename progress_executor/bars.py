"""The tqdm adapter: one progress callback that owns one bar. The only module that knows tqdm."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

from .state import CANCELLED, DONE, FAILED, PENDING, ProgressState

Trigger = Literal["now", "running", "cancelled"]
_TRIGGERS: tuple[str, ...] = get_args(Trigger)


class TqdmCallback:
    """Shows a future's states in a bar that it makes at the first of its triggers and closes at the end.

    The bar belongs to the thread that delivers. Its postfix is the status.
    """

    def __init__(
        self,
        tqdm_cls: Callable[..., Any] | None,
        init_kwargs: Mapping[str, Any] | None,
        triggers: Iterable[Trigger] | None,
    ) -> None:
        if tqdm_cls is None:
            import tqdm

            tqdm_cls = tqdm.tqdm
        if triggers is None:
            triggers = ("now",)
        self._triggers = {triggers} if isinstance(triggers, str) else set(triggers)
        unknown = self._triggers.difference(_TRIGGERS)
        if unknown:
            raise ValueError(
                f"unknown trigger {sorted(map(repr, unknown))[0]}: a bar is made at "
                f"{', '.join(map(repr, _TRIGGERS[:-1]))} or {_TRIGGERS[-1]!r}"
            )
        self._make: Callable[[], Any] | None = lambda: tqdm_cls(**(init_kwargs or {}))
        self._bar: Any = None
        if "now" in self._triggers:
            self._open()

    def _open(self) -> None:
        make, self._make = self._make, None  # if it raises, once is enough
        assert make is not None
        self._bar = make()

    def __call__(self, old: ProgressState, new: ProgressState) -> None:
        status = new["status"]
        ran = status not in (PENDING, CANCELLED)
        if self._make is not None and (
            (ran and "running" in self._triggers) or (status == CANCELLED and "cancelled" in self._triggers)
        ):
            self._open()
        elif self._bar is not None and ran and old["status"] == PENDING:
            _unpause(self._bar)
        if self._bar is None:
            return
        bar = self._bar
        try:
            bar.total = new["total"]
            bar.n = new["n"]
            bar.set_postfix_str(" ".join(status.split()), refresh=False)
            bar.refresh()
        finally:
            if status in (DONE, FAILED, CANCELLED):
                self._bar = None
                bar.close()


def _unpause(bar: Any) -> None:
    """The time in the queue is not to count into rate and remaining time."""
    if hasattr(bar, "unpause"):
        bar.unpause()
