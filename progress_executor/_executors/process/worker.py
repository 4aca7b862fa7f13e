"""The worker process: takes one call after the other from its pipe, and answers with what became of it."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from time import time
from typing import Any

from ..._ambient import current
from ..._messages import Sender
from ..._slots import Slot
from ..._speedups import Updater
from ..._speedups._layout import SLOT_SIZE
from .memory import SharedMemory
from .wire import (
    FAILED,
    MESSAGE,
    READY,
    SKIPPED,
    TAKES_PROGRESS,
    VALUE,
    Message,
    content,
    error_message,
    message,
    receiver,
    sender,
    short_message,
)

_lock = threading.Lock()


class _Running:
    """The task that runs, or ran, for its code that asks for the Updater: made then, as that takes time and few ask."""

    def __init__(self, slot: Slot, send: Callable[[Message], object]) -> None:
        self._slot: Slot | None = slot
        self._send = send
        self._sender: Sender | None = None
        self.updater: Updater | None = None

    def __call__(self) -> Updater:
        with _lock:  # threads of the task may ask at once
            if self.updater is None:
                self.updater = Updater() if self._slot is None else Updater(self._slot.buffer, None, self.say)
            return self.updater

    def say(self, kind: str, payload: Any, size: int) -> None:
        """Send a message, through the pipe on which the outcome follows."""
        with _lock:
            if self._sender is None and self._slot is not None:
                self._sender = Sender(self._slot, lambda told: self._send(message(MESSAGE, told)))
        if self._sender is not None:
            self._sender(kind, payload, size)

    def end(self) -> None:
        """Threads that outlive the task count for nobody from now on: the slot is the next one's."""
        with _lock:
            self._slot = None
            updater, self.updater = self.updater, None  # it leads back here
            if updater is not None:
                updater._detach()
        if self._sender is not None:
            self._sender.end()

    def end_in_child(self) -> None:
        """In a process that the task has forked: it counts for itself, and says nothing."""
        self._slot = None
        if self.updater is not None:
            self.updater._detach_in_child()
        if self._sender is not None:
            self._sender.leave()


_running: _Running | None = None

_ends: tuple[Connection, ...] = ()
"""This worker's own ends of its pipes."""


def work(
    calls: Connection,
    answers: Connection,
    life: Connection,
    memory: SharedMemory,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    *others: Connection,
) -> None:
    """Run until the caller closes `calls`, or ends; `others` are not for this process."""
    global _ends
    for end in others:
        end.close()
    _ends = calls, answers
    set_signals()
    _end_with_caller(life)
    receive, send = receiver(calls), sender(answers)
    slots = [Slot(memory.view[at : at + SLOT_SIZE]) for at in range(0, len(memory.view), SLOT_SIZE)]
    try:
        if initializer is not None:
            try:
                initializer(*initargs)
            except BaseException:
                logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=True)
                send(short_message(FAILED))
                return
        send(short_message(READY))
        while True:
            packet = receive()
            answer = _answer(packet, slots[packet[0] & ~TAKES_PROGRESS], send)
            del packet
            send(answer)
            del answer
    except (EOFError, OSError):  # the caller wants no more, or is gone
        return


def _answer(packet: Message, slot: Slot, send: Callable[[Message], object]) -> Message:
    slot.start(time())
    if not slot.may_begin():
        return short_message(SKIPPED)
    try:
        return message(VALUE, _run(packet, slot, send))
    except BaseException as error:
        return error_message(error)


def _run(packet: Message, slot: Slot, send: Callable[[Message], object]) -> Any:
    global _running
    fn, args, kwargs = content(packet)
    running = _running = _Running(slot, send)
    if packet[0] & TAKES_PROGRESS:
        kwargs["progress"] = running()
    del packet
    token = current.set(running)
    try:
        return fn(*args, **kwargs)
    finally:
        current.reset(token)
        running.end()


def set_signals() -> None:
    # Ctrl-C reaches the whole process group; the caller decides what it means. SIGTERM must end a worker, but a forked one
    # has inherited the caller's handler, and the pipe through which asyncio hears of signals.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_with_caller(life: Connection) -> None:
    """Have this process killed when its caller ends, in the midst of a task, too: then `life` ends."""
    try:
        # Where Linux can do so no thread is needed, and the task may fork without a warning.
        from fcntl import F_GETFL, F_SETFL, F_SETOWN, F_SETSIG, fcntl

        fcntl(life.fileno(), F_SETOWN, os.getpid())
        fcntl(life.fileno(), F_SETSIG, signal.SIGKILL)
        fcntl(life.fileno(), F_SETFL, fcntl(life.fileno(), F_GETFL) | os.O_ASYNC)
    except (ImportError, OSError, AttributeError):
        threading.Thread(target=_exit_after, args=(life,), daemon=True, name="end-with-caller").start()
    else:
        if life.poll():
            os._exit(1)


def _exit_after(life: Connection) -> None:
    with suppress(OSError):  # Windows tells it so
        life.poll(None)
    os._exit(1)


def _leave_parent_alone() -> None:
    """In a process that a task has forked: the slot is its parent's, and an end of a pipe held here would hide its death."""
    global _ends, _lock
    _lock = threading.Lock()
    if _running is not None:
        _running.end_in_child()
    for end in _ends:
        end.close()
    _ends = ()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_parent_alone)
