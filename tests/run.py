"""`make test`: the tests on every CPython from 3.11 that the machine has, on the oldest and the newest in both forms.

Of a minor version with several patch releases, the oldest and the newest of them run. `make test-all` (--all): on the newest
version those that are marked slow, too.

Needs nothing but the standard library. Each interpreter gets a virtual environment in .venv, into which the package is
installed as a user would; the tests run from a copy in another folder, so that they see the installed package and not
the checkout. As many runs as there are processors go beside each other; what one printed is shown when it has ended.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/test_*.py"))
VERSIONS = [(3, minor) for minor in range(11, 16)]
ONCE = [f"tests/test_{subject}.py" for subject in ("cpython", "dask", "examples", "screen", "typing")]
"""What knows nothing of the two forms of the hot path, and of versions little: with the newest one only."""
ON_THE_CALLERS_SIDE = [f"tests/test_{subject}.py" for subject in ("bars", "deadlines", "following", "groups", "rich")]
"""What knows nothing of the two forms, and of versions no more than the oldest and the newest show."""
ONCE_PER_VERSION = [
    *(f"tests/test_{subject}.py" for subject in ("build", "demo", "gui", "loops", "slots", "updater")),
    *ON_THE_CALLERS_SIDE,
]
"""What sees both forms itself, or nothing of them: with the compiled one only."""
SLOW_IN_BOTH = [f"tests/test_{subject}.py" for subject in ("fuzz", "killed", "lives")]
"""Where the slow tests, too, are for both forms: what happens while a task is in the hot path."""
OLDEST_DASK = ["distributed==2023.9.0", "setuptools<81"]
"""The oldest that is supported, and what it needs without saying so; Dask's own tests run on it, too (--all)."""
ABOUT = """
import sys, sysconfig
print(sys.implementation.name, *sys.version_info[:3], sysconfig.get_config_var("Py_GIL_DISABLED") or 0)
"""


Version = tuple[int, int, int]


def interpreters() -> dict[Version, str]:
    """A CPython per version: this one, those on the PATH, pyenv's; of each minor version the oldest and the newest patch."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    candidates = [
        getattr(sys, "_base_executable", None) or sys.executable,
        *(path for major, minor in VERSIONS if (path := shutil.which(f"python{major}.{minor}"))),
        *sorted(str(path) for path in pyenv.glob("3.*/bin/python")),
    ]
    found: dict[Version, str] = {}
    for candidate in candidates:
        answer = subprocess.run([candidate, "-c", ABOUT], capture_output=True, text=True)
        if answer.returncode == 0:  # a pyenv shim may be there without its Python
            name, *version, without_gil = answer.stdout.split()
            if name == "cpython" and without_gil == "0":
                major, minor, patch = map(int, version)
                found.setdefault((major, minor, patch), candidate)
    patches = {minor: sorted(version for version in found if version[:2] == minor) for minor in VERSIONS}
    return {version: found[version] for all_ in patches.values() for version in dict.fromkeys(all_[:1] + all_[-1:])}


def named(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def chromium() -> str | None:
    """The browser: what CHROMIUM names, or the first of those on the PATH."""
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    return next((path for name in names if (path := shutil.which(name))), None)


def prepare(name: str, interpreter: str, extras: str, *others: str) -> Path:
    """Make the environment `name`, in which the package is with `extras` and what they need of `others`; its folder."""
    environment = ROOT / ".venv" / name
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([interpreter, "-m", "venv", environment], check=True)
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # an extension of an earlier build must not get into this one
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{ROOT}[{extras}]", *others], check=True)
    subprocess.run([*pip, "--force-reinstall", "--no-deps", ROOT], check=True)
    run = environment / "run"
    shutil.rmtree(run, ignore_errors=True)
    for folder in ("tests", "examples"):
        shutil.copytree(ROOT / folder, run / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", run)
    return environment


def add_gui(environment: Path) -> None:
    """What test_gui.py needs, if it is there for this Python: Qt comes as wheels only, some time after the Python."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    gui = extras.get("gui", [])
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if gui and subprocess.run([*pip, *gui]).returncode:
        print(f"{environment.name}: {', '.join(gui)} CANNOT BE INSTALLED, the tests with it are skipped", flush=True)


def implementation(environment: Path, env: dict[str, str]) -> str:
    command = [environment / "bin" / "python", "-c", "import progress_executor as p; print(p.IMPLEMENTATION)"]
    return subprocess.run(command, cwd=environment, env=env, check=True, capture_output=True, text=True).stdout.strip()


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Run(NamedTuple):
    """The tests, or a part of them, on one Python in one implementation."""

    name: str
    environment: Path
    env: dict[str, str]
    arguments: list[str]

    def __call__(self) -> int:
        """The exit status of pytest. What it prints is in a file meanwhile, also if this is killed because it hangs."""
        python = self.environment / "bin" / "python"
        command = [python, "-X", "dev", "-m", "pytest", "-p", "no:cacheprovider", *self.arguments]
        log = self.environment / f"{self.name}.log"
        print(f"{self.name}: {log}", flush=True)
        with open(log, "wb") as file:
            done = subprocess.run(command, cwd=self.environment / "run", env=self.env, stdout=file, stderr=subprocess.STDOUT)
        print(f"\n=== {self.name}\n{log.read_text(errors='replace')}", end="", flush=True)
        return done.returncode


def runs_on(version: Version, interpreter: str, newest: bool, between: bool, slow: bool, arguments: list[str]) -> list[Run]:
    """In the compiled form, if it could be built, and in the interpreted one; in parts that take minutes each.

    A version `between` the oldest and the newest is for what differs between versions, in one form.
    """
    environment = prepare(f"test-{named(version)}", interpreter, "test,dask" if newest else "test")
    if newest:
        add_gui(environment)
    env = {**os.environ, "PROGRESS_EXECUTOR_SOURCE": str(ROOT)}
    env.pop("PROGRESS_EXECUTOR_NO_EXTENSIONS", None)
    envs = [env, {**env, "PROGRESS_EXECUTOR_NO_EXTENSIONS": "1"}]
    if implementation(environment, env) != "cython" or (between and not arguments):
        envs.pop()
    runs = []
    for first, env in zip((True, False), envs, strict=False):
        name = f"CPython {named(version)}, {implementation(environment, env)}"
        marked = ["-m", "not browser"] if first and slow else []
        if arguments:
            runs.append(Run(name, environment, env, [*marked, *arguments]))
            continue
        elsewhere = ON_THE_CALLERS_SIDE if between else [] if first else ONCE_PER_VERSION
        files = [path for path in FILES if path not in ONCE + elsewhere]
        not_dask = [] if first else ["-k", "not dask"]  # whose relay sees no difference
        runs += [Run(f"{name}, part {n}", environment, env, [*marked, *not_dask, *files[n - 1 :: 3]]) for n in (1, 2, 3)]
        if first and newest:
            runs.append(Run(f"{name}, once", environment, env, [*marked, *(path for path in FILES if path in ONCE)]))
        if not first and slow:
            runs.append(Run(f"{name}, slow", environment, env, ["-m", "slow", *SLOW_IN_BOTH, *not_dask]))
    return runs


def run_memcheck(version: Version) -> Run:
    """On an older version, too: valgrind may not be able to run the newest."""
    options = ["-m", "slow", "tests/test_memory.py", "-k", "memcheck"]
    return Run(f"CPython {named(version)}, memcheck", ROOT / ".venv" / f"test-{named(version)}", dict(os.environ), options)


def run_on_oldest_dask(version: Version, interpreter: str) -> Run:
    environment = prepare("oldest-dask", interpreter, "test,dask", *OLDEST_DASK)
    options = ["-m", "not browser", "tests/test_dask.py"]
    return Run(f"CPython {named(version)}, {OLDEST_DASK[0]}", environment, dict(os.environ), options)


def run_in_browser(arguments: list[str]) -> int:
    """The tests that need a browser, on this Python."""
    path = chromium()
    if path is None:
        print("Chromium was not found, so the tests in a browser are skipped; CHROMIUM=/where/it/is names one")
        return 0
    environment = prepare("browser", sys.executable, "browser")
    env = {**os.environ, "CHROMIUM": path}
    command = [environment / "bin" / "python", "-m", "pytest", "-p", "no:cacheprovider", "-m", "browser"]
    return subprocess.run([*command, "tests/test_notebook.py", *arguments], cwd=environment / "run", env=env).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="X.Y[.Z]", help="one version")
    parser.add_argument("--all", action="store_true", help="with the slow ones, on the newest version")
    parser.add_argument("--browser", action="store_true", help="the tests in a browser, and no others")
    parser.add_argument("arguments", nargs="*", help="for pytest, instead of the parts")
    options = parser.parse_args()
    if options.browser:
        return run_in_browser(options.arguments)

    found = interpreters()
    if options.only:
        found = {version: path for version, path in found.items() if f"{named(version)}.".startswith(f"{options.only}.")}
    runs: list[tuple[str, Future[int]]] = []
    short: list[Run] = []
    with ThreadPoolExecutor(processors()) as pool:
        for version in sorted(found, reverse=True):
            newest, between = version == max(found), min(found) < version < max(found)
            for run in runs_on(version, found[version], newest, between, options.all and newest, options.arguments):
                if "PROGRESS_EXECUTOR_NO_EXTENSIONS" in run.env:
                    short.append(run)
                else:
                    runs.append((run.name, pool.submit(run)))
        if options.all and found and not options.arguments:
            short.append(run_on_oldest_dask(min(found), found[min(found)]))
            # Before 3.13 memcheck finds something in CPython itself.
            short += [run_memcheck(version) for version in sorted(found) if version >= (3, 13)][:1]
        runs += [(run.name, pool.submit(run)) for run in short]  # last, so that no processor waits long for another
    print()
    for name, future in runs:
        print(f"{name}: {'passed' if future.result() == 0 else 'FAILED'}")
    for version in sorted({*([] if options.only else VERSIONS), *found}):
        name = f"CPython {named(version)}"
        if not any(each[: len(version)] == version for each in found):
            print(f"{name}: not run, it is not on this machine")
        elif len(version) == 3 and not any(run.startswith(f"{name}, cython") for run, _ in runs):
            print(f"{name}, cython: not run, THE SPEEDUPS WERE NOT BUILT")
    if not found:
        print("no CPython from 3.11 was found")
    return int(not found or any(future.result() for _, future in runs))


if __name__ == "__main__":
    sys.exit(main())
