"""Wall clocks of single processes, which can be moved while they run: `clock.c`, compiled by the machine's compiler."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


class NoClockError(Exception):
    """There is no compiler here, or it refuses; the text says why."""


class Clocks:
    """The library, and a file for each process that says how much its clock is ahead."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise NoClockError("no C compiler (package gcc)")
        self.folder = folder
        folder.mkdir()
        self._library = folder / "clock.so"
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(self._library), str(SOURCE), "-lpthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NoClockError(f"clock.c cannot be compiled: {done.stderr.strip()[-200:]}")

    def environment(self, name: str) -> dict[str, str]:
        """What the process `name` must be started with."""
        self.set(name, 0)
        return {"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(self.folder / name)}

    def set(self, name: str, ahead_s: int) -> None:
        """Its clock is so many seconds ahead of the machine's from now on."""
        with (self.folder / name).open("r+b" if (self.folder / name).exists() else "w+b") as file:
            file.write(struct.pack("=q", ahead_s))
