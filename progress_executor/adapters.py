"""What an executor of your own is made of: docs/extending.md, and examples/loky_executor.py, a whole one.

| | |
|---|---|
| `Task` | one submitted call, on the caller's side |
| `Slot` | the memory in which it reports: `SLOT_SIZE` bytes, which hold `EMPTY` at first |
| `run_call(call, slot, send)` | runs it, where it is to run |
"""

from ._slots import EMPTY, Slot
from ._speedups._layout import SLOT_SIZE
from ._tasks import Task, run_call

__all__ = ["EMPTY", "SLOT_SIZE", "Slot", "Task", "run_call"]
