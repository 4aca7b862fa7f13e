"""What goes through a worker's two pipes: calls one way, answers the other.

A message is a header of eight bytes and a pickle. The first byte is a place in the worker's memory, or the kind of an
answer; the other seven are the length of the whole.
"""

import io
import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]
from multiprocessing.reduction import ForkingPickler
from pickle import Pickler, PicklingError, UnpicklingError, loads
from typing import Any

READY, FAILED, SKIPPED, VALUE, ERROR, MESSAGE = range(6)
"""Kinds of answers: the worker may be given a task, its initializer failed; a task did not begin, returned, raised, says
something."""

TAKES_PROGRESS = 128
"""Added to the place of a task whose function is given an Updater."""

SMALL = 1 << 15
"""Bytes that always find room in an empty pipe."""


class _Pickler(Pickler):
    # What multiprocessing pickles its own way: a view of its registry, which takes longer to make than to pickle a call.
    dispatch_table = ForkingPickler(io.BytesIO()).dispatch_table


_HEADER = 8
_CHUNK = 1 << 16  # what a pipe holds, as a rule
_ROOM = 1 << 19  # what one holds that is to pass on 50 MB in two thirds of the time
_AT_ONCE = 1 << 30  # more than 2 GB are an error on macOS

Message = bytes | bytearray | memoryview


def message(first: int, what: object) -> memoryview:
    """A message with `what` pickled; raises what its pickling does."""
    buffer = io.BytesIO()
    buffer.write(bytes(_HEADER))
    _Pickler(buffer).dump(what)
    view = buffer.getbuffer()
    view[:_HEADER] = (len(view) << 8 | first).to_bytes(_HEADER, "little")
    return view


def short_message(first: int) -> bytes:
    """A message without content."""
    return (_HEADER << 8 | first).to_bytes(_HEADER, "little")


def content(received: Message) -> Any:
    """What was pickled in a message."""
    return loads(memoryview(received)[_HEADER:])


def sender(end: Connection) -> Callable[[Message], object]:
    """What writes a message into a pipe. OSError where nobody reads there any more."""
    if os.name != "posix":
        return end.send_bytes
    file = end.fileno()
    with suppress(ImportError, OSError):  # only Linux can; and there is a bound for all pipes of a user
        from fcntl import F_SETPIPE_SZ, fcntl

        fcntl(file, F_SETPIPE_SZ, _ROOM)

    def send(packet: Message) -> None:
        sent = os.write(file, packet)
        while sent < len(packet):
            sent += os.write(file, memoryview(packet)[sent : sent + _AT_ONCE])

    return send


def receiver(end: Connection) -> Callable[[], Message]:
    """What reads the next message from a pipe, a small one at once. EOFError where nobody writes there any more."""
    if os.name != "posix":
        return end.recv_bytes
    from mmap import MAP_PRIVATE, mmap

    file, read = end.fileno(), os.read
    behind = b""  # what was read behind the last message

    def receive() -> Message:
        nonlocal behind
        data, behind = behind, b""
        while len(data) < _HEADER:
            more = read(file, _CHUNK)
            if not more:  # also in the midst of a header
                raise EOFError
            data += more
        length = int.from_bytes(data[1:_HEADER], "little")
        if len(data) == length:
            return data
        if len(data) > length:
            behind = data[length:]
            return data[:length]
        whole = mmap(-1, length, MAP_PRIVATE)  # a bytearray would be filled with zeros first
        whole[: len(data)] = data
        with memoryview(whole) as view:
            got = len(data)
            while got < length:
                count = os.readv(file, [view[got : got + _AT_ONCE]])
                if not count:
                    raise EOFError
                got += count
        return memoryview(whole)

    return receive


def error_message(error: BaseException) -> memoryview:
    """The message that a task has raised `error`: its text and its traceback come through, whatever becomes of itself."""
    text = trace = type(error).__qualname__
    with suppress(BaseException):  # of its `__str__`, or of a warning that was made an error
        text = trace = f"{text}: {error}"
        trace = "".join(traceback.format_exception(error))
    try:
        pickled: bytes | None = bytes(message(ERROR, error)[_HEADER:])
    except BaseException as why:
        pickled, text = None, f"{text} (which cannot be pickled: {why!r})"
    return message(ERROR, (text, trace, pickled))


def outcome(answer: Message) -> tuple[Any, BaseException | None]:
    """What a task has returned, or raised; or the error of unpickling that."""
    try:
        if answer[0] == VALUE:
            return content(answer), None
        return None, _received_error(answer)
    except BaseException as error:
        return None, without_frames(error)


def _received_error(answer: Message) -> BaseException:
    """The error that a task has raised, or one that tells of it; its cause is the traceback in the worker."""
    text, trace, pickled = content(answer)
    error: BaseException
    if pickled is None:
        error = PicklingError(f"the task raised {text}")
    else:
        try:
            error = loads(pickled)
            if not isinstance(error, BaseException):
                raise TypeError(f"it became {error!r}")
        except BaseException as why:
            error = UnpicklingError(f"the task raised {text} (which cannot be unpickled: {why!r})")
    return _with_trace(error, trace)


def without_frames(error: BaseException) -> BaseException:
    """It, with a text for its traceback, whose frames would keep alive what they hold: for a future that they hold, too."""
    trace = "".join(traceback.format_exception(error))
    error.__traceback__ = error.__context__ = None
    return _with_trace(error, trace)


def _with_trace(error: BaseException, trace: str) -> BaseException:
    cause = RemoteTraceback(f'\n"""\n{trace}"""')
    BaseException.__setattr__(error, "__cause__", cause)  # an error may forbid it, like a frozen dataclass
    return error
