"""What stands on a real screen while bars come, move and go: `python -m tests.screen --help`.

A program on a pseudo-terminal (`Child`) does what its scenario says, with a clock of its own, and writes after each step
what should be seen now, as the title of its window, which no screen shows. `check` replays its output on a screen up to each
title and compares, to the last character. Needs pyte.
"""

import argparse
import itertools
import json
import logging
import os
import queue
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tqdm.asyncio
import tqdm.auto
import tqdm.std
from tqdm.contrib.logging import logging_redirect_tqdm

from progress_executor import ThreadPoolProgressExecutor, _bars

SIZES = ["80x24", "100x10", "40x12"]
BARS = [3, 16, 40]
LEAVES = [True, False, None]
TWISTS = {
    "resized": "the window changes its size",
    "pinned": "some bars have a row of their own",
    "delayed": "every other bar has a delay",
    "file": "all goes to a file of the terminal's that tqdm does not measure",
    "wide": "every other bar was given more columns than there are",
}
HINT = " ... (more hidden) ..."
MARK = "\x1b]0;", "\x07"


@dataclass(frozen=True)
class Scenario:
    """`bars` tasks, `at_once` of them running; `twist` is one of TWISTS or none.

    `stock` leaves the bars to tqdm's own refresh and close.
    """

    size: str = "80x24"
    bars: int = 16
    at_once: int = 3
    leave: bool | None = True
    twist: str = ""
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
        more = ("", f", {self.twist}")[bool(self.twist)] + ("", ", stock tqdm")[self.stock]
        return f"{self.size}, {self.bars} bars, {self.at_once} at once, {leave}{more}"


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


class Submitted(NamedTuple):
    """A task and its orders; the bar is in `made` as soon as there is one."""

    future: Any
    orders: Any
    made: list

    def tell(self, order):
        done = queue.SimpleQueue()
        self.orders.put((order, done))
        done.get()


def title(state):
    print(MARK[0] + json.dumps(state) + MARK[1], end="", file=sys.stderr, flush=True)


class Child:
    """Runs on the terminal."""

    def __init__(self, scenario):
        self.scenario = scenario
        self.clock = 1000.0
        tqdm.std.time = _bars.time = lambda: self.clock
        _bars._CLOCK = 1e9
        if scenario.stock:
            _bars._is_plain = lambda bar: False
        tqdm.tqdm.monitor_interval = 0
        self.stream = open(os.ttyname(2), "w") if scenario.twist == "file" else sys.stderr  # noqa: SIM115
        self.log = logging.getLogger("log")
        self.log.setLevel(logging.INFO)
        self.log.addHandler(logging.StreamHandler(self.stream))
        self.chance = random.Random(scenario.seed)
        self.rows, self.columns = scenario.rows, scenario.columns
        self.tasks, self.left, self.live, self.ended, self.users = [], [], {}, set(), []
        self.seen_running, self.running_for_long = set(), set()  # the latter since before the clock went on

    def run(self):
        with ThreadPoolProgressExecutor(self.scenario.at_once) as self.executor:
            for number in range(self.scenario.bars):
                self.submit(number)
            waiting, running = list(self.tasks), []
            for step in itertools.count():
                while waiting and (len(running) < self.scenario.at_once or waiting[0].future.state["status"] != "pending"):
                    if waiting[0].future.state["status"] != "pending":  # else a worker is about to take it
                        running.append(waiting.pop(0))
                if not running:
                    break
                self.move(running)
                if self.chance.random() < 0.4:
                    self.end(running.pop(self.chance.randrange(len(running))))
                elif self.chance.random() < 0.2:
                    self.write(step)
                self.move_users_bar()
                if self.scenario.twist == "resized" and step % 3 == 2:
                    self.resize(step // 3)
                elif self.scenario.twist == "delayed" and step == 4:
                    self.set_clock_on()
                self.mark()
            while self.users:
                self.close_users_bar()
        self.mark()

    def submit(self, number):
        scenario, orders, made = self.scenario, queue.SimpleQueue(), []
        future = self.executor.submit(work, orders, None if number % 4 == 3 else 2000)
        future._task.interval = 0
        cls = (tqdm.tqdm, tqdm.auto.tqdm, tqdm.asyncio.tqdm_asyncio, tqdm.std.tqdm)[number % 4]

        def make(**kwargs):
            made.append(cls(**kwargs))
            return made[0]

        look = {"desc": f"b{number:02}" + "-long" * (number % 3), "leave": scenario.leave}
        look |= {"unit_scale": number % 3 == 1, "dynamic_ncols": number % 5 == 1}
        if scenario.twist == "pinned" and number % 4 == 1:
            look["position"] = number + 1
        if scenario.twist == "delayed" and number % 2:
            look["delay"] = 5
        if scenario.twist == "file":
            look["file"] = self.stream
        if scenario.twist == "wide" and number % 2:
            look["ncols"] = 2 * self.columns
        future.add_tqdm_callback(make, look, ["now" if scenario.at_once >= scenario.bars else "running"])
        self.tasks.append(Submitted(future, orders, made))

    # What happens in a step

    def move(self, running):
        for task in running:
            if self.chance.random() < 0.5:
                task.tell(self.chance.randrange(1, 100))

    def end(self, task):
        how = self.chance.choice(["end", "end", "fail", "cancel"])
        if how == "cancel":
            task.future.cancel()
            how = "end" if self.chance.random() < 0.1 else 1
        task.tell(how)
        while not task.future.done():
            pass

    def write(self, step):
        text = f"a line that was written in step {step}"[: self.columns - 1]
        if step % 2 or self.stream is not sys.stderr:  # logging writes to a standard stream
            tqdm.tqdm.write(text, file=self.stream)
        else:
            with logging_redirect_tqdm([self.log]):
                self.log.info(text)
        self.left.append(text)

    def move_users_bar(self):
        """As wide as the terminal: when it is closed, tqdm writes it over whatever stands in the first row."""
        if not self.users and self.chance.random() < 0.1:
            file = self.chance.choice([sys.stdout, self.stream]) if self.stream is sys.stderr else self.stream
            self.users.append(tqdm.tqdm(desc="user", total=1000, leave=self.chance.random() < 0.5, file=file))
        elif self.users:
            self.users[0].update()
            self.users[0].refresh()
            if self.chance.random() < 0.3:
                self.close_users_bar()

    def close_users_bar(self):
        bar = self.users.pop()
        bar.close()
        if bar.leave:
            self.left.append(str(bar))

    def resize(self, step):
        import termios

        scenario = self.scenario
        sizes = (self.rows + 3, self.columns * 3 // 4), (scenario.rows - 3, scenario.columns), (scenario.rows, self.columns)
        self.rows, self.columns = sizes[step % 3]
        title({"size": (self.rows, self.columns)})
        termios.tcsetwinsize(2, (self.rows, self.columns))

    def set_clock_on(self):
        self.running_for_long |= self.seen_running
        self.clock += 10
        before, _bars._CLOCK = _bars._CLOCK, 0
        self.mark()
        _bars._CLOCK = before

    # What should be seen then

    def shown(self, number):
        return self.scenario.twist != "delayed" or number % 2 == 0 or number in self.running_for_long

    def mark(self):
        self.executor.poll()
        for number, task in enumerate(self.tasks):
            if task.made and number not in self.ended:
                self.live[number] = task.future, task.made[0]
        stale = list(filter(None, map(self.look_at, tuple(self.live))))
        bars = {number: str(bar)[: self.columns - 1] for number, (_, bar) in self.live.items() if self.shown(number)}
        pinned = {-self.live[number][1].pos: line for number, line in bars.items() if self.live[number][1].pos < 0}
        others = [line for number, line in bars.items() if self.live[number][1].pos >= 0]
        title({"left": self.left, "live": others + [str(bar) for bar in self.users], "pinned": pinned, "stale": stale})

    def look_at(self, number):
        """What is wrong with the numbers of a live bar, if anything; it goes to those that have ended if its task has."""
        future, bar = self.live[number]
        state = future.state
        if state["status"] != "pending":
            self.seen_running.add(number)
        if future.done():
            del self.live[number]
            self.ended.add(number)
            if bar.leave and self.shown(number):
                self.left.append(str(bar)[: self.columns - 1])  # as wide as tqdm makes a bar
        elif abs(bar.pos) >= self.rows - 2:
            return None
        same = (bar.n, bar.total, bar.postfix) == (state["n"], state["total"], state["status"])
        return None if same else f"{bar} is not {state}"


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
    narrowest = scenario.columns
    *shown, rest = output.split(MARK[0])
    stream.feed(shown[0] if shown else rest)
    for part in [*shown[1:], rest] if shown else []:
        title, text = part.split(MARK[1], 1)
        expected = json.loads(title)
        if "size" in expected:
            resize(screen, *expected["size"])
            narrowest = min(narrowest, screen.columns)
        else:
            lines = seen(screen)
            row = len(screen.history.top) + screen.cursor.y
            yield wrong(expected, lines, screen.lines, narrowest, screen.cursor.x, row), lines
        stream.feed(text)


def resize(screen, rows, columns):
    """As terminals do that move no text to the next line: what is too long is cut off, what is too much scrolls away.

    pyte's own drops the first lines and leaves the cursor where it was.
    """
    too_many = screen.cursor.y - (rows - 1)
    if too_many > 0:
        screen.cursor.y = screen.lines - 1
        for _ in range(too_many):
            screen.index()
        screen.cursor.y = rows - 1
    for y, line in tuple(screen.buffer.items()):
        if y >= rows:
            del screen.buffer[y]
        for x in [x for x in line if x >= columns]:
            del line[x]
    screen.lines, screen.columns = rows, columns
    screen.cursor.x = min(screen.cursor.x, columns - 1)


def seen(screen):
    """All lines from the first that has left the screen, without trailing blanks."""
    gone = ["".join(line[x].data for x in sorted(line)) for line in screen.history.top]
    return [line.rstrip() for line in (*gone, *screen.display)]


def wrong(expected, lines, rows, narrowest, column, row):
    """What is wrong, if anything. `row` counts from the first line of all; the screen was `narrowest` columns wide once."""
    if expected["stale"]:
        return f"not the numbers of their tasks: {expected['stale']}"
    while lines and not lines[-1]:
        lines = lines[:-1]
    left, block = lines[: len(expected["left"])], lines[len(expected["left"]) :]
    if len(left) != len(expected["left"]) or not all(
        should.startswith(line) and len(line) >= len(should[:narrowest].rstrip())
        for should, line in zip(expected["left"], left, strict=True)
    ):
        return f"these lines should stand above: {expected['left']}"
    problem = wrong_bars(expected, block, rows - 2)
    if problem or expected["live"] or expected["pinned"]:
        return problem
    if column:
        return f"the cursor should stand at the beginning of a line, not in column {column}"
    if row != len(lines):
        return f"the cursor should stand below the last line, not in row {row + 1} of {len(lines)}"
    return None


def wrong_bars(expected, block, capacity):
    for place, line in expected["pinned"].items():
        if block[int(place) : int(place) + 1] != [line.rstrip()]:
            return f"in row {place} of the bars should stand {line}"
    block = [line for place, line in enumerate(block) if str(place) not in expected["pinned"]]
    if expected["pinned"]:
        while block and not block[-1]:  # above one whose row is far below
            block.pop()
    live = [line.rstrip() for line in expected["live"]]
    if len(live) > capacity:
        if block[capacity:] != [HINT]:
            return f"after {capacity} bars should stand that there are more"
        block = block[:capacity]
        if len(set(block)) != capacity or not set(block) <= set(live):
            return f"{capacity} of these should stand there, each once: {live}"
    elif sorted(block) != sorted(live):
        return f"these should stand there, each once: {live}"
    return None


def scenarios(stock=False):
    for size, bars, leave in itertools.product(SIZES, BARS, LEAVES):
        for at_once in {3, bars}:
            yield Scenario(size, bars, at_once, leave, stock=stock)
    for twist, leave in itertools.product(TWISTS, LEAVES):
        for size, bars, at_once in [("80x24", 3, 3), ("80x24", 16, 3), ("80x24", 16, 16)]:
            yield Scenario(size, bars, at_once, leave, twist, stock)
    for size, leave in itertools.product(["100x10", "40x12"], LEAVES):
        yield Scenario(size, 16, 16, leave, "resized", stock)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--bars", type=int, choices=BARS)
    parser.add_argument("--stock", action="store_true", help="with tqdm's own refresh and close")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dump", type=Path, metavar="FOLDER", help="where to write all the screens")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        Child(Scenario(**options.child)).run()
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
