"""Executors whose futures carry progress to the caller and cancellation into the running task."""

from typing import TYPE_CHECKING, Any

from ._speedups import IMPLEMENTATION, Updater
from .executors.base import ProgressExecutor
from .executors.sync import SyncProgressExecutor
from .executors.thread import ThreadPoolProgressExecutor
from .futures import ProgressFuture
from .groups import ProgressGroup
from .state import GroupState, ProgressState

if TYPE_CHECKING:
    from .executors.dask import (
        DaskProgressExecutor as DaskProgressExecutor,
    )  # not in __all__: where Dask is not, `*` is harmless
    from .executors.process import ProcessPoolProgressExecutor

# Without DaskProgressExecutor: `import *` is to work where Dask is not installed.
__all__ = [
    "IMPLEMENTATION",
    "GroupState",
    "ProcessPoolProgressExecutor",
    "ProgressExecutor",
    "ProgressFuture",
    "ProgressGroup",
    "ProgressState",
    "SyncProgressExecutor",
    "ThreadPoolProgressExecutor",
    "Updater",
]

__version__ = "1.0.0"


def __getattr__(name: str) -> Any:
    if name == "ProcessPoolProgressExecutor":  # imports multiprocessing, which not everybody needs
        from .executors.process import ProcessPoolProgressExecutor

        globals()[name] = ProcessPoolProgressExecutor
        return ProcessPoolProgressExecutor
    if name == "DaskProgressExecutor":
        from .executors.dask import (
            DaskProgressExecutor as DaskProgressExecutor,
        )  # not in __all__: where Dask is not, `*` is harmless

        globals()[name] = DaskProgressExecutor
        return DaskProgressExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
