"""What Mosquitto, Kafka and PostgreSQL share: a server that a test starts, stops, kills and starts again.

A server keeps its port and its data folder for life, so that a restart after a `kill -9` is the same server
to its clients. It listens on loopback only, logs to `server.log` in its folder, and dies with the process
that started it.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
LOG_TAIL_LINES = 30
STOP_TIMEOUT_S = 30.0
POLL_S = 0.02

# Asks the kernel to kill this process when its parent goes, takes on another user if one is named, and
# becomes the server. A program of its own and not a `preexec_fn`, which is unsafe where other threads run
# (and test runs have some). The kernel forgets the wish when the user changes, so that comes first.
LAUNCH = """
import ctypes, os, signal, sys
parent, uid, gid = map(int, sys.argv[1:4])
if uid >= 0:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != parent:
    sys.exit("the test run is gone")
os.execv(sys.argv[4], sys.argv[4:])
"""

_given_ports: set[int] = set()


class StartError(Exception):
    """A server that is on the machine did not come up; the text ends with the tail of its log."""


def free_port() -> int:
    """A free port on loopback, below those that the kernel hands out by itself.

    Between a kill and a restart nothing holds the port: one from the kernel's own range could go to some
    client in the meantime, or a client that reconnects could even meet itself there.
    """
    for _ in range(1000):
        port = random.randint(12_000, 32_000)
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        _given_ports.add(port)
        return port
    raise StartError("no free port on loopback")


def accepts(port: int) -> bool:
    """Whether something listens on that port."""
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


class Server(ABC):
    """One server. As a context manager it starts and stops, and a folder of its own making goes with it.

    Start it from a thread that lives as long as the server, which the kernel kills when that thread ends.
    """

    start_timeout_s = 60.0
    user: tuple[int, int] | None = None  # uid and gid to run as, where not the test's own

    def __init__(self, folder: Path | None = None) -> None:
        self.host = HOST
        self.port = free_port()
        self.folder = folder or Path(tempfile.mkdtemp(prefix=f"sluice-{type(self).__name__.lower()}-"))
        # A folder of its own goes when the block ends, or else with the test run.
        self._forget = None if folder else weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def prepare(self) -> None:
        """Writes what the server needs before each start; must leave the data of an earlier start alone."""

    @abstractmethod
    def command(self) -> list[str]:
        """Program (whole path) and arguments."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Environment of the server."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server answers in its own protocol. Asked again and again until it does."""

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Starts the server and returns when it answers.

        Raises:
            Unavailable: the server is not on this machine and could not be fetched.
            StartError: it ended or did not answer in time; with the tail of its log.
        """
        if self.running:
            raise RuntimeError(f"{type(self).__name__} is running already")
        self._process = None
        self.prepare()
        self._process = self.launch(self.command())
        deadline = time.monotonic() + self.start_timeout_s
        while not self.answers():
            if not self.running:
                raise StartError(f"{type(self).__name__} ended at its start:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise StartError(
                    f"{type(self).__name__} gave no answer in {self.start_timeout_s} s:\n{self.log_tail()}"
                )
            time.sleep(POLL_S)
        return self

    def stop(self) -> None:
        """Ends the server in good order. Nothing happens if it is not running."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """Ends the server as a crash would (SIGKILL), with all that it started in its session."""
        process = self._running()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._process = None

    def restart(self) -> Self:
        """`kill()`, then `start()` on the same port and data."""
        self.kill()
        return self.start()

    def launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Starts a process that dies with this one, as the server's user, writing to the server's log."""
        uid, gid = self.user or (-1, -1)
        launcher = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), str(uid), str(gid)]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*launcher, *command],
                env=self.environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log_tail(self) -> str:
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{type(self).__name__} is not running")
        return self._process

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self.stop()
        if self._forget is not None:
            self._forget()
