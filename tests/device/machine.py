"""A Raspberry-Pi-class device without one: a Debian root of another architecture, and an emulator that runs its Python.

The emulator is QEMU's user mode: one program runs as a process of this machine, with its files, its loopback and its
signals, so the agent talks to a native Mosquitto, and kill -9 is what it is. Neither root rights nor mounts nor binfmt
are needed; without binfmt a program that is emulated cannot start another one.

A root is made once into the cache (`tests/fetching.py`), named by a digest of the pins and of this file: Debian's
Python, and the packages of the extra `edge` as the wheels that a device gets, at the versions of `constraints.txt`. The
project's own code changes, so it is laid beside the root anew each time (`Machine.site`).
"""

import hashlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.brokers.fetch import Software, unpacked
from tests.fetching import cached, debian, this_system
from tests.installing import ROOT, pip

CORES = 4
HINT = "it needs Debian's apt, and sources that have this architecture"
MANYLINUX = ("manylinux_2_34", "manylinux_2_31", "manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")


@dataclass(frozen=True)
class Kind:
    """A kind of device.

    `architecture` is Debian's name for it, `machine` the kernel's and the wheels'; `cpuinfo` is what the runtimes read
    to find out what the processor can do: with this machine's own they crash, or leave XNNPACK out without a word.
    """

    machine: str
    architecture: str
    emulator: str
    cpu: str
    cpuinfo: str
    packages: tuple[str, ...] = ("python3.11", "libstdc++6", "libgomp1", "libatomic1")


RASPBERRY_PI_4 = Kind(
    machine="aarch64",
    architecture="arm64",
    emulator="qemu-aarch64",
    cpu="cortex-a72",
    cpuinfo="Features\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    "CPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n",
)


@dataclass(frozen=True)
class Machine:
    """An emulated device: its root, the emulator, and the folder with the project's own code."""

    kind: Kind
    root: Path
    qemu: Software
    site: Path

    def python(self, *arguments: str) -> list[str]:
        """How its Python is started, in `environment()`."""
        return [self.qemu.program(self.kind.emulator), str(self.root / "usr/bin/python3.11"), *arguments]

    def sluice(self) -> list[str]:
        """How its `sluice` command is started."""
        return self.python("-c", "from sluice.cli import main; main()")

    def environment(self) -> dict[str, str]:
        """What emulator and Python have to be told."""
        told = {
            "QEMU_LD_PREFIX": str(self.root),
            "QEMU_CPU": self.kind.cpu,
            "PYTHONPATH": f"{self.site}:{self.root}/opt/site",
            "PYTHONNOUSERSITE": "1",  # those in this machine's home are of its own architecture
        }
        libraries = self.qemu.environment().get("LD_LIBRARY_PATH")
        if self.qemu.fetched is not None and libraries:
            told |= {"LD_LIBRARY_PATH": libraries, "QEMU_UNSET_ENV": "LD_LIBRARY_PATH"}
        return told

    def run(self, *arguments: str, timeout_s: float = 120.0, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run its Python to the end, with `more` in the environment."""
        return subprocess.run(
            self.python(*arguments),
            env={"PATH": "/usr/bin:/bin", **self.environment(), **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def machine(kind: Kind, wheel: Path, folder: Path) -> Machine:
    """A device of that kind with the project's `wheel` on it, laid into `folder`. Raises `Unavailable`."""
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    return Machine(kind, root(kind, requirements("edge")), qemu(kind), folder / "site")


def qemu(kind: Kind) -> Software:
    """The emulator, the machine's own or Debian's; the dynamic one, which takes plugins (`bench_instructions`)."""
    installed = shutil.which(kind.emulator)
    if installed is not None:
        return Software((Path(installed).parent,))
    folder, program = unpacked("qemu-user", f"usr/bin/{kind.emulator}")
    return Software((program.parent,), folder)


def root(kind: Kind, wanted: list[str], constraints: str = "constraints.txt") -> Path:
    """The root with the packages `wanted`, at the versions of the file `constraints`."""
    pins = (ROOT / constraints).read_bytes()
    recipe = "\n".join([repr(kind), *wanted]).encode() + pins + Path(__file__).read_bytes()
    name = f"{kind.machine}-{this_system()}-{hashlib.sha256(recipe).hexdigest()[:12]}"
    return cached(name, _maker(kind, wanted, constraints))


def _maker(kind: Kind, wanted: list[str], constraints: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        debian(list(kind.packages), folder, HINT, kind.architecture)
        site = folder / "opt/site"
        pip(
            [sys.executable, "-m", "pip"],
            *("install", "--target", str(site), "--only-binary=:all:", "--no-compile"),
            *("--implementation", "cp", "--python-version", "3.11"),
            *(option for name in MANYLINUX for option in ("--platform", f"{name}_{kind.machine}")),
            *("--constraint", str(ROOT / constraints), *wanted),
            cwd=folder,
        )
        (folder / "proc").mkdir()
        cores = "\n".join(f"processor\t: {core}\n{kind.cpuinfo}" for core in range(CORES))
        (folder / "proc/cpuinfo").write_text(cores)
        if sys.version_info[:2] == (3, 11):  # else its Python compiles what it imports, which takes longer
            compiled = [str(folder / "usr/lib/python3.11"), str(site)]
            command = [sys.executable, "-m", "compileall", "-q", "-s", str(folder), "-p", "/", *compiled]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # some tests in there are no valid Python

    return make


def requirements(extra: str) -> list[str]:
    """What a device installs: the project's dependencies and those of the extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"][extra]]
