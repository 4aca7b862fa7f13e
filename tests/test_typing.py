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
