"""`sluice up` and its end: whatever ends it, and whenever, no process is left behind."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from sluice.dev.processes import sluice_command

WAIT_S = 60.0


def processes_in(folder: Path) -> list[int]:
    """All living processes whose working folder is below `folder`: every room, broker and job is."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            alive = (entry / "stat").read_text().rpartition(") ")[2][0] != "Z"
            if alive and (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended while we looked, or is not ours
    return found


def until(count: int, folder: Path) -> None:
    """Wait until at least `count` processes run there, or none when `count` is 0."""
    deadline = time.monotonic() + WAIT_S
    while True:
        running = processes_in(folder)
        if len(running) >= count if count else not running:
            return
        assert time.monotonic() < deadline, f"{len(running)} processes, waiting for {count}"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("how", "after"),
    [(signal.SIGINT, 1), (signal.SIGINT, 4), (signal.SIGTERM, 9), (signal.SIGKILL, 9)],
    ids=["Ctrl-C at once", "Ctrl-C half way", "SIGTERM when up", "kill -9 when up"],
)
def test_nothing_is_left_behind(tmp_path: Path, how: signal.Signals, after: int) -> None:
    """`after`: how many of its nine processes run when it is ended."""
    folder = tmp_path / "up"
    with subprocess.Popen(
        [*sluice_command(), "up", "--data", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as up:
        until(after, folder)
        up.send_signal(how)
        assert up.wait(WAIT_S) != 0
    until(0, folder)
