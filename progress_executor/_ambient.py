"""`current_progress()`: the Updater of the task that the calling code runs in, however deep.

The executors set it around the call of a task's function. It is a context variable, and so follows what is started in the
task's context: `asyncio.to_thread`, `contextvars.copy_context().run`.
"""

from collections.abc import Callable
from contextvars import ContextVar

from ._speedups import Updater

current: "ContextVar[Updater | Callable[[], Updater]]" = ContextVar("progress_executor.current_progress")
"""That, or what makes it when it is first asked for; for executors."""


def current_progress() -> Updater:
    """The Updater of the task that this is called in, also if its function has no parameter called `progress`.

    So library code can report, be cancelled and paused without an argument handed through. Outside of any task it is one
    that counts for itself, the same each time in the same context.
    """
    found = current.get(None)
    if isinstance(found, Updater):
        return found
    made = Updater() if found is None else found()
    current.set(made)
    return made
