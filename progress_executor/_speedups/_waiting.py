"""How a task waits for its caller. Plain Python in both forms: compiled code runs no signal handler of its own accord, and
one whose signal came between two sleeps would not be called before the task goes on.
"""

from collections.abc import Callable
from time import sleep


def wait_while(condition: Callable[[], bool]) -> None:
    """Look less and less often, in the end every 50 ms: a look takes 0.1 ms, and across processes nobody can be woken."""
    pause = 0.001
    while condition():
        sleep(pause)
        pause = min(1.5 * pause, 0.05)
