"""Takes docs/bars.svg: runs examples/watch_many.py in a real terminal and draws its screen as it is half way.

`python docs/picture.py`, with the package, pytest and pyte installed.
"""

import html
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from tests.terminal import Terminal  # noqa: E402

COLUMNS, ROWS = 84, 8
WIDTH, HEIGHT = 8.4, 19


def main() -> None:
    program = [sys.executable, str(ROOT / "examples" / "watch_many.py"), "process", "--scale", "0.25"]
    with Terminal(program, cwd=os.path.dirname(program[1]), rows=ROWS + 2, columns=COLUMNS) as terminal:
        terminal.wait_for(lambda screen: "task 3:" in screen.text and "done" in screen.text and "45%" in screen.text)
        lines = [line for line in terminal.lines if line][:ROWS]
    width, height = int(COLUMNS * WIDTH) + 24, len(lines) * HEIGHT + 24
    rows = "\n".join(
        f'<text x="12" y="{28 + i * HEIGHT}" xml:space="preserve">{html.escape(line)}</text>' for i, line in enumerate(lines)
    )
    (ROOT / "docs" / "bars.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="14">\n'
        f'<rect width="100%" height="100%" rx="6" fill="#1e1e1e"/>\n<g fill="#d4d4d4">\n{rows}\n</g>\n</svg>\n'
    )


if __name__ == "__main__":
    main()
