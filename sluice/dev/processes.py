"""Processes: every room started by its own `sluice` command, watched, and ended whatever happens.

A child ends with this process even when that is killed, because the kernel is asked to see to it; so start children
from the main thread, since the kernel looks at the thread that started them.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sluice.daemon.life import READY
from sluice.wire.errors import PermanentError

_PR_SET_PDEATHSIG = 1
STOP_S = 10.0


def free_port() -> int:
    """A TCP port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def sluice_command() -> list[str]:
    """How the `sluice` command of this installation is started."""
    script = Path(sys.executable).with_name("sluice")
    return [str(script)] if script.exists() else [sys.executable, "-c", "from sluice.cli import main; main()"]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP end this program as Ctrl-C does, so that `Processes` ends its children on the way out.

    Further Ctrl-Cs while they end are ignored.
    """

    def end(number: int, _frame: object) -> None:
        for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


class Process:
    """One `sluice` command, running; its output goes to `log`, `ready` is set at its ready line.

    `sluice` says how it is started; None: as this installation's.
    """

    def __init__(
        self,
        name: str,
        arguments: list[str],
        settings: Mapping[str, str],
        folder: Path,
        sluice: list[str] | None = None,
    ) -> None:
        self.name = name
        self.arguments = arguments
        self.sluice = sluice or sluice_command()
        self.settings = dict(settings)
        self.folder = folder
        self.log = folder / f"{name}.log"
        self.start()

    def start(self) -> None:
        """Start it, or start it again with the same settings."""
        self.ready = threading.Event()
        self.ready_line: dict[str, Any] = {}
        keep = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV") if key in os.environ}
        self.child = subprocess.Popen(
            [*self.sluice, *self.arguments],
            env={**keep, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1", **self.settings},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 (it only makes one system call)
        )
        self._reader = threading.Thread(
            target=self._read, args=(self.child, self.ready), name=f"log-{self.name}", daemon=True
        )
        self._reader.start()

    def _read(self, child: subprocess.Popen[bytes], ready: threading.Event) -> None:
        assert child.stdout is not None
        with child.stdout, self.log.open("ab", buffering=0) as log:
            for line in child.stdout:
                log.write(line)
                if not ready.is_set() and READY.encode() in line:
                    try:
                        fields = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(fields, dict) and fields.get("message") == READY:
                        self.ready_line = fields
                        ready.set()
        ready.set()  # whoever waits looks at whether it still runs

    def wait_ready(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """The fields of its ready line; `PermanentError` with the end of its log if it ended or took too long."""
        if not self.ready.wait(timeout_s) or not self.ready_line:
            raise PermanentError(f"{self.name} did not start; the end of {self.log}:\n{self.tail()}")
        return self.ready_line

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self.child.poll() is None

    def kill(self) -> None:
        """End it at once (SIGKILL), as a power cut would."""
        self.child.kill()
        self.child.wait()
        self._reader.join()

    def ask_to_stop(self) -> None:
        """Ask it to end (SIGTERM)."""
        if self.running:
            self.child.terminate()

    def stop(self) -> int:
        """Ask it to end, insist after `STOP_S` seconds; returns its exit code."""
        self.ask_to_stop()
        try:
            self.child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self._reader.join()
        return self.child.returncode


class Processes:
    """All processes of a run; leaving the context ends them, last started first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.all: list[Process] = []

    def start(
        self,
        name: str,
        arguments: list[str],
        settings: Mapping[str, str] | None = None,
        sluice: list[str] | None = None,
    ) -> Process:
        """Start a `sluice` command under a name of its own."""
        process = Process(name, arguments, settings or {}, self.folder, sluice)
        self.all.append(process)
        return process

    def run(self, arguments: list[str], settings: Mapping[str, str] | None = None, timeout_s: float = 120.0) -> str:
        """Run a `sluice` command to its end and return what it printed; `PermanentError` if it failed."""
        keep = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
        done = subprocess.run(
            [*sluice_command(), *arguments],
            env={**keep, **(settings or {})},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            preexec_fn=_die_with_parent,
        )
        if done.returncode != 0:
            raise PermanentError(f"sluice {' '.join(arguments[:2])} failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    def dead(self) -> list[Process]:
        """Those that ended by themselves."""
        return [process for process in self.all if not process.running]

    def stop(self) -> None:
        """End all of them."""
        for process in reversed(self.all):
            process.ask_to_stop()
        for process in reversed(self.all):
            process.stop()
        self.all.clear()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
