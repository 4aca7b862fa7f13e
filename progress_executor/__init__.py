"""Executors whose futures carry progress to the caller and cancellation into the running task."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._ambient import current_progress
from ._executors.base import ProgressExecutor
from ._executors.sync import SyncProgressExecutor
from ._executors.thread import ThreadPoolProgressExecutor
from ._futures import ProgressFuture
from ._groups import ProgressGroup
from ._sinks import Sink, View
from ._speedups import IMPLEMENTATION, Updater
from ._state import GroupState, ProgressState

if TYPE_CHECKING:
    from ._executors.dask import DaskProgressExecutor as DaskProgressExecutor
    from ._executors.process import ProcessPoolProgressExecutor, WorkerDied

# Without DaskProgressExecutor: `import *` is to work where Dask is not installed.
__all__ = [
    "IMPLEMENTATION",
    "GroupState",
    "ProcessPoolProgressExecutor",
    "ProgressExecutor",
    "ProgressFuture",
    "ProgressGroup",
    "ProgressState",
    "Sink",
    "SyncProgressExecutor",
    "ThreadPoolProgressExecutor",
    "Updater",
    "View",
    "WorkerDied",
    "current_progress",
]

__version__ = "1.0.0"


# What brings along multiprocessing, or Dask, which not everybody needs, or has.
_LATE = {
    "DaskProgressExecutor": "._executors.dask",
    "ProcessPoolProgressExecutor": "._executors.process",
    "WorkerDied": "._executors.process",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LATE[name], __name__), name)
    return value
