"""Many tasks, one bar each, on the executor that you name: `python examples/watch_many.py [thread|process|sync] [--cancel]`.

With --cancel the first task is cancelled after two seconds. `--scale 0.1` makes everything ten times shorter.
"""

import argparse
import asyncio
import time

import tqdm

from progress_executor import *


def collatz(steps):
    """Some work for the processor."""
    value = 17
    for _ in range(int(steps)):
        value = value // 2 if value % 2 == 0 else 3 * value + 1
    return value


def work(n, scale, progress: Updater):
    progress.total = n
    for i in progress(range(2 * n)):
        if i % 2 == 0:
            collatz(2_500_000 * scale)
        else:
            time.sleep(0.1 * scale)
    return n


async def main(executor, scale, cancel):
    values = [30, 40, 35, 60, 20, 50, 38, 27]
    tasks = []
    try:
        with executor:
            async with asyncio.TaskGroup() as tg:
                for i, value in enumerate(values):
                    future = executor.submit(work, value, scale)
                    future.add_tqdm_callback(tqdm.tqdm, {"desc": f"task {i}"}, triggers=["now", "running", "cancelled"])
                    tasks.append(tg.create_task(future.check_for_progress()))
                if cancel:
                    await asyncio.sleep(2 * scale)
                    tasks[0].cancel()
    finally:
        for i, (value, task) in enumerate(zip(values, tasks)):
            print(f"task {i} of {value}: {'cancelled' if task.cancelled() else task.result()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("executor", nargs="?", choices=["thread", "process", "sync"], default="process")
    parser.add_argument("--cancel", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    executors = {
        "thread": lambda: ThreadPoolProgressExecutor(max_workers=3),
        "process": lambda: ProcessPoolProgressExecutor(max_workers=3),
        "sync": SyncProgressExecutor,
    }
    asyncio.run(main(executors[options.executor](), options.scale, options.cancel))
