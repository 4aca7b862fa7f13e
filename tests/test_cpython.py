"""Drop-in means drop-in: what CPython asks of its executors, ours do."""

import subprocess
import sys
from pathlib import Path

import pytest

from . import cpython


@pytest.mark.slow
@pytest.mark.skipif(not cpython.modules(), reason=f"this interpreter comes without {cpython.PACKAGE}")
def test_cpythons_own_tests_pass_with_our_executors(capsys):
    command = [sys.executable, "-m", "tests.cpython"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, encoding="utf-8")
    with capsys.disabled():
        print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stdout + done.stderr
