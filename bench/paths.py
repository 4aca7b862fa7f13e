"""Executes each hot path a short and a long time: what the gate counts instructions of.

callgrind writes out and clears its counters whenever the C function `getpgid` is entered, which nothing here calls but
`mark`. So one process, which has to start and import under callgrind once, is enough for all of the paths.
"""

import gc
import itertools
import os
from collections.abc import Callable

from timing import calling, exhaust

# The form, and the limit that is measured in the same way: a ratio to it says the same on another machine.
LIMITS = {
    "iterate": "itertools.chain",
    "update()": "empty.clear()",
    "update(1)": "empty.clear()",
    "update(0.5)": "empty.clear()",
    "progress(1)": "empty.get(1)",
}
NAMES = (
    *sorted(set(LIMITS.values())),
    "interpreted iterate",
    "interpreted update(1)",
    *(f"compiled {path}" for path in LIMITS),
)
SHORT, LONG = 10_000, 60_000  # what differs by chance, such as where memory lies, is then far below 1 %


# No new objects as items: where the allocator puts them would be counted, and that is chance.
def path(name: str) -> Callable[[int], None]:
    if name == "itertools.chain":
        return lambda count: exhaust(itertools.chain(itertools.repeat(None, count)))
    if name == "empty.clear()":
        return calling(name, empty=[])
    if name == "empty.get(1)":
        return calling(name, empty={})
    form, step = name.split(" ", 1)
    if form == "compiled":
        from progress_executor._speedups._updater_c import Updater
    else:
        from progress_executor._speedups._updater import Updater  # type: ignore[assignment]
    progress = Updater()
    if step == "iterate":
        return lambda count: exhaust(progress(itertools.repeat(None, count)))
    statement = step if step.startswith("progress") else f"progress.{step}"
    return calling(statement, progress=progress)


def mark() -> None:
    os.getpgid(0)


if __name__ == "__main__":
    gc.disable()
    for name in NAMES:
        try:
            run = path(name)
        except ImportError:  # no extension: the gate says so
            break
        run(1000)  # the interpreter has adapted its bytecode then, and update(0.5) has made n a float
        mark()
        run(SHORT)
        mark()
        run(LONG)
        mark()
