"""A program on a real pseudo-terminal, and what stands on its screen."""

import codecs
import contextlib
import os
import pty
import select
import signal
import termios
import time
import warnings

import pyte

from .conftest import DEADLINE, session


class Terminal:
    """Runs `argv` as the leader of a session of its own, on a screen that keeps what it shows.

    A context manager: what still runs at its end is killed. At Ctrl-C the terminal writes "^C" and drops what was not yet
    read, unless it is a `clean` one.
    """

    def __init__(self, argv, *, env=None, cwd=None, rows=24, columns=120, clean=False):
        self.output = ""
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self.status = None
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads: the child goes on to exec
            self.pid, self._fd = pty.fork()
        if not self.pid:
            try:
                termios.tcsetwinsize(0, (rows, columns))
                if clean:
                    settings = termios.tcgetattr(0)
                    settings[3] = settings[3] & ~termios.ECHOCTL | termios.NOFLSH
                    termios.tcsetattr(0, termios.TCSANOW, settings)
                os.chdir(cwd or ".")
                os.execve(argv[0], argv, {**(env or os.environ), "TERM": "linux"})
            finally:
                os._exit(127)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            # Its workers end by themselves, then its resource tracker: that must not be killed, for it removes what is left.
            deadline = time.monotonic() + 5
            while session(self.pid) and time.monotonic() < deadline:
                time.sleep(0.01)
            for pid in session(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        os.close(self._fd)

    @property
    def lines(self):
        """The lines on the screen, without trailing blanks."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self):
        return "\n".join(self.lines).rstrip()

    @property
    def column(self):
        """Where the cursor stands, from 0."""
        return self._screen.cursor.x

    def interrupt(self):
        """Ctrl-C: SIGINT to the whole foreground group."""
        os.write(self._fd, b"\x03")

    @property
    def settings(self):
        """What `termios` knows of the terminal."""
        return termios.tcgetattr(self._fd)

    def wait_for(self, condition):
        """Read until `condition(self)` holds, which need not be one of the screen."""
        deadline = time.monotonic() + DEADLINE
        while not condition(self):
            assert time.monotonic() < deadline, f"the condition did not come true:\n{self.text}"
            if select.select([self._fd], [], [], 0.01)[0]:
                assert self._read(deadline), f"the program has ended:\n{self.text}"

    def read_to_the_end(self):
        """Read until the last process has closed the terminal."""
        deadline = time.monotonic() + DEADLINE
        while self._read(deadline):
            pass

    def finish(self):
        """Read to the end; the exit status, negative for a signal."""
        self.read_to_the_end()
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def _read(self, deadline):
        """Whether there is more to come."""
        ready = select.select([self._fd], [], [], max(0, deadline - time.monotonic()))[0]
        assert ready, f"nothing more came until the deadline:\n{self.text}"
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux's end of file
            return False
        self.output += self._decode(data)
        self._stream.feed(data.replace(b"\x03", b""))  # the echo of Ctrl-C: nothing to see, but pyte drops what follows
        return bool(data)

    def processes(self):
        """The ids of the session's living processes; Linux only."""
        return session(self.pid)
