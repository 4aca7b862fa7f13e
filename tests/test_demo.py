"""`python -m progress_executor`, as one types it."""

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import progress_executor
from progress_executor._demo import digest_folder, standard_library

from .conftest import DEADLINE, LOCAL, until
from .terminal import Terminal

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(progress_executor.__file__).parents[1])}
COMMAND = [sys.executable, "-X", "dev", "-W", "error", "-m", "progress_executor"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")


def demo(*arguments, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        env={**ENVIRONMENT, **environment},
        timeout=DEADLINE,
    )


def expected_line(path, unreadable=0):
    """What the demonstration prints for `path`, from its definition and not from its code."""
    top = Path(path)
    files = sorted((file for file in [top, *top.rglob("*")] if file.is_file()), key=str)
    whole, size = b"", 0
    for file in files:
        content = file.read_bytes()
        whole += os.fsencode(os.path.relpath(file, top)) + b"\0" + hashlib.sha256(content).digest()
        size += len(content)
    tail = f", {unreadable} unreadable" if unreadable else ""
    return f"{hashlib.sha256(whole).hexdigest()}  {path}: {len(files)} files, {size} bytes{tail}"


@pytest.fixture
def folders(tmp_path):
    """Names that sort differently as strings and as paths, an empty file, one of several chunks, an empty folder."""
    for name, content in {
        "one/a/inner": b"1",
        "one/a-b": b"22",
        "one/a.txt": b"",
        "one/zu/deep/er": b"\0" * 2_500_000,
        "two/ü \n": b"333",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "empty").mkdir()
    return [tmp_path / name for name in ("one", "two", "empty")]


@pytest.mark.parametrize("kind", LOCAL)
def test_prints_digest_files_and_bytes_of_each_folder_in_the_order_given(kind, folders):
    done = demo("--executor", kind, "--workers", 2, *folders)
    assert done.stdout.splitlines() == [expected_line(folder) for folder in folders]
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_prints_the_same_lines_for_real_folders_on_all_executors():
    folders = [os.path.join(sysconfig.get_path("stdlib"), name) for name in ("json", "email")]
    outputs = {demo("--executor", kind, *folders).stdout for kind in LOCAL}
    assert outputs == {"".join(expected_line(folder) + "\n" for folder in folders)}


def test_the_default_is_the_folders_of_the_standard_library():
    names = {os.path.basename(path) for path in standard_library()}
    assert {"json", "email", "asyncio"} <= names
    assert not {"site-packages", "__pycache__"} & names


def test_a_path_that_is_a_file_is_digested_as_one_file(folders):
    file = folders[0] / "a-b"
    done = demo(file)
    assert done.stdout == expected_line(file) + "\n"
    assert "cannot read" not in done.stderr


@pytest.mark.parametrize("kind", LOCAL)
def test_an_unreadable_file_is_named_and_counted_and_the_others_are_digested(kind, folders):
    (folders[0] / "b-dangling").symlink_to("nowhere")
    done = demo("--executor", kind, *folders)
    assert done.stdout.splitlines() == [expected_line(folder, int(folder is folders[0])) for folder in folders]
    complaints = [line for line in re.split(r"[\r\n]", done.stderr) if "cannot read" in line]
    assert len(complaints) == 1
    assert f"cannot read {folders[0] / 'b-dangling'}: No such file or directory" in complaints[0]
    assert done.returncode == 0


@linux
def test_a_file_that_fails_while_it_is_read_is_named_and_counted(folders):
    (folders[0] / "b-memory").symlink_to("/proc/self/mem")
    done = demo(folders[0])
    assert f"cannot read {folders[0] / 'b-memory'}: Input/output error" in done.stderr
    assert done.stdout.endswith(": 4 files, 2500003 bytes, 1 unreadable\n")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can read everything")
def test_a_folder_that_cannot_be_opened_is_named_and_counted(folders):
    (folders[0] / "a").chmod(0)
    done = demo(folders[0])
    (folders[0] / "a").chmod(0o755)
    assert f"cannot read {folders[0] / 'a'}: Permission denied" in done.stderr
    assert done.stdout.endswith(": 3 files, 2500002 bytes, 1 unreadable\n")


class VanishWhenTotalIsKnown:
    """In place of an Updater: removes a file after the folder was listed and before it is read."""

    def __init__(self, file):
        self._file = file

    total = property(fset=lambda self, value: self._file.unlink())

    def check(self):
        pass

    def update(self, amount):
        pass


def test_a_file_that_vanishes_before_it_is_read_is_named_and_does_not_end_its_folder(folders):
    vanishing = folders[0] / "a-b"
    digest = digest_folder(str(folders[0]), VanishWhenTotalIsKnown(vanishing))
    assert digest.unreadable == [f"{vanishing}: No such file or directory"]
    assert expected_line(folders[0]) == f"{digest.hex}  {folders[0]}: {digest.files} files, {digest.size} bytes"


def test_names_that_are_not_utf8_are_printed(tmp_path):
    odd = os.path.join(os.fsencode(tmp_path), b"odd\xff")
    try:
        os.mkdir(odd)
    except OSError:
        pytest.skip("this file system takes no such name")
    os.symlink(b"nowhere", os.path.join(odd, b"dangling\xfe"))
    done = demo(os.fsdecode(odd), PYTHONIOENCODING="utf-8:strict")
    assert "0 files, 0 bytes, 1 unreadable" in done.stdout
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("kind", LOCAL)
def test_a_path_that_does_not_exist_is_one_line_and_status_2(kind, folders):
    missing = folders[0] / "missing"
    done = demo("--executor", kind, folders[0], missing)
    assert done.stdout == ""
    assert re.fullmatch(r"progress_executor: no such .*\n", done.stderr)
    assert str(missing) in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize("workers", ["0", "-1", "many"])
def test_workers_that_are_no_positive_number_are_refused_in_words(workers, folders):
    done = demo("--workers", workers, folders[0])
    assert done.returncode == 2
    assert done.stdout == ""
    assert "argument --workers" in done.stderr
    assert repr(workers) in done.stderr
    assert "_positive" not in done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no FIFOs")
def test_fifos_are_left_alone(folders):
    os.mkfifo(folders[0] / "b-fifo")
    done = demo(*folders)
    assert done.stdout.splitlines() == [expected_line(folder) for folder in folders]
    assert "cannot read" not in done.stderr


WRITES_MUCH_AND_WAITS_FOR_CTRL_C = """
import pathlib, signal, sys
from progress_executor._demo import _clean_ctrl_c
try:
    with _clean_ctrl_c():
        print("before\\n" * 800, end="", flush=True)
        pathlib.Path(sys.argv[1]).touch()
        signal.pause()
except KeyboardInterrupt:
    print("after")
"""


def test_ctrl_c_does_not_make_the_terminal_drop_what_was_written(tmp_path):
    written = tmp_path / "written"
    with Terminal([sys.executable, "-c", WRITES_MUCH_AND_WAITS_FOR_CTRL_C, str(written)], env=ENVIRONMENT) as screen:
        until(written.exists)
        screen.interrupt()
        assert screen.finish() == 0
        # More than the 4096 bytes that wait to be read, and less than what can be written though nobody reads.
        assert screen.output.count("before\r\n") == 800
        assert screen.output.endswith("after\r\n")


def terminal(kind, *folders, cwd):
    return Terminal([*COMMAND, "--executor", kind, "--workers", "2", *folders], env=ENVIRONMENT, cwd=cwd)


@pytest.fixture
def endless(tmp_path):
    """A folder that is done at once and two that take far longer than a test, without taking room on the disk."""
    for name, size in {"small": 5, "large": 1 << 35, "vast": 1 << 35}.items():
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "zeros", "wb") as file:
            file.truncate(size)
    return tmp_path


def percentage(screen, name):
    shown = re.search(rf"^{name}: +(\d+)%", screen.text, re.MULTILINE)
    return int(shown[1]) if shown else 0


@pytest.mark.parametrize("kind", LOCAL)
def test_the_bar_of_a_folder_is_live(kind, endless):
    with terminal(kind, "large", cwd=endless) as screen:
        screen.wait_for(lambda screen: percentage(screen, "large") > 0)
        seen = percentage(screen, "large")
        screen.wait_for(lambda screen: percentage(screen, "large") > seen)
        assert "B/s" in screen.text
        screen.interrupt()
        screen.finish()


@pytest.mark.parametrize("kind", LOCAL)
def test_after_a_normal_end_the_screen_has_the_lines_and_nothing_else(kind, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with terminal(kind, "one", "empty", cwd=tmp_path) as screen:
        assert screen.finish() == 0
        assert screen.column == 0
        assert [line for line in screen.lines if line] == [expected_line("one"), expected_line("empty")]


@pytest.fixture(params=LOCAL)
def interrupted(request, endless):
    """The terminal after Ctrl-C; on a pool while two folders are read and one is finished."""
    kind = request.param
    with terminal(kind, "small", "large", "vast", cwd=endless) as screen:
        if kind == "sync":
            screen.wait_for(lambda screen: percentage(screen, "large") or percentage(screen, "vast"))
        else:
            screen.wait_for(lambda screen: "large:" in screen.text and "vast:" in screen.text)
        screen.kind = kind
        screen.interrupt()
        screen.finish()
        yield screen


def test_ctrl_c_says_what_was_finished_and_what_was_cancelled_and_exits_with_130(interrupted):
    assert interrupted.status == 130
    finished, cancelled = map(int, re.search(r"(\d) of 3 finished, (\d) cancelled", interrupted.text).groups())
    assert cancelled == len(re.findall(r"cancelled {2,}\S+$", interrupted.text, re.MULTILINE)) >= 2
    assert finished == len(re.findall(r": 1 files, 5 bytes$", interrupted.text, re.MULTILINE)) == 3 - cancelled
    if interrupted.kind != "sync":
        assert finished == 1


def test_ctrl_c_prints_no_traceback(interrupted):
    assert "interrupted: " in interrupted.output
    assert not re.search(r"Traceback|Exception ignored|Warning", interrupted.output)


def test_ctrl_c_leaves_no_bar_and_each_line_starts_at_the_first_column(interrupted):
    assert interrupted.column == 0
    first_words = [line.split(" ")[0] for line in interrupted.lines if line]
    assert len(first_words) == 4, interrupted.text
    assert all(re.fullmatch(r"[0-9a-f]{64}|cancelled|progress_executor:", word) for word in first_words), interrupted.text


@linux
def test_ctrl_c_leaves_no_process(interrupted):
    until(lambda: not interrupted.processes(), "the end of all processes")
