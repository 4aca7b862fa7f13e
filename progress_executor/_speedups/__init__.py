"""The hot path. This file picks its form, and `IMPLEMENTATION` says which one it picked: "cython" or "python".

The compiled form is taken where it was built, unless PROGRESS_EXECUTOR_NO_EXTENSIONS is set to anything but "" or "0".
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._updater import IMPLEMENTATION, Updater, fence
elif os.environ.get("PROGRESS_EXECUTOR_NO_EXTENSIONS", "") not in ("", "0"):
    from ._updater import IMPLEMENTATION, Updater, fence
else:
    try:
        from ._updater_c import IMPLEMENTATION, Updater, fence
    except ImportError:  # not built, or built for another interpreter, or a subinterpreter that refuses it
        from ._updater import IMPLEMENTATION, Updater, fence

__all__ = ["IMPLEMENTATION", "Updater", "fence"]
