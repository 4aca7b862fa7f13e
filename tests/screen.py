"""What stands on a real screen while bars come, move and go: `python -m tests.screen --help`.

A program on a pseudo-terminal (`child`) does what its scenario says, with a clock of its own, and writes after each step
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


def child(scenario):
    """Runs on the terminal."""
    import tqdm
    import tqdm.asyncio
    import tqdm.auto
    import tqdm.std
    from tqdm.contrib.logging import logging_redirect_tqdm

    import progress_executor._bars
    from progress_executor import ThreadPoolProgressExecutor

    clock = [1000.0]
    tqdm.std.time = lambda: clock[0]
    progress_executor._bars.time = lambda: clock[0]
    progress_executor._bars._CLOCK = 1e9
    if scenario.stock:
        progress_executor._bars._is_plain = lambda bar: False
    tqdm.tqdm.monitor_interval = 0
    stream = open(os.ttyname(2), "w") if scenario.twist == "file" else sys.stderr  # noqa: SIM115
    log = logging.getLogger("log")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler(stream))
    chance = random.Random(scenario.seed)
    rows, columns = scenario.rows, scenario.columns
    classes = tqdm.tqdm, tqdm.auto.tqdm, tqdm.asyncio.tqdm_asyncio, tqdm.std.tqdm
    tasks, left, live, ended, users = [], [], {}, set(), []
    seen_running, running_for_long = set(), set()  # the latter since before the clock went on

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

    def shown(number):
        return scenario.twist != "delayed" or number % 2 == 0 or number in running_for_long

    def title(state):
        print(MARK[0] + json.dumps(state) + MARK[1], end="", file=sys.stderr, flush=True)

    def mark():
        executor._board.pump()
        for number, (future, _, made) in enumerate(tasks):
            if made and number not in ended:
                live[number] = future, made[0]
        stale = []
        for number, (future, bar) in tuple(live.items()):
            state = future.state
            if state["status"] != "pending":
                seen_running.add(number)
            if future.done():
                del live[number]
                ended.add(number)
                if bar.leave and shown(number):
                    left.append(str(bar)[: columns - 1])  # as wide as tqdm makes a bar
            elif abs(bar.pos) >= rows - 2:
                continue
            if (bar.n, bar.total, bar.postfix) != (state["n"], state["total"], state["status"]):
                stale.append(f"{bar} is not {state}")
        bars = {number: str(bar)[: columns - 1] for number, (_, bar) in live.items() if shown(number)}
        pinned = {-live[number][1].pos: line for number, line in bars.items() if live[number][1].pos < 0}
        others = [line for number, line in bars.items() if live[number][1].pos >= 0]
        title({"left": left, "live": others + [str(bar) for bar in users], "pinned": pinned, "stale": stale})

    def resize(step):
        import termios

        nonlocal rows, columns
        sizes = (rows + 3, columns * 3 // 4), (scenario.rows - 3, scenario.columns), (scenario.rows, columns)
        rows, columns = sizes[step % 3]
        title({"size": (rows, columns)})
        termios.tcsetwinsize(2, (rows, columns))

    with ThreadPoolProgressExecutor(scenario.at_once) as executor:
        for number in range(scenario.bars):
            orders = queue.SimpleQueue()
            future = executor.submit(work, orders, None if number % 4 == 3 else 2000)
            future._task.interval = 0
            made = []

            def make(cls=classes[number % 4], made=made, **kwargs):
                made.append(cls(**kwargs))
                return made[0]

            look = {"desc": f"b{number:02}" + "-long" * (number % 3), "leave": scenario.leave}
            look |= {"unit_scale": number % 3 == 1, "dynamic_ncols": number % 5 == 1}
            if scenario.twist == "pinned" and number % 4 == 1:
                look["position"] = number + 1
            if scenario.twist == "delayed" and number % 2:
                look["delay"] = 5
            if scenario.twist == "file":
                look["file"] = stream
            if scenario.twist == "wide" and number % 2:
                look["ncols"] = 2 * columns
            trigger = "now" if scenario.at_once >= scenario.bars else "running"
            future.add_tqdm_callback(make, look, [trigger])
            tasks.append((future, orders, made))
        waiting, running = list(enumerate(tasks)), []
        for step in itertools.count():
            while waiting and (len(running) < scenario.at_once or waiting[0][1][0].state["status"] != "pending"):
                if waiting[0][1][0].state["status"] != "pending":  # else a worker is about to take it
                    running.append(waiting.pop(0))
            if not running:
                break
            for _, (_, orders, _) in running:
                if chance.random() < 0.5:
                    tell(orders, chance.randrange(1, 100))
            if chance.random() < 0.4:
                _, (future, orders, _) = running.pop(chance.randrange(len(running)))
                how = chance.choice(["end", "end", "fail", "cancel"])
                if how == "cancel":
                    future.cancel()
                tell(orders, "end" if how == "cancel" and chance.random() < 0.1 else 1 if how == "cancel" else how)
                while not future.done():
                    pass
            elif chance.random() < 0.2:
                text = f"a line that was written in step {step}"[: columns - 1]
                if step % 2 or stream is not sys.stderr:  # logging writes to a standard stream
                    tqdm.tqdm.write(text, file=stream)
                else:
                    with logging_redirect_tqdm([log]):
                        log.info(text)
                left.append(text)
            # As wide as the terminal: when it is closed, tqdm writes it over whatever stands in the first row.
            if not users and chance.random() < 0.1:
                file = chance.choice([sys.stdout, stream]) if stream is sys.stderr else stream
                users.append(tqdm.tqdm(desc="user", total=1000, leave=chance.random() < 0.5, file=file))
            elif users:
                users[0].update()
                users[0].refresh()
                if chance.random() < 0.3:
                    bar = users.pop()
                    bar.close()
                    if bar.leave:
                        left.append(str(bar))
            if scenario.twist == "resized" and step % 3 == 2:
                resize(step // 3)
            elif scenario.twist == "delayed" and step == 4:
                running_for_long |= seen_running
                clock[0] += 10
                with_clock, progress_executor._bars._CLOCK = progress_executor._bars._CLOCK, 0
                mark()
                progress_executor._bars._CLOCK = with_clock
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
    for place, line in expected["pinned"].items():
        if block[int(place) : int(place) + 1] != [line.rstrip()]:
            return f"in row {place} of the bars should stand {line}"
    block = [line for place, line in enumerate(block) if str(place) not in expected["pinned"]]
    if expected["pinned"]:
        while block and not block[-1]:  # above one whose row is far below
            block.pop()
    live = [line.rstrip() for line in expected["live"]]
    capacity = rows - 2
    if len(live) > capacity:
        if block[capacity:] != [HINT]:
            return f"after {capacity} bars should stand that there are more"
        block = block[:capacity]
        if len(set(block)) != capacity or not set(block) <= set(live):
            return f"{capacity} of these should stand there, each once: {live}"
    elif sorted(block) != sorted(live):
        return f"these should stand there, each once: {live}"
    if live or expected["pinned"]:
        return None
    if column:
        return f"the cursor should stand at the beginning of a line, not in column {column}"
    if row != len(lines):
        return f"the cursor should stand below the last line, not in row {row + 1} of {len(lines)}"
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
