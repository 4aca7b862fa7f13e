"""`DaskProgressExecutor`: tasks run on the workers of a Dask cluster; the slots are there, and `relay.py` tells of them.

A task's life is Dask's: it is queued, run, lost and run again as Dask does. Only cancelling goes past it, for Dask would
throw away what a task returns all the same: the workers are asked themselves, and say which of them has the task.

Who does what:

| thread | |
|---|---|
| the caller's | submits; notes what is to stop, or to stand still, and has the client's event loop see to it |
| the client's event loop | hears events, follows Dask's futures, gathers outcomes, asks workers; ends by `_end_later` |
| the executor's own | `_end_safely`, by a task's `end_with`, `end_cancelled`, `end_failed`: done callbacks, then `_forget` |
"""

import asyncio
import contextlib
import inspect
import io
import itertools
import pickle
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic, time
from typing import Any

try:
    import cloudpickle  # type: ignore[import-untyped]
    import distributed
except ImportError as error:
    raise ImportError("DaskProgressExecutor needs Dask's distributed: install progress-executor[dask]") from error

from .. import __version__
from .._futures import ProgressFuture, check_message
from .._interrupts import SigintDeferred
from .._monitor import INTERVAL, Monitor, Subscription, logger
from .._state import CANCELLED, DONE, PAUSED, RUNNING, ProgressState
from .._tasks import Call, Task
from .base import ProgressExecutor, executors_to_leave
from .relay import News, Outcome, Packed

OPTIONS = frozenset({"workers", "resources", "retries", "priority", "key", "allow_other_workers", "fifo_timeout"})
"""What `distributed.Client.submit` takes beside the function and its arguments."""

_BATCH = 0.005
"""Seconds for which cancellations are gathered, to ask the workers once."""
_AGAIN = 1.0
"""Seconds after which they are asked again: what runs on one of them now may not have been there the last time.

A worker remembers for longer what it is not to begin.
"""
_PATIENCE = 1.0, 30.0
"""Seconds in which all have to answer: at first, and at most, after it was doubled each time that one did not."""


def local_client(**cluster: Any) -> "distributed.Client":
    """The client of a local cluster. Ctrl-C in a terminal is not for its workers: they are to stop their tasks."""
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    return distributed.Client(dashboard_address="127.0.0.1:0", set_as_default=False, preload=[ignore], **cluster)  # type: ignore[no-untyped-call]


class _RemoteSlot:
    """What is known here of a slot on a worker; takes the place of a `Slot`, but the executor tells the worker itself."""

    def __init__(self) -> None:
        self.state = ProgressState(n=0, total=None, status=RUNNING)
        self.change_count = 0
        self._paused_seconds = 0.0
        self._stands_since: float | None = None

    def hear(self, state: ProgressState, stands: bool, stood: float) -> None:
        """Take over what the worker tells: the state, whether the task stands still, for how long it did."""
        self.state, self._paused_seconds, self._stands_since = state, stood, monotonic() if stands else None
        self.change_count += 1

    @property
    def paused_seconds(self) -> float:
        return self._paused_seconds + (0.0 if self._stands_since is None else monotonic() - self._stands_since)

    def cancel(self, reason: str | None) -> None: ...

    def pause(self, paused: bool) -> None: ...

    def listen(self, listens: bool = True) -> None: ...

    def take(self, size: int) -> None: ...

    def snapshot(self, tries: int = 1) -> ProgressState:
        return self.state.copy()


class DaskTask(Task):
    """A task on a cluster."""

    dask_future: "distributed.Future[Packed] | None" = None  # until it has ended: while it lives, Dask keeps the task
    future: "ProgressFuture[Any] | None" = None  # likewise: it is a cycle
    connection: object = None  # the one over which it was submitted

    def __init__(self, monitor: Monitor, call: Call, executor: "DaskProgressExecutor", number: int) -> None:
        super().__init__(monitor, call)
        self.executor = executor
        self.number = number
        self._run_id = -1
        self._speaks = False  # and its worker does not know that somebody listens

    @property
    def runs_when_waited_for(self) -> bool:  # type: ignore[override]
        """Whether who waits would block what ends it.

        Reused, as whoever waits looks at it: `run_here` does not run anything, but raises a RuntimeError.
        """
        return bool(self.executor._in_ending_thread() or self.executor.client.asynchronous)

    def run_here(self) -> None:
        self.executor._may_block()

    def request_cancel(self, reason: str | None = None) -> bool:
        asked = super().request_cancel(reason)
        if asked:
            self.executor._stop(self)
        return asked

    def pause(self, paused: bool) -> bool:
        asked = super().pause(paused)
        if asked:
            self.executor._instruct(self)
        return asked

    def listen(self, subscription: Subscription) -> None:
        super().listen(subscription)
        if self._speaks:
            self.executor._instruct(self)

    def hear_news(self, news: News) -> None:
        """Of its attempts the highest counts."""
        with self.monitor.lock:  # in the other thread it may be ending just now
            if self.finished or news.run_id < self._run_id:
                return
            if news.run_id > self._run_id:
                self._run_id = news.run_id
                self._begin(time() - news.seconds)
            state = ProgressState(n=news.n, total=news.total, status=news.status)
            self.slot.hear(state, news.paused and news.status == PAUSED, news.paused_seconds)  # type: ignore[union-attr]
            for message in news.messages or ():
                self.hear(message)
            self._speaks = news.messages is None
            to_be_heard = self._speaks and bool(self.outlets)
        if to_be_heard or news.paused != self.paused:  # it may not have been there yet when the workers were told
            self.executor._instruct(self)

    def _begin(self, now: float) -> None:
        self.pass_on()  # what an earlier attempt has said
        again, self.started_at = self.started_at is not None, now
        if not self.start(_RemoteSlot(), None):  # type: ignore[arg-type]
            self.executor._stop(self)  # all were to stop, and it came too late to be one of them
        if not again and self.future is not None:
            self.future.set_running_or_notify_cancel()

    def finish(self, status: str) -> None:
        with self.monitor.lock:
            super().finish(status)

    # What follows is called in the thread that ends futures.

    def end_with(self, packed: Packed) -> None:
        """Take over what `relay.run` has returned."""
        if self.finished:  # or what Dask says of a task that nobody runs any more
            return
        try:
            outcome, pickled = packed
            ended = Outcome(*pickle.loads(outcome))
        except Exception:
            ended = None
        if ended is None or (ended.topic, ended.number) != (self.executor._topic, self.number):
            self.end_failed(
                ValueError("another client has a task with this key: there is its outcome, and none of this one")
            )
            return
        with self.monitor.lock:
            if self.slot is None:  # a short one, of which no worker has told
                self._begin(time())
            for message in ended.messages:
                self.hear(message)
            self.slot.hear(ended.state, False, ended.paused_seconds)  # type: ignore[union-attr]  # but no final status, until `finish` makes it the final state
        try:
            value = pickle.loads(pickled)
        except Exception as error:
            self.end_failed(error)
            return
        if ended.ended_as == DONE:
            self._end(lambda future: future.set_result(value))
        elif ended.ended_as == CANCELLED:
            self.end_cancelled()
        else:
            if isinstance(value, SystemExit):  # unpickled without its `__init__`, which sets `code`: the exit status
                SystemExit.__init__(value, *value.args)
            self.end_failed(value)

    def end_cancelled(self) -> None:
        self.cancel_requested = True
        self.end_failed(asyncio.CancelledError())

    def end_failed(self, error: BaseException) -> None:
        self._end(lambda future: future.set_exception(error))

    def _end(self, set_outcome: Callable[[Future[Any]], None]) -> None:
        future = self.future
        if future is not None and not self.finished:
            if self.dask_future is not None:  # before anybody knows of the end, who may use its key again
                self.dask_future.release()  # type: ignore[no-untyped-call]
            try:
                set_outcome(future)
            finally:
                self.future = self.dask_future = None
                self.executor._forget(self)


class DaskFuture(ProgressFuture[Any]):
    """A future of a task on a cluster, where only the workers know whether it has begun."""

    _task: DaskTask

    def cancel(self, msg: str | None = None, *, kill_after: float | None = None) -> bool:
        check_message(msg)
        self._task.checked_kill_after(kill_after)
        if self.done():
            return self.cancelled()
        return self._task.request_cancel(msg) or self._task.snapshot()["status"] == CANCELLED


class DaskProgressExecutor(ProgressExecutor):
    """Runs tasks on the cluster of `client`, a `distributed.Client`; without one, on a local cluster of its own.

    Dask's own options may be given to `submit`: `workers`, `resources`, `retries`, `priority`, `key`,
    `allow_other_workers` and `fifo_timeout`. A keyword is Dask's unless the function has a parameter of that name, or takes
    any keyword. Dask futures among the arguments are replaced by their values on the cluster.

    ConnectionError is the outcome of all tasks if the connection to the scheduler is lost.
    """

    def __init__(self, client: "distributed.Client | None" = None) -> None:
        self._owns_client = client is None
        if client is None:
            client = local_client()
            weakref.finalize(self, _close, client)
        self.client: Any = client
        self._topic = _topic_of(client)
        self._tasks: dict[int, DaskTask] = {}
        self._connection: object = None
        self._arrived: list[DaskTask] = []
        self._gathering = False
        self._fetching: set[asyncio.Task[None]] = set()
        self._to_stop: deque[DaskTask] = deque()
        self._to_instruct: deque[DaskTask] = deque()
        self._asking = False
        self._instructing = False
        self._patience = _PATIENCE[0]
        # Not the client's own thread: in there no done callback could wait for anything of Dask's, and a slow one would
        # have the scheduler take the client for lost.
        self._ending_threads: list[int] = []
        self._ending = ThreadPoolExecutor(1, "progress_executor", _note_thread, (self._ending_threads,))
        self._closed = False
        self._leaving = threading.RLock()
        self._unsubscribe = weakref.finalize(self, _unsubscribe, client, self._topic)
        self._unsubscribe.atexit = False
        self._set_up()
        executors_to_leave.add(self)

    def _enqueue(self, call: Call) -> ProgressFuture[Any]:
        fn, _, kwargs = call
        options = _take_options(fn, kwargs)
        task = DaskTask(self._monitor, call, self, next(_numbers))
        future = task.future = DaskFuture(task)
        try:
            pickled = io.BytesIO()
            pickler = _Pickler(pickled)
            pickler.dump(call)
            packet = pickle.dumps((self._topic, task.number, pickled.getvalue()))
        except Exception as error:
            future.set_exception(error)
            return future
        task.call = None  # it is on its way
        key = options.pop("key", None) or f"{getattr(fn, '__name__', type(fn).__name__)}-{uuid.uuid4().hex}"
        if key in self.client.futures and not self.client.asynchronous:
            self.client.sync(asyncio.sleep, 0)  # it is known there until the loop has heard of a release
        if key in self.client.futures:
            raise ValueError(f"there is a task with the key {key!r}, which would share its fate")
        with SigintDeferred(), self._leaving:  # a task that is noted and that nobody follows would never end
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            task.connection = self._listen()
            self._tasks[task.number] = task
            try:
                task.dask_future = self.client.submit(_RUN, packet, *pickler.futures, key=key, **options)
            except BaseException as error:
                del self._tasks[task.number]
                if isinstance(error, Exception) and not self._is_connected(task.connection):  # closed just now
                    raise _lost() from error
                raise
            self.client.loop.add_callback(self._follow, task)
        return future

    def _listen(self) -> object:
        """Have the workers' events heard; again after the client has lost its connection and found another: that one."""
        connection = self.client.scheduler_comm
        if not self._is_connected(connection):
            raise ConnectionError("the Dask client is not connected")
        if self._connection is not connection:
            self._connection = connection
            self.client.subscribe_topic(self._topic, _weakly(self._hear))
        return connection

    def _is_connected(self, connection: object) -> bool:
        return connection is not None and connection is self.client.scheduler_comm and self.client.status == "running"

    def _stop(self, task: DaskTask) -> None:
        """Have the workers asked to stop this task; from any thread."""
        with SigintDeferred():  # else it may pass for asked though nobody asks, for ever
            self._to_stop.append(task)
            if not self._asking:
                self._asking = True
                self.client.loop.add_callback(self._ask)

    def _instruct(self, task: DaskTask) -> None:
        """Have the workers told whether this task is to stand still, and whether it is listened to; from any thread."""
        with SigintDeferred():
            self._to_instruct.append(task)
            if not self._instructing:
                self._instructing = True
                self.client.loop.add_callback(self._instruct_workers)

    # What follows runs in the client's event loop.

    def _hear(self, event: tuple[float, bytes]) -> None:
        for news in itertools.starmap(News, pickle.loads(event[1])):
            task = self._tasks.get(news.number)
            if task is not None:
                task.hear_news(news)

    async def _instruct_workers(self) -> None:
        """Tell all workers what is to stand still, or listened to; again as long as one of them has not answered.

        A task that begins only then tells that it does, and its worker is told once more.
        """
        await asyncio.sleep(_BATCH)
        self._instructing = False
        tasks = set()
        while self._to_instruct:
            tasks.add(self._to_instruct.popleft())
        wanted = {task.number: (task.paused, bool(task.outlets)) for task in tasks if not task.finished}
        try:
            telling = self.client._run(_INSTRUCT, self._topic, wanted, on_error="return")
            answers = await asyncio.wait_for(telling, _PATIENCE[1])
            told = not any(isinstance(answer, Exception) for answer in answers.values())
        except Exception:
            told = self.client.status != "running"  # else `_follow` ends them
        if not told:
            for task in tasks:
                if not task.finished:
                    self.client.loop.call_later(_AGAIN, self._instruct, task)

    async def _follow(self, task: DaskTask) -> None:
        """Wait for Dask to end the task, or for its having ended."""
        future: Any = task.dask_future
        if future is None:
            return
        state = future._state
        del future
        if not self._is_connected(task.connection):  # what is submitted meanwhile goes nowhere, and Dask does not tell
            self._end_later(task, task.end_failed, _lost())
            return
        while state.status in ("pending", "lost"):
            await state.wait()
        if task.finished:
            pass
        elif state.status == "finished":
            self._arrived.append(task)
            if not self._gathering:
                self._gathering = True
                self.client.loop.add_callback(self._gather)
        elif state.status == "error":
            self._end_later(task, task.end_failed, state.exception.with_traceback(state.traceback))
        elif not self._is_connected(task.connection):
            self._end_later(task, task.end_failed, _lost())
        else:  # somebody else has cancelled it, or restarted the cluster
            task.request_cancel()

    async def _gather(self) -> None:
        """Fetch the outcomes that have arrived, all at once, and then those that have arrived meanwhile."""
        try:
            while self._arrived:
                tasks, self._arrived = self._arrived, []
                # One that is lost with its worker comes when its task has run again: the others do not wait for that.
                fetching = asyncio.ensure_future(self._fetch(tasks))
                self._fetching.add(fetching)  # asyncio itself may forget what it runs
                fetching.add_done_callback(self._fetching.discard)
                await asyncio.wait([fetching], timeout=INTERVAL)
        finally:
            self._gathering = False

    async def _fetch(self, tasks: list[DaskTask]) -> None:
        there = [(task, future) for task in tasks if (future := task.dask_future) is not None]
        try:
            outcomes = await self.client._gather([future for _, future in there])
        except Exception as error:
            if len(there) > 1:  # each by itself: one that is lost waits until it has run again
                await asyncio.gather(*(self._fetch([task]) for task, _ in there))
                return
            (task, future) = there[0]
            if future.status == "finished" and self.client.status == "running":
                self._end_later(task, task.end_failed, error)
            else:  # its worker was lost meanwhile, or the client closed
                self.client.loop.add_callback(self._follow, task)
            return
        for (task, _), outcome in zip(there, outcomes, strict=True):
            self._end_later(task, task.end_with, outcome)

    async def _ask(self) -> None:
        """Ask all workers to stop what is to be stopped, and end as cancelled what none of them runs, nor will begin.

        | | Dask has given it up | Dask has its end | Dask waits for it |
        |---|---|---|---|
        | a worker runs it, or does not answer | ask again | ask again | ask again |
        | one has run it to its end | cancelled | ask again: its outcome is on the way | ask again: likewise |
        | none has it, and all have noted not to begin it | cancelled | ask again: likewise | cancelled |
        """
        await asyncio.sleep(_BATCH)
        self._asking = False
        tasks = {}
        while self._to_stop:
            task = self._to_stop.popleft()
            if task.number in self._tasks:
                tasks[task.number] = task
        if not tasks:
            return
        reasons = {number: task.reason for number, task in tasks.items()}
        asking = self.client._run(_CANCEL, self._topic, reasons, on_error="return")
        try:
            answers = await asyncio.wait_for(asking, self._patience)
        except Exception as error:
            # To a worker that was just lost Dask tries to connect for 30 s, and that it was lost is known much sooner.
            if isinstance(error, TimeoutError):
                self._patience = min(2 * self._patience, _PATIENCE[1])
            if self.client.status == "running":  # else `_follow` ends them
                self._stop_later(tasks.values())
            return
        self._patience = _PATIENCE[0]
        answered = [answer for answer in answers.values() if not isinstance(answer, Exception)]
        running = {number for answer in answered for number in answer[0]}
        ended = {number for answer in answered for number in answer[1]}
        silent = any(isinstance(answer, OSError) for answer in answers.values())
        again = []
        for number, task in tasks.items():
            future = task.dask_future
            status = "finished" if future is None else future.status  # None: it is being submitted, or ends just now
            on_the_way = number in ended or status in ("finished", "error")
            given_up = status == "cancelled"
            if silent or number in running or (on_the_way and not given_up):
                again.append(task)
            else:
                self._end_later(task, task.end_cancelled)
        self._stop_later(again)

    def _stop_later(self, tasks: Iterable[DaskTask]) -> None:
        for task in tasks:
            self.client.loop.call_later(_AGAIN, self._stop, task)

    # The end

    def _end_later(self, task: DaskTask, how: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # all have ended, this one, too: it was shut down
            self._ending.submit(_end_safely, task, how, *args)

    def _forget(self, task: DaskTask) -> None:
        """It has ended; called in the thread in which tasks do."""
        del self._tasks[task.number]
        if self._closed and not self._tasks:
            self._close_client()

    def _close_client(self) -> None:
        """In the thread that ends futures, and for which nothing is left to do."""
        if not self._end.reached:
            self._ending.shutdown(wait=False)
            try:
                self._unsubscribe()
                if self._owns_client:
                    self.client.close()
            finally:
                self._end.reach()

    def _in_ending_thread(self) -> bool:
        return threading.get_ident() in self._ending_threads

    def _may_block(self) -> None:
        if self._in_ending_thread():
            raise RuntimeError("a done callback cannot wait for a task of its own executor, nor for its end")
        if self._tasks and self.client.asynchronous:
            if self.client.loop.asyncio_loop.is_running():
                raise RuntimeError("this would block the event loop in which the Dask client runs: await the future")
            for task in tuple(self._tasks.values()):  # nobody follows them any more
                self._end_later(task, task.end_failed, ConnectionError("the event loop of the Dask client has ended"))

    def _leave(self) -> None:
        self._may_block()
        super()._leave()

    def _close(self) -> None:
        with self._leaving:
            self._closed = True
            if not self._tasks:
                with contextlib.suppress(RuntimeError):  # it was done already
                    self._ending.submit(self._close_client)

    def _pending(self) -> Iterable[Callable[[], object]]:
        # Those of which no worker has told.
        return [task.request_cancel for task in tuple(self._tasks.values()) if task.slot is None]


def _take_options(fn: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take from `kwargs` what is not for the function but for Dask."""
    names = OPTIONS.intersection(kwargs)
    if names:
        try:
            parameters = inspect.signature(fn, follow_wrapped=False).parameters  # a decorator has keywords of its own
        except (TypeError, ValueError):  # a builtin that does not tell
            return {}
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return {}
        names -= parameters.keys()
    return {name: kwargs.pop(name) for name in names}


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Collects the Dask futures instead of pickling them: Dask sees to it that their values come to the worker."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.futures: list[distributed.Future[Any]] = []

    def persistent_id(self, thing: object) -> int | None:
        if not isinstance(thing, distributed.Future):
            return None
        self.futures.append(thing)
        return len(self.futures) - 1


class _ByValue:
    """Stands for a function, and is unpickled as that, also where this package is not: on a scheduler, say."""

    def __init__(self, function: Callable[..., Any]) -> None:
        # cloudpickle takes along by value, with the globals that they use, what it believes to be of the main program.
        function.__module__ = "__main__"
        self._pickled = cloudpickle.dumps(function)

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._pickled,)

    def __call__(self) -> None:
        """Never called; but `submit` asks for a callable."""


def _run(packet: bytes, *values: Any) -> Any:
    try:
        import progress_executor
        from progress_executor._executors import relay

        # `__version__` is the client's, which came along. In another version the tuples may be others.
        if progress_executor.__version__ != __version__:
            raise ImportError(f"it has {progress_executor.__version__}")
    except ImportError as error:
        needed = f"progress-executor {__version__}, with its extra `dask`"
        raise ImportError(f"this Dask worker needs {needed}: {error}") from error
    return relay.run(packet, *values)


def _cancel(topic: str, reasons: dict[int, str | None], dask_worker: Any) -> tuple[list[int], list[int]]:
    from progress_executor._executors import relay

    return relay.Relay.of(dask_worker).cancel(topic, reasons)


def _instruct(topic: str, wanted: dict[int, tuple[bool, bool]], dask_worker: Any) -> None:
    from progress_executor._executors import relay

    relay.Relay.of(dask_worker).instruct(topic, wanted)


_RUN, _CANCEL, _INSTRUCT = _ByValue(_run), _ByValue(_cancel), _ByValue(_instruct)


def _note_thread(threads: list[int]) -> None:
    threads.append(threading.get_ident())


def _end_safely(task: DaskTask, how: Callable[..., None], *args: Any) -> None:
    try:
        how(*args)
    except BaseException as error:
        logger.exception("a task on Dask could not be ended as it did")
        task.end_failed(error)


_numbers = itertools.count()
"""Of tasks: what comes late for one of an executor whose topic another has taken over is not taken for that one's."""

_unused_topics: "weakref.WeakKeyDictionary[Any, list[str]]" = weakref.WeakKeyDictionary()
"""By client. The scheduler keeps each topic, with its last events, for as long as it runs: they are used again."""


def _topic_of(client: Any) -> str:
    try:
        return _unused_topics[client].pop()
    except LookupError:
        return f"progress_executor-{uuid.uuid4().hex}"


def _unsubscribe(client: Any, topic: str) -> None:
    with contextlib.suppress(Exception):  # it was never subscribed to, or the client is being closed
        client.unsubscribe_topic(topic)
    _unused_topics.setdefault(client, []).append(topic)


def _lost() -> ConnectionError:
    return ConnectionError("the connection to the Dask scheduler was lost")


def _close(client: Any) -> None:
    """Close the client of an executor that was dropped, perhaps in its own event loop, where it cannot wait for itself."""
    if client.asynchronous:
        threading.Thread(target=client.close).start()
    else:
        client.close()


def _weakly(method: Callable[[Any], None]) -> Callable[[Any], None]:
    """The bound method, which does not keep its object alive."""
    reference = weakref.WeakMethod(method)

    def call(argument: Any) -> None:
        method = reference()
        if method is not None:
            method(argument)

    return call
