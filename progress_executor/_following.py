"""`ProgressIterator`: the turns of who follows a future or a group, in a `for` loop or an `async for` loop.

Between two turns nothing anywhere knows of the follower, so that there is nothing to undo when it goes. How it waits is
the future's and the group's own affair.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from math import inf
from time import monotonic
from typing import Generic, Protocol, Self, TypeVar

from ._monitor import INTERVAL, LoopPoller, Source
from ._state import ProgressState
from ._tasks import wake_loop

_LEAST = 0.005
"""Seconds between two looks at a state that has not changed."""

S = TypeVar("S", bound=ProgressState)
S_co = TypeVar("S_co", bound=ProgressState, covariant=True)


class DoneWaiter:
    """Rings in the running loop when the future or group in which it is set has ended."""

    def __init__(self) -> None:
        self.woken = asyncio.get_running_loop().create_future()

    def wake(self, _: object = None) -> None:
        wake_loop(self.woken)

    add_result = add_exception = add_cancelled = wake  # a future tells its waiters so


class Followed(Protocol[S_co]):
    """A future or a group."""

    @property
    def state(self) -> S_co: ...
    def done(self) -> bool: ...
    def _source(self) -> Source: ...
    def _wait(self, timeout: float | None) -> bool: ...
    def _set(self, done_waiter: DoneWaiter) -> None: ...
    def _unset(self, done_waiter: DoneWaiter) -> None: ...


class ProgressIterator(Iterator[S], AsyncIterator[S], Generic[S]):
    """What `states()` returns: an iterator, also for `async for`. ValueError if the interval is not positive and finite."""

    def __init__(self, followed: Followed[S], interval: float) -> None:
        if not 0 < interval < inf:
            raise ValueError(f"interval must be a positive number of seconds, not {interval!r}")
        self._followed: Followed[S] | None = followed  # until the final state is given
        self._interval = interval
        self._given: ProgressState | None = None
        self._due = 0.0

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> S:
        followed = self._followed
        try:
            if followed is None:
                raise StopIteration
            _refuse_in_callback(followed)
            state = self._look(followed) if self._given is None else None
            while state is None:
                followed._wait(self._pause())
                state = self._look(followed)
            return state
        finally:
            self = followed = None  # type: ignore[assignment]  # this frame is behind those of lazy tasks

    async def __anext__(self) -> S:
        followed = self._followed
        try:
            if followed is None:
                raise StopAsyncIteration
            state = self._look(followed) if self._given is None else None
            if state is None:
                state = await self._await_turn(followed)
            return state
        finally:
            self = followed = None  # type: ignore[assignment]

    async def _await_turn(self, followed: Followed[S]) -> S:
        source, loop_poller, done_waiter = followed._source(), LoopPoller.of_running_loop(), DoneWaiter()
        loop_poller.follow(source)
        try:
            followed._set(done_waiter)
            to_run = [part for part in source.parts if part.to_be_run]
            for subscription in source.subscriptions if to_run else ():
                subscription.bind_to_current_thread()  # where they run now, and push their progress
            state = None
            while state is None:
                if to_run:
                    await to_run.pop(0).run_in_loop(loop_poller)
                else:  # in every turn, also in one that is due: what else is due in the loop comes first
                    await asyncio.wait([done_waiter.woken], timeout=self._pause())
                state = self._look(followed)
            return state
        finally:
            followed._unset(done_waiter)
            loop_poller.unfollow(source)
            self = followed = source = None  # type: ignore[assignment]

    def _pause(self) -> float:
        return max(self._due - monotonic(), 0)

    def _look(self, followed: Followed[S]) -> S | None:
        """The state to give now, if there is one."""
        done = followed.done()  # before the state: what ends after this is looked at again
        now = monotonic()
        if not done and now < self._due:
            return None
        state = followed.state
        if done:
            followed._wait(0)  # as for whoever waits, the callbacks are told first
            self._followed = None
        elif state == self._given or followed._source().finished:  # the final state is there before its future is done
            self._due = now + max(min(self._interval, INTERVAL), _LEAST)
            return None
        self._given = state.copy()
        self._due = now + self._interval
        return state


def _refuse_in_callback(followed: Followed[ProgressState]) -> None:
    if any(subscription.delivering_here for subscription in followed._source().subscriptions) and not followed.done():
        raise RuntimeError("a progress callback cannot follow what it watches")
