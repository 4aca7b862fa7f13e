"""The types that a user's program sees, and that they are those of the running package."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import progress_executor

PACKAGES = Path(progress_executor.__file__).parents[1]
SAMPLE = Path(__file__).with_name("typed_sample.py")
IN_SITE_PACKAGES = any(part in ("site-packages", "dist-packages") for part in PACKAGES.parts)
mypy_needed = pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")


@pytest.fixture(scope="module")
def empty_folder(tmp_path_factory):
    """Where no settings of the project are found; the runs share mypy's cache in it."""
    return tmp_path_factory.mktemp("mypy")


def run(*arguments, cwd, **environment):
    inherited = {name: value for name, value in os.environ.items() if name not in ("MYPYPATH", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        cwd=cwd,
        env={**inherited, **environment},
        timeout=300,
    )


def mypy(file, cwd):
    """mypy's judgement of `file` alone; it finds the package in site-packages by itself."""
    path = {} if IN_SITE_PACKAGES else {"MYPYPATH": str(PACKAGES)}
    return run("-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", file, cwd=cwd, **path)


@mypy_needed
def test_the_sample_program_is_well_typed(empty_folder):
    done = mypy(SAMPLE, empty_folder)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        "text: str = executor.submit(count, 3).result()",
        "future: ProgressFuture[str] = executor.submit(count, 3)",
        "text: str = next(Updater()([1, 2]))",
        "list(Updater()(3))",
        "Updater().update('x')",
        "Updater().sub('x')",
        "Updater().log(3)",
        "executor.submit(count, 3).add_progress_callback(count)",
        "executor.submit(count, 3).add_log_callback(count)",
        "executor.submit(count, 3).add_tqdm_callback(triggers=['later'])",
        "text: str = next(executor.submit(count, 3).states())",
        "executor.submit(count, 3).set_deadline('1')",
    ],
)
@mypy_needed
def test_a_wrong_program_is_an_error(wrong, empty_folder):
    file = empty_folder / "wrong.py"
    file.write_text(
        "from progress_executor import ProgressExecutor, ProgressFuture, Updater\n\n"
        "def count(n: int) -> int: return n\n\n"
        "def caller(executor: ProgressExecutor) -> None:\n"
        f"    {wrong}\n"
    )
    done = mypy(file, empty_folder)
    assert done.returncode == 1
    assert "wrong.py:6: error: " in done.stdout
    assert "Found 1 error" in done.stdout


@pytest.mark.parametrize("no_extensions", ["0", "1"])
def test_the_sample_program_runs(no_extensions):
    switch = {"PROGRESS_EXECUTOR_NO_EXTENSIONS": no_extensions}
    done = run("-X", "dev", "-W", "error", SAMPLE, cwd=SAMPLE.parent, PYTHONPATH=str(PACKAGES), **switch)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("no_extensions", ["0", "1"])
@mypy_needed
def test_the_stub_of_the_hot_path_has_the_signatures_of_the_running_one(no_extensions, empty_folder):
    settings, private = empty_folder / "stubtest.ini", empty_folder / "private"
    settings.write_text("[mypy]\nignore_errors = True\nignore_missing_imports = True\n")
    private.write_text(r"progress_executor\._speedups\._.*" + "\n")
    arguments = ("--mypy-config-file", settings, "--allowlist", private, "--ignore-unused-allowlist")
    environment = {"PYTHONPATH": str(PACKAGES), "PROGRESS_EXECUTOR_NO_EXTENSIONS": no_extensions}
    done = run("-m", "mypy.stubtest", *arguments, "progress_executor._speedups", cwd=empty_folder, **environment)
    assert done.returncode == 0, done.stdout
