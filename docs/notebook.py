"""Takes docs/notebook.png: eight tasks in a notebook of JupyterLab, as they are half way.

`python docs/notebook.py`, with the package, its extra `browser` and Chromium installed.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from tests.lab import Lab  # noqa: E402
from tests.run import chromium  # noqa: E402

BEFORE = """
import asyncio
import time
from tqdm.notebook import tqdm
from progress_executor import ProcessPoolProgressExecutor, ProgressGroup

def work(n, progress):
    for i in progress(range(n)):
        time.sleep(0.01)
        if n == 310 and i == 200:
            raise ValueError

asyncio.get_running_loop().call_later(2, lambda: futures[2].cancel())
"""
SHOWN = """\
with ProcessPoolProgressExecutor(max_workers=3) as executor:
    futures = [executor.submit(work, n) for n in (220, 310, 290, 260, 330, 240, 400, 300)]
    for i, future in enumerate(futures):
        future.add_tqdm_callback(tqdm, {"desc": f"task {i}"})
    group = ProgressGroup(futures)
    group.add_tqdm_callback(tqdm, {"desc": "all"})
    await group"""


def main() -> None:
    path = chromium()
    if path is None:
        sys.exit("Chromium was not found")
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder), path) as lab, lab.notebook(BEFORE, SHOWN) as notebook:
        notebook.run(0)
        notebook.run(1)
        notebook.wait_for(lambda bars: "3 running, 2 pending, 1 done, 1 failed, 1 cancelled" in bars.get("all", ""))
        notebook.wait_for(lambda bars: all("% blue" in bars[f"task {i}"] for i in (3, 4, 5)))
        notebook.page.evaluate("jupyterapp.shell.currentWidget.content.activeCellIndex = 0")  # for no frame around the other
        notebook.page.wait_for_timeout(1000)  # for the three of them to get on
        notebook.page.locator(".jp-Cell").nth(1).screenshot(path=ROOT / "docs" / "notebook.png")


if __name__ == "__main__":
    main()
