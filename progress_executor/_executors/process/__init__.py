"""The pool of processes: `pool.py` has the executor, `link.py` the caller's side of one worker, `worker.py` the process."""

from .link import WorkerDied
from .pool import ProcessPoolProgressExecutor

__all__ = ["ProcessPoolProgressExecutor", "WorkerDied"]
