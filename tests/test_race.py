"""The compiled step without the GIL: by threads in C, under ThreadSanitizer."""

import shutil
import subprocess
from pathlib import Path

import pytest

from .test_build import TOP


@pytest.mark.parametrize("steps", [1_000_000, pytest.param(100_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_steps_of_threads_are_exact_and_race_free(tmp_path, steps):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    program, source = tmp_path / "race", Path(__file__).with_name("race.c")
    options = ["-std=c11", "-O2", "-g", "-fsanitize=thread", "-I", TOP / "progress_executor" / "_speedups"]
    built = subprocess.run([compiler, *options, source, "-o", program, "-lpthread", "-lm"], capture_output=True, text=True)
    if "tsan" in built.stderr:
        pytest.skip("the compiler has no ThreadSanitizer")
    assert not built.returncode, built.stderr
    done = subprocess.run([program, str(steps)], capture_output=True, text=True)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer cannot run on this system")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
