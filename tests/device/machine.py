"""A Raspberry-Pi-class device without one: a Debian root of another architecture, and an emulator that runs its Python.

The emulator is QEMU's user mode: one program runs as a process of this machine, with its files, its loopback and its
signals, so the agent talks to a native Mosquitto, and kill -9 is what it is. Neither root rights nor mounts nor binfmt
are needed; without binfmt a program that is emulated cannot start another one.

A root is made once into the cache (`tests/fetching.py`), named by a digest of the pins and of `root`: Debian's
Python, and the packages that a device gets as the wheels that it gets, at the pinned versions. The project's own code
changes, so it is laid beside the root anew each time (`Machine.site`).
"""

import hashlib
import inspect
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
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
    no_wheels: tuple[str, ...] = ()
    """Of tflite-runtime's environment; Debian's are among `packages` where the segments need them."""


RASPBERRY_PI_4 = Kind(
    machine="aarch64",
    architecture="arm64",
    emulator="qemu-aarch64",
    cpu="cortex-a72",
    cpuinfo="Features\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    "CPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n",
)

RASPBERRY_PI_2 = Kind(
    machine="armv7l",
    architecture="armhf",
    emulator="qemu-arm",
    cpu="cortex-a7",
    cpuinfo="Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae\n"
    "CPU implementer\t: 0x41\nCPU architecture: 7\nCPU variant\t: 0x0\nCPU part\t: 0xc07\nCPU revision\t: 5\n",
    packages=("python3.11", "libstdc++6", "libgomp1", "libatomic1", "python3-numpy", "python3-nacl"),
    no_wheels=("numpy", "cffi", "PyNaCl", "fastavro", "zstandard"),
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

    def run(
        self, *arguments: str, settings: Mapping[str, str] | None = None, timeout_s: float = 120.0
    ) -> "subprocess.CompletedProcess[str]":
        """Run its Python to the end, with `settings` in the environment."""
        return subprocess.run(
            self.python(*arguments),
            env={"PATH": "/usr/bin:/bin", **self.environment(), **(settings or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def machine(kind: Kind, runtime: list[str], wheel: Path, folder: Path) -> Machine:
    """A device of that kind with the packages of `runtime` and the project's `wheel`, laid into `folder`.

    Raises `Unavailable`.
    """
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    return Machine(kind, root(kind, runtime), qemu(kind), folder / "site")


def litert() -> list[str]:
    """What pip installs on a 64-bit device: the extra `edge`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return ["--constraint", "constraints.txt", *project["dependencies"], *project["optional-dependencies"]["edge"]]


def tflite_runtime(kind: Kind) -> list[str]:
    """What pip installs where `tflite-runtime` runs the segments, without what has no wheels for that kind."""
    pins = (ROOT / "constraints-tflite-runtime.txt").read_text().split()
    return ["--no-deps", *(pin for pin in pins if pin.partition("==")[0] not in kind.no_wheels)]


def qemu(kind: Kind) -> Software:
    """The emulator, the machine's own or Debian's; the dynamic one, which takes plugins (`bench_instructions`)."""
    installed = shutil.which(kind.emulator)
    if installed is not None:
        return Software((Path(installed).parent,))
    folder, program = unpacked("qemu-user", f"usr/bin/{kind.emulator}")
    return Software((program.parent,), folder)


def root(kind: Kind, install: list[str]) -> Path:
    """The root with what pip makes of the arguments `install`."""
    recipe = "\n".join([repr(kind), *install, inspect.getsource(root)]).encode()
    if "constraints.txt" in install:
        recipe += (ROOT / "constraints.txt").read_bytes()
    name = f"{kind.machine}-{this_system()}-{hashlib.sha256(recipe).hexdigest()[:12]}"

    def make(folder: Path) -> None:
        debian(list(kind.packages), folder, HINT, kind.architecture)
        site = folder / "opt/site"
        pip(
            [sys.executable, "-m", "pip"],
            *("install", "--target", str(site), "--only-binary=:all:", "--no-compile"),
            *("--implementation", "cp", "--python-version", "3.11"),
            *(option for name in MANYLINUX for option in ("--platform", f"{name}_{kind.machine}")),
            *install,
            cwd=ROOT,
        )
        for library in folder.glob("usr/lib/*/*/lib*.so.3"):  # alternatives, which an installation would link
            if library.parent.name in ("blas", "lapack"):
                (library.parents[1] / library.name).symlink_to(library.relative_to(library.parents[1]))
        (folder / "proc").mkdir()
        cores = "\n".join(f"processor\t: {core}\n{kind.cpuinfo}" for core in range(CORES))
        (folder / "proc/cpuinfo").write_text(cores)
        if sys.version_info[:2] == (3, 11):  # else its Python compiles what it imports, which takes longer
            compiled = [str(folder / "usr/lib/python3.11"), str(folder / "usr/lib/python3"), str(site)]
            command = [sys.executable, "-m", "compileall", "-q", "-s", str(folder), "-p", "/", *compiled]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # some tests in there are no valid Python

    return cached(name, make)
