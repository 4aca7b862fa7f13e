"""What stands on a real screen while bars come, move and go: `python -m tests.screen --help`.

A program on a pseudo-terminal (`child`) does what its scenario says, with a clock that stands still, and writes after each
step what should be seen now, as the title of its window, which no screen shows. `check` replays its output on a screen up
to each title and compares, to the last character. Needs pyte.
"""

import argparse
import itertools
import json
import os
import queue
import random
import sys
from dataclasses import dataclass
from pathlib import Path

SIZES = ["80x24", "100x10", "40x12"]
BARS = [3, 16, 40]
LEAVES = [True, False, None]
HINT = " ... (more hidden) ..."
MARK = "\x1b]0;", "\x07"


@dataclass(frozen=True)
class Scenario:
    """`bars` tasks, `at_once` of them running; `stock` leaves the bars to tqdm's own refresh and close."""

    size: str = "80x24"
    bars: int = 16
    at_once: int = 3
    leave: bool | None = True
    stock: bool = False
    seed: int = 0

    @property
    def columns(self):
        return int(self.size.split("x")[0])

    @property
    def rows(self):
        return int(self.size.split("x")[1])

    def __str__(self):
        leave = {True: "left", False: "erased", None: "the first left"}[self.leave]
        return f"{self.size}, {self.bars} bars, {self.at_once} at once, {leave}{', stock tqdm' if self.stock else ''}"


def child(scenario):
    """Runs on the terminal."""
    import tqdm
    import tqdm.std

    import progress_executor.bars
    from progress_executor import ThreadPoolProgressExecutor

    tqdm.std.time = lambda: 1000.0
    progress_executor.bars.time = lambda: 1000.0
    progress_executor.bars._CLOCK = 1e9
    if scenario.stock:
        progress_executor.bars._is_plain = lambda bar: False
    tqdm.tqdm.monitor_interval = 0
    chance = random.Random(scenario.seed)
    tasks, left, live, ended, users = [], [], {}, set(), []

    def work(orders, total, progress):
        progress.total = total
        while True:
            order, done = orders.get()
            try:
                if order == "fail":
                    raise ValueError
                if order == "end":
                    return
                progress.update(order)
            finally:
                done.put(None)

    def tell(orders, order):
        done = queue.SimpleQueue()
        orders.put((order, done))
        done.get()

    def mark():
        executor._board.pump()
        live.update((future, made[0]) for future, _, made in tasks if made and future not in ended)
        for future, bar in tuple(live.items()):
            if future.done():
                del live[future]
                ended.add(future)
                if bar.leave:
                    left.append(str(bar))
        bars = [str(bar) for bar in (*live.values(), *users)]
        state = {"left": left, "live": bars}
        print(MARK[0] + json.dumps(state) + MARK[1], end="", file=sys.stderr, flush=True)

    with ThreadPoolProgressExecutor(scenario.at_once) as executor:
        for number in range(scenario.bars):
            orders = queue.SimpleQueue()
            future = executor.submit(work, orders, None if number % 4 == 3 else 2000)
            future._task.interval = 0
            made = []

            def make(number=number, made=made, **kwargs):
                bar = tqdm.tqdm(desc=f"b{number:02}" + "-long" * (number % 3), **kwargs)
                made.append(bar)
                return bar

            trigger = "now" if scenario.at_once >= scenario.bars else "running"
            future.add_tqdm_callback(make, {"leave": scenario.leave}, [trigger])
            tasks.append((future, orders, made))
        waiting, running = tasks.copy(), []
        for step in itertools.count():
            while waiting and waiting[0][0].state["status"] != "pending":
                running.append(waiting.pop(0))
            while waiting and len(running) < scenario.at_once:  # a worker is about to take it
                if waiting[0][0].state["status"] != "pending":
                    running.append(waiting.pop(0))
            if not running:
                break
            for _, orders, _ in running:
                if chance.random() < 0.5:
                    tell(orders, chance.randrange(1, 100))
            if chance.random() < 0.4:
                future, orders, _ = running.pop(chance.randrange(len(running)))
                how = chance.choice(["end", "end", "fail", "cancel"])
                if how == "cancel":
                    future.cancel()
                tell(orders, "end" if how == "cancel" and chance.random() < 0.1 else 1 if how == "cancel" else how)
                while not future.done():
                    pass
            elif chance.random() < 0.1:
                text = f"a line that was written in step {step}"[: scenario.columns - 1]
                tqdm.tqdm.write(text, file=sys.stderr)
                left.append(text)
            # As wide as the terminal: when it is closed, tqdm writes it over whatever stands in the first row.
            if not users and chance.random() < 0.1:
                users.append(tqdm.tqdm(desc="user", total=1000, leave=chance.random() < 0.5))
            elif users:
                users[0].update()
                users[0].refresh()
                if chance.random() < 0.3:
                    bar = users.pop()
                    bar.close()
                    if bar.leave:
                        left.append(str(bar))
            mark()
        for bar in users:
            bar.close()
            if bar.leave:
                left.append(str(bar))
        users.clear()
    mark()


def run(scenario):
    """The output of the child as text."""
    from .terminal import Terminal

    arguments = json.dumps(scenario.__dict__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    argv = [sys.executable, "-m", "tests.screen", "--child", arguments]
    with Terminal(argv, rows=scenario.rows, columns=scenario.columns, env=environment, cwd=os.getcwd()) as terminal:
        status = terminal.finish()
    return terminal.output, status


def check(scenario, output):
    """Yield for each marked moment what is wrong with the screen (or None), and the screen."""
    import pyte

    screen = pyte.HistoryScreen(scenario.columns, scenario.rows, history=10_000, ratio=1)
    stream = pyte.Stream(screen)
    *shown, rest = output.split(MARK[0])
    stream.feed(shown[0] if shown else rest)
    for part in [*shown[1:], rest] if shown else []:
        title, text = part.split(MARK[1], 1)
        lines = seen(screen)
        row = len(screen.history.top) + screen.cursor.y
        yield wrong(scenario, json.loads(title), lines, screen.cursor.x, row), lines
        stream.feed(text)


def seen(screen):
    """All lines from the first that has left the screen, without trailing blanks."""
    gone = ["".join(line[x].data for x in range(screen.columns)) for line in screen.history.top]
    return [line.rstrip() for line in (*gone, *screen.display)]


def wrong(scenario, expected, lines, column, row):
    """What is wrong, if anything; `row` counts from the first line of all."""
    while lines and not lines[-1]:
        lines = lines[:-1]
    left, block = lines[: len(expected["left"])], lines[len(expected["left"]) :]
    if left != [line.rstrip() for line in expected["left"]]:
        return f"these lines should stand above: {expected['left']}"
    live = [line.rstrip() for line in expected["live"]]
    capacity = scenario.rows - 2
    if len(live) > capacity:
        if block[capacity:] != [HINT]:
            return f"after {capacity} bars should stand that there are more"
        block = block[:capacity]
        if len(set(block)) != capacity or not set(block) <= set(live):
            return f"{capacity} of these should stand there, each once: {live}"
    elif sorted(block) != sorted(live):
        return f"these should stand there, each once: {live}"
    if column and not live:
        return f"the cursor should stand at the beginning of a line, not in column {column}"
    if not live and row != len(lines):
        return f"the cursor should stand below the last line, not in row {row + 1} of {len(lines)}"
    return None


def scenarios(stock=False):
    for size, bars, leave in itertools.product(SIZES, BARS, LEAVES):
        for at_once in {3, bars}:
            yield Scenario(size, bars, at_once, leave, stock)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--bars", type=int)
    parser.add_argument("--stock", action="store_true", help="with tqdm's own refresh and close")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dump", type=Path, metavar="FOLDER", help="where to write all the screens")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(Scenario(**options.child))
        return 0
    total = 0
    for scenario in scenarios(options.stock):
        if options.size not in (None, scenario.size) or options.bars not in (None, scenario.bars):
            continue
        scenario = Scenario(**{**scenario.__dict__, "seed": options.seed})
        output, status = run(scenario)
        screens = list(check(scenario, output))
        bad = [problem for problem, _ in screens if problem]
        total += len(bad) + bool(status)
        print(f"{scenario}: {len(bad)} of {len(screens)} screens are wrong{f', exit status {status}' if status else ''}")
        if bad:
            print(f"    {bad[0]}")
        if options.dump:
            options.dump.mkdir(parents=True, exist_ok=True)
            rule = "-" * scenario.columns
            text = "\n".join(f"{rule} {problem or 'right'}\n" + "\n".join(lines) for problem, lines in screens)
            (options.dump / f"{str(scenario).replace(', ', '_').replace(' ', '-')}.txt").write_text(text + "\n")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
