"""The demonstration: SHA-256 digests of whole folders, one task and one bar per folder.

`python -m progress_executor --help` tells how to call it.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import stat
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import NamedTuple

from . import (
    ProcessPoolProgressExecutor,
    ProgressExecutor,
    ProgressGroup,
    SyncProgressExecutor,
    ThreadPoolProgressExecutor,
    Updater,
    WorkerDied,
)

CHUNK = 1 << 20


@contextlib.contextmanager
def _on_dask(workers: int, scheduler: str | None) -> Iterator[ProgressExecutor]:
    from distributed import Client

    from ._executors.dask import DaskProgressExecutor, local_client

    for name in ("distributed", "distributed.client"):  # each has a level of its own
        logging.getLogger(name).setLevel(logging.CRITICAL)  # of a lost scheduler `main` tells, in one line
    if scheduler is None:
        # A worker of an old Dask may complain in many lines that its cluster is closed while it has something to do.
        client = local_client(n_workers=workers, threads_per_worker=1, silence_logs=logging.CRITICAL)
    else:
        client = Client(scheduler, set_as_default=False)  # type: ignore[no-untyped-call]
    with client, DaskProgressExecutor(client) as executor:
        yield executor


EXECUTORS: dict[str, Callable[[int, str | None], contextlib.AbstractContextManager[ProgressExecutor]]] = {
    "thread": lambda workers, _: ThreadPoolProgressExecutor(workers),
    "process": lambda workers, _: ProcessPoolProgressExecutor(workers, kill_after=5),
    "sync": lambda workers, _: SyncProgressExecutor(),
    "dask": _on_dask,
}


class Digest(NamedTuple):
    """What is known of a folder: one digest over the names and contents of its files."""

    hex: str
    files: int
    size: int
    unreadable: list[str]


def digest_folder(folder: str, progress: Updater) -> Digest:
    """The digest of all regular files at or below `folder`; those that cannot be read are named in the result."""
    files: list[tuple[str, int]] = []
    unreadable: list[str] = []
    for path in sorted(_walk(folder, unreadable.append)):
        try:
            info = os.stat(path)
        except OSError as error:
            unreadable.append(f"{path}: {error.strerror}")
            continue
        if stat.S_ISREG(info.st_mode):
            files.append((path, info.st_size))
        progress.check()

    progress.total = sum(size for _, size in files)
    whole, count, total = hashlib.sha256(), 0, 0
    for path, _ in files:
        try:
            digest, size = _digest_file(path, progress)
        except OSError as error:
            unreadable.append(f"{path}: {error.strerror}")
            continue
        whole.update(os.fsencode(os.path.relpath(path, folder)) + b"\0" + digest)
        count += 1
        total += size
    return Digest(whole.hexdigest(), count, total, unreadable)


def _walk(folder: str, report: Callable[[str], None]) -> Iterator[str]:
    if not os.path.isdir(folder):
        yield folder
        return
    for where, folders, names in os.walk(folder, onerror=lambda error: report(f"{error.filename}: {error.strerror}")):
        folders.sort()
        for name in names:
            yield os.path.join(where, name)


def _digest_file(path: str, progress: Updater) -> tuple[bytes, int]:
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        # Not `while chunk := ...`: CPython 3.12 and 3.13 leave the jump back of that loop out of the exception table, and a
        # KeyboardInterrupt that comes there leaves the file open.
        for chunk in iter(partial(file.read, CHUNK), b""):
            digest.update(chunk)
            size += len(chunk)
            progress.update(len(chunk))
    return digest.digest(), size


def standard_library() -> list[str]:
    """The folders of the running Python's standard library."""
    top = sysconfig.get_path("stdlib")
    with os.scandir(top) as entries:
        return sorted(
            entry.path
            for entry in entries
            if entry.is_dir() and entry.name not in ("__pycache__", "site-packages", "dist-packages")
        )


def _number_of_workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text!r}")
    return int(text)


def _complain(message: str) -> None:
    if sys.stderr is not None:
        print(f"progress_executor: {message}", file=sys.stderr)


@contextlib.contextmanager
def _clean_ctrl_c() -> Iterator[None]:
    """Keep the terminal from doing more at Ctrl-C than send the signal.

    Its echo of "^C" would stand in the middle of a bar, or push it into the next row. And it drops what was written and not
    yet shown: without the end of a bar's drawing, which moves the cursor back, all that follows stands in a wrong row.
    """
    terminal = sys.stderr.fileno() if sys.stderr is not None and sys.stderr.isatty() else None
    if terminal is None or os.name != "posix" or os.tcgetpgrp(terminal) != os.getpgrp():  # not ours to change
        yield
        return
    import termios

    before = termios.tcgetattr(terminal)
    clean = before.copy()
    clean[3] = clean[3] & ~termios.ECHOCTL | termios.NOFLSH
    termios.tcsetattr(terminal, termios.TCSANOW, clean)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m progress_executor",
        description="SHA-256 of every file below each PATH, one task and one bar per PATH. Ctrl-C stops all of them.",
    )
    parser.add_argument("paths", metavar="PATH", nargs="*", help="default: the folders of Python's standard library")
    parser.add_argument(
        "--executor", choices=EXECUTORS, default="process", help="where the tasks run (default: %(default)s)"
    )
    parser.add_argument("--workers", type=_number_of_workers, default=os.cpu_count() or 1, help="default: %(default)s")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of Dask's; default: that of a local cluster")
    options = parser.parse_args(argv)
    if options.scheduler and options.executor != "dask":
        parser.error("--scheduler is for --executor dask")
    if options.executor == "dask" and importlib.util.find_spec("distributed") is None:
        parser.error("--executor dask needs Dask: install progress-executor[dask]")
    return options


def _report(paths: list[str], futures: Mapping[int, Future[Digest]]) -> Exception | None:
    """Print what became of each path; returns why the last one failed that did."""
    lost: Exception | None = None
    for index, path in enumerate(paths):
        if index not in futures or futures[index].cancelled():
            print(f"{'cancelled':64}  {path}")
            continue
        try:
            digest = futures[index].result()
        except (OSError, WorkerDied) as error:
            lost = error
            print(f"{'failed':64}  {path}")
            continue
        for line in digest.unreadable:
            _complain(f"cannot read {line}")
        unreadable = f", {len(digest.unreadable)} unreadable" if digest.unreadable else ""
        print(f"{digest.hex}  {path}: {digest.files} files, {digest.size} bytes{unreadable}")
    return lost


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration with the given arguments; returns the exit status."""
    options = _options(argv)
    paths = options.paths or standard_library()
    for path in paths:
        if not os.path.exists(path):
            _complain(f"no such file or folder: {path}")
            return 2

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a name that is not text comes out as it is
    look = {"unit": "B", "unit_scale": True, "leave": False, "disable": sys.stderr is None}
    status = 0
    lost: Exception | None = None
    futures = {}
    try:
        with _clean_ctrl_c(), EXECUTORS[options.executor](options.workers, options.scheduler) as executor:
            for index, path in enumerate(paths):
                # A worker of a cluster may have been started in another folder.
                where = os.path.abspath(path) if options.executor == "dask" else path
                future = futures[index] = executor.submit(digest_folder, where)
                bar = {"desc": os.path.basename(path) or path, **look}
                future.add_tqdm_callback(init_kwargs=bar, triggers=["running"])
            ProgressGroup(futures.values()).add_tqdm_callback(init_kwargs={"desc": "total", **look})
            wait(futures.values())
    except KeyboardInterrupt:
        status = 130
    except OSError as error:  # of Dask, whose scheduler is absent or lost
        if not futures:
            _complain(str(error))
            return 1
        lost = error

    lost = _report(paths, futures) or lost
    if lost is not None:
        _complain(str(lost))
    if status:
        done = sum(future.done() and not future.cancelled() for future in futures.values())
        _complain(f"interrupted: {done} of {len(paths)} finished, {len(paths) - done} cancelled")
    return status or int(lost is not None)
