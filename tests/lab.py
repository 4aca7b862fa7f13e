"""A notebook of JupyterLab in a headless Chromium, and the bars that stand in it."""

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from .conftest import DEADLINE

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "of-this-test"

# --no-sandbox because Chromium has none for root; the others keep it from calling home.
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

# Has `bars()` tell each bar that is displayed by its description, and `history` all that a bar ever told.
WATCH = r"""
() => {
    const colours = {success: "green", danger: "red", info: "info", warning: "warning"};
    window.bars = () => {
        const found = {};
        for (const row of document.querySelectorAll(".jp-OutputArea-output .widget-hbox")) {
            const [left, right] = [...row.querySelectorAll(".widget-html-content")].map(
                part => part.textContent.replaceAll("\u2007", " ").trim());
            const bar = row.querySelector(".progress-bar");
            if (!row.checkVisibility({visibilityProperty: true}) || !bar || !right) continue;
            const style = /progress-bar-(\w+)/.exec(bar.className);
            const [, numbers, status] = /^(\S+?)(?:it)? \[[^,]*,[^,]*(?:, (.*))?\]$/.exec(right) || ["", right, ""];
            const filled = Math.round(parseFloat(bar.style.width));
            found[left.split(":")[0]] = `${numbers} ${status ?? "untold"}, ${filled}% ${style ? colours[style[1]] : "blue"}`;
        }
        return found;
    };
    window.history_of_bars = {};
    new MutationObserver(() => {
        for (const [name, told] of Object.entries(bars())) {
            const lines = history_of_bars[name] ??= [];
            if (lines.at(-1) !== told) lines.push(told);
        }
    }).observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true});
}
"""

READY = """
async () => {
    const context = jupyterapp.shell.currentWidget.sessionContext;
    await context.ready;
    await context.session.kernel.info;
    return true;
}
"""

# Not awaited: a cell may run for long.
RUN = """
index => {
    const notebook = jupyterapp.shell.currentWidget.content;
    notebook.deselectAll();
    notebook.activeCellIndex = index;
    void jupyterapp.commands.execute("notebook:run-cell");
}
"""


class Lab:
    """A JupyterLab on the loopback and a Chromium, which touch nothing outside of `folder`.

    A context manager: all that it has started, kernels and their workers included, is stopped at its end.
    """

    def __init__(self, folder, chromium):
        self._folder = folder
        self._notebooks = folder / "notebooks"
        self._chromium = chromium
        self._numbers = itertools.count(1)
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        with self._stack:  # what was started is stopped if something else does not start
            self._url = self._start_server()
            playwright = self._stack.enter_context(sync_playwright())
            environment = {**os.environ, "HOME": str(self._folder)}
            self._browser = playwright.chromium.launch(executable_path=self._chromium, args=CHROMIUM_FLAGS, env=environment)
            self._stack.callback(self._browser.close)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc_info):
        self._stack.close()

    def _start_server(self):
        settings = self._folder / "config/lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
        self._notebooks.mkdir()
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
        environment |= {
            "HOME": str(self._folder),
            "IPYTHONDIR": str(self._folder / "ipython"),
            "JUPYTER_CONFIG_DIR": str(self._folder / "config"),
            "JUPYTER_DATA_DIR": str(self._folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(self._folder / "runtime"),
            "PYTHONPATH": str(ROOT),  # for `tests.jobs`
        }
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
        command += [
            "--ip=127.0.0.1",
            "--port=0",
            f"--IdentityProvider.token={TOKEN}",
            f"--ServerApp.root_dir={self._notebooks}",
        ]
        log = self._folder / "server.log"
        with log.open("w") as output:
            server = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        self._stack.callback(_stop, server)
        deadline = time.monotonic() + 2 * DEADLINE
        while True:
            for path in self._folder.glob("runtime/jpserver-*.json"):
                with contextlib.suppress(ValueError):  # half written
                    return json.loads(path.read_text())["url"]
            waited_enough = server.poll() is not None or time.monotonic() > deadline
            assert not waited_enough, f"JupyterLab did not start:\n{log.read_text()}"
            time.sleep(0.01)

    @contextlib.contextmanager
    def notebook(self, *cells):
        """A new notebook with `cells`, in a page and with a kernel of its own."""
        name = f"notebook-{next(self._numbers)}"
        cells = [
            {"cell_type": "code", "id": str(i), "source": cell, "metadata": {}, "outputs": [], "execution_count": None}
            for i, cell in enumerate(cells)
        ]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        document = {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": cells}
        (self._notebooks / f"{name}.ipynb").write_text(json.dumps(document))
        with self._browser.new_page(viewport={"width": 1000, "height": 1000}) as page:
            page.set_default_timeout(2 * DEADLINE * 1000)
            page.goto(f"{self._url}doc/tree/{name}.ipynb?token={TOKEN}")
            page.locator(".jp-Notebook .jp-Cell").first.wait_for()
            page.wait_for_function(READY)
            page.evaluate(WATCH)
            yield Notebook(page)


def _stop(server):
    server.terminate()
    try:
        server.wait(DEADLINE)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


class Notebook:
    """What one does in a notebook, and sees there."""

    def __init__(self, page):
        self.page = page

    def run(self, index):
        """Start a cell; does not wait for its end."""
        self.page.evaluate(RUN, index)

    def press_stop(self):
        """Interrupt the kernel, with the button of the toolbar."""
        self.page.locator('[data-command="notebook:interrupt-kernel"]').first.click()

    @property
    def bars(self):
        """What the bars show, by their descriptions, as "n/total status, filled% colour"."""
        return self.page.evaluate("bars()")

    @property
    def history(self):
        """All that each of the bars has shown."""
        return self.page.evaluate("history_of_bars")

    @property
    def output(self):
        """The text below the cells, errors included."""
        return re.sub("\u2007", " ", "\n".join(self.page.locator(".jp-OutputArea-output").all_inner_texts()))

    def wait_for(self, condition):
        """Wait until `condition(bars)` holds; returns the bars."""
        deadline = time.monotonic() + 2 * DEADLINE
        while not condition(bars := self.bars):
            assert time.monotonic() < deadline, f"the bars did not come to stand as expected:\n{bars}\n{self.output}"
            self.page.wait_for_timeout(10)
        return bars

    def wait_for_bars(self, *, untouched=(), **expected):
        """Wait until these bars, and no others, stand in the page; `untouched` are those whose tasks have not begun."""
        started = {}

        def as_expected(bars):
            started.clear()
            started.update((name, line) for name, line in bars.items() if not line.startswith("0/? "))
            return started == expected and bars.keys() == {*expected, *untouched}

        try:
            self.wait_for(as_expected)
        except AssertionError:
            assert started == expected  # for pytest to show the difference
            raise

    def wait_for_output(self, text):
        self.wait_for(lambda _: text in self.output)
