"""`executor.poll()` from the timer of a window: a real Tk loop under Xvfb, a real Qt one offscreen."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import progress_executor

from .conftest import DEADLINE

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(progress_executor.__file__).parents[1])}

WORK = """
import sys, threading, time
from progress_executor import ProcessPoolProgressExecutor, ThreadPoolProgressExecutor

def work(n, progress):
    for _ in progress(range(n)):
        time.sleep(0.005)

threads, shown, beats = set(), [], [time.monotonic()]

def show(old, new):
    threads.add(threading.current_thread())
    shown.append(new["n"])
    window_shows(new["n"])

def beat():
    beats.append(time.monotonic())
    executor.poll()

def check():
    assert threads == {threading.main_thread()}, threads
    assert shown == sorted(shown) and shown[-1] == 100 and len(shown) > 3, shown
    longest = sorted(after - before for before, after in zip(beats, beats[1:]))[-3]
    assert longest < 0.1, longest
    print("shown", len(shown))
"""

TK = (
    WORK
    + """
import tkinter

def tick():
    beat()
    if future.done() and shown and shown[-1] == 100:
        root.destroy()
    else:
        root.after(10, tick)

if __name__ == "__main__":
    root = tkinter.Tk()
    label = tkinter.Label(root)
    label.pack()
    window_shows = lambda n: label.configure(text=str(n))
    with globals()[sys.argv[1]](1) as executor:
        future = executor.submit(work, 100)
        future.add_progress_callback(show)
        root.after(10, tick)
        root.mainloop()
    check()
"""
)

QT = (
    WORK
    + """
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication, QProgressBar

def tick():
    beat()
    if future.done() and shown and shown[-1] == 100:
        app.quit()

if __name__ == "__main__":
    app = QApplication([])
    bar = QProgressBar()
    bar.show()
    window_shows = bar.setValue
    with globals()[sys.argv[1]](1) as executor:
        future = executor.submit(work, 100)
        future.add_progress_callback(show)
        timer = QTimer()
        timer.timeout.connect(tick)
        timer.start(10)
        app.exec()
    check()
"""
)

EXECUTORS = ["ThreadPoolProgressExecutor", "ProcessPoolProgressExecutor"]


def run(script, executor, folder, **environment):
    path = folder / "window.py"
    path.write_text(script)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", path, executor]
    done = subprocess.run(command, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=2 * DEADLINE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("shown")


@pytest.fixture
def display():
    if importlib.util.find_spec("tkinter") is None:
        pytest.skip("this Python has no tkinter")
    if not shutil.which("Xvfb"):
        pytest.skip("Xvfb is not installed")
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "640x480x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL) as server:
        os.close(writer)
        with open(reader) as file:
            number = file.readline().strip()
        yield f":{number}"
        server.terminate()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_tk_window_is_kept_alive_and_told_in_its_thread(display, executor, tmp_path):
    run(TK, executor, tmp_path, DISPLAY=display)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_qt_window_is_kept_alive_and_told_in_its_thread(executor, tmp_path):
    if importlib.util.find_spec("PySide6") is None:
        pytest.skip("the extra progress-executor[gui] is not installed")
    run(QT, executor, tmp_path, QT_QPA_PLATFORM="offscreen")
