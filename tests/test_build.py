"""Which form of the hot path is built and picked, and what an import brings along."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import progress_executor

TOP = Path(os.environ.get("PROGRESS_EXECUTOR_SOURCE", Path(__file__).parents[1]))
PACKAGES = Path(progress_executor.__file__).parents[1]
SWITCHES = ("PROGRESS_EXECUTOR_NO_EXTENSIONS", "PROGRESS_EXECUTOR_REQUIRE_EXTENSIONS")
unbuilt = shutil.ignore_patterns("*.so", "*.pyd", "*.c", "__pycache__")


def python(*arguments, environment, **kwargs):
    """Run Python with none of our switches but those in `environment`."""
    inherited = {name: value for name, value in os.environ.items() if name not in (*SWITCHES, "CC")}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**inherited, **environment},
        encoding="utf-8",
        timeout=300,
        **kwargs,
    )


def evaluate(expression, path=PACKAGES, **environment):
    """What `expression` is in a new interpreter that finds the package in `path`; warnings are errors there."""
    code = f"import sys, progress_executor; print({expression})"
    environment["PYTHONPATH"] = str(path)
    arguments = ("-P", "-X", "dev", "-W", "error", "-c", code)
    return python(*arguments, environment=environment, check=True, stdout=subprocess.PIPE).stdout.strip()


def test_the_run_time_switch_picks_the_python_form():
    picked = evaluate("progress_executor.IMPLEMENTATION, progress_executor.Updater", PROGRESS_EXECUTOR_NO_EXTENSIONS="1")
    assert picked == "python <class 'progress_executor._speedups._updater.Updater'>"


@pytest.mark.parametrize("off", [{}, {"PROGRESS_EXECUTOR_NO_EXTENSIONS": ""}, {"PROGRESS_EXECUTOR_NO_EXTENSIONS": "0"}])
def test_without_the_switch_the_compiled_form_is_picked_where_it_was_built(off):
    built = importlib.util.find_spec("progress_executor._speedups._updater_c") is not None
    assert evaluate("progress_executor.IMPLEMENTATION", **off) == ("cython" if built else "python")


def test_an_extension_that_cannot_be_imported_falls_back_to_the_python_form(tmp_path):
    copy = tmp_path / "progress_executor"
    shutil.copytree(PACKAGES / "progress_executor", copy, ignore=unbuilt)
    (copy / "_speedups" / "_updater_c.py").write_text("raise ImportError('of another Python')")
    assert evaluate("progress_executor.IMPLEMENTATION", path=tmp_path) == "python"


def test_the_python_form_runs_without_cython():
    code = (
        "import sys; sys.modules['cython'] = None; import progress_executor as p; print(p.IMPLEMENTATION, *p.Updater()([1]))"
    )
    environment = {"PYTHONPATH": str(PACKAGES), "PROGRESS_EXECUTOR_NO_EXTENSIONS": "1"}
    assert python("-P", "-c", code, environment=environment, check=True, stdout=subprocess.PIPE).stdout == "python 1\n"


def test_a_star_import_gives_the_public_names_and_no_other():
    names = {}
    exec("from progress_executor import *", names)
    assert sorted(names.keys() - {"__builtins__"}) == sorted(progress_executor.__all__)
    assert not {"tqdm", "asyncio", "time", "logging", "sys"} & names.keys()


def test_a_name_that_does_not_exist_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match=r"'progress_executor' has no attribute 'nothing'"):
        progress_executor.nothing  # noqa: B018


@pytest.mark.parametrize("no_extensions", ["0", "1"])
@pytest.mark.parametrize("module", ["tqdm", "multiprocessing.shared_memory", "numpy"])
def test_the_import_does_not_bring_along(module, no_extensions):
    assert evaluate(f"{module!r} in sys.modules", PROGRESS_EXECUTOR_NO_EXTENSIONS=no_extensions) == "False"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the source tree without anything built; what one test has Cython translate, the next finds."""
    if not (TOP / "setup.py").is_file():
        pytest.skip("setup.py is not next to the tests: this is no source tree")
    copy = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TOP / name, copy)
    shutil.copytree(TOP / "progress_executor", copy / "progress_executor", ignore=unbuilt)
    return copy


def build(source, into, **environment):
    """The finished process with all that it printed, and the extensions that it built."""
    arguments = ("setup.py", "build_ext", "--build-lib", into / "lib", "--build-temp", into / "temporary")
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return python(*arguments, environment=environment, cwd=source, **output), list(into.glob("lib/**/_updater_c*"))


def test_both_build_switches_at_once_are_an_error_that_names_them(source, tmp_path):
    done, built = build(source, tmp_path, **dict.fromkeys(SWITCHES, "1"))
    assert done.returncode != 0
    assert all(switch in done.stdout for switch in SWITCHES)
    assert "Traceback" not in done.stdout
    assert not built


def test_the_build_switch_that_forbids_the_extension_builds_none(source, tmp_path):
    done, built = build(source, tmp_path, PROGRESS_EXECUTOR_NO_EXTENSIONS="1")
    assert done.returncode == 0, done.stdout
    assert not built


@pytest.mark.slow
def test_without_a_compiler_the_build_succeeds_and_says_that_the_speedups_were_not_built(source, tmp_path):
    done, built = build(source, tmp_path, CC="/bin/false")
    assert done.returncode == 0, done.stdout
    assert "THE SPEEDUPS WERE NOT BUILT" in done.stdout
    assert not built


def test_without_a_compiler_the_build_fails_if_the_extension_is_required(source, tmp_path):
    done, built = build(source, tmp_path, CC="/bin/false", PROGRESS_EXECUTOR_REQUIRE_EXTENSIONS="1")
    assert done.returncode != 0
    assert "/bin/false" in done.stdout
    assert not built


@pytest.mark.slow
def test_with_a_compiler_the_build_makes_an_extension_that_is_picked(source, tmp_path):
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("there is no C compiler")
    done, built = build(source, tmp_path, PROGRESS_EXECUTOR_REQUIRE_EXTENSIONS="1")
    assert done.returncode == 0, done.stdout
    assert "NOT BUILT" not in done.stdout
    shutil.copytree(source / "progress_executor", tmp_path / "lib" / "progress_executor", dirs_exist_ok=True)
    assert len(built) == 1
    assert evaluate("progress_executor.IMPLEMENTATION", path=tmp_path / "lib") == "cython"


def test_each_promise_names_tests_and_each_of_them_exists():
    rows = [line for line in (TOP / "docs/promises.md").read_text().splitlines() if line.startswith("|")]
    rows = [row for row in rows if not row.startswith(("| promise |", "|---"))]
    assert rows
    for row in rows:
        _, promise, executors, shown, _ = re.split(r" ?\| ?", row)
        assert promise
        assert {*executors.split(", ")} <= {"all", "thread", "process", "sync", "Dask"}, row
        tests = re.findall(r"`(test_\w+\.py)::(test_\w+)`", shown)
        assert ", ".join(f"`{file}::{name}`" for file, name in tests) == shown != "", row
        for file, name in tests:
            assert re.search(rf"^(async )?def {name}\(", (TOP / "tests" / file).read_text(), re.MULTILINE), (file, name)
