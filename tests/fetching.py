"""What tests fetch and keep: a cache, and Debian's packages by an apt with folders of its own.

The cache is `$SLUICE_CACHE`, or `~/.cache/sluice`. Each entry is built next to its place under a lock and then renamed,
so that two test runs at once share one download and nobody ever sees half an entry. Packages are downloaded and
unpacked: nothing is installed and no root is needed; those of another architecture make a root to emulate
(`tests/device`). What cannot be had raises `Unavailable` with one line that says what to install: a failure in CI, a
loud skip elsewhere (`tests/conftest.py`).
"""

import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

DOWNLOAD_TIMEOUT_S = 900


class Unavailable(Exception):
    """Something is not here and could not be fetched; the text says what is missing and what to install."""


def cache_folder() -> Path:
    """Where what was fetched is kept between test runs."""
    chosen = os.environ.get("SLUICE_CACHE")
    return Path(chosen).expanduser().resolve() if chosen else Path.home() / ".cache" / "sluice"


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The cache entry of that name; `build` fills an empty folder with it if it is not there yet."""
    cache = cache_folder()
    entry = cache / name
    if entry.is_dir():
        return entry
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if entry.is_dir():  # another run was faster
            return entry
        with tempfile.TemporaryDirectory(prefix=f"{name}.part-", dir=cache) as part:
            filled = Path(part) / "entry"
            filled.mkdir(mode=0o755)
            build(filled)
            filled.rename(entry)
    return entry


def this_system() -> str:
    """Name, version and architecture of the system, since its packages fit no other one."""
    try:
        release = platform.freedesktop_os_release()
        named = f"{release.get('ID', 'linux')}-{release.get('VERSION_ID', 'rolling')}"
    except OSError:
        named = platform.system().lower()
    return f"{named}-{platform.machine()}"


def debian(packages: Sequence[str], folder: Path, hint: str, architecture: str | None = None) -> None:
    """Download packages and unpack them into `folder`.

    For this machine those of their dependencies come along that it lacks; for another `architecture` (Debian's name
    for it) all of them, and `folder` becomes a root in which programs of that architecture find what they need.
    Raises `Unavailable`, which ends with `hint`.
    """
    what = packages[0]
    missing = [tool for tool in ("apt-get", "apt-config", "dpkg-deb", "tar") if shutil.which(tool) is None]
    if missing:
        raise Unavailable(f"{what} is missing, and so is {missing[0]} that could fetch it: {hint}")
    if architecture is not None:
        for name in ("bin", "lib", "sbin"):  # as Debian has them since 12
            (folder / "usr" / name).mkdir(parents=True)
            (folder / name).symlink_to(f"usr/{name}")
    with tempfile.TemporaryDirectory(prefix=f"{what}.apt-", dir=cache_folder()) as private:
        for archive in _download(packages, Path(private), hint, architecture):
            # dpkg-deb -x would replace these links by folders
            packed = Path(private) / "packed.tar"
            with packed.open("wb") as tar:
                subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=tar, check=True)
            unpack = ["tar", "-x", "-f", str(packed), "--keep-directory-symlink", "--no-same-owner"]
            run_step([*unpack, "-C", str(folder)], what, hint)


def _download(packages: Sequence[str], private: Path, hint: str, architecture: str | None) -> list[Path]:
    """Download packages and what is lacking of their dependencies, with an apt of its own folders.

    Sources, keys and proxies are the machine's; its hooks are left out. The list of installed packages is a copy,
    since apt locks the folder where it lies; for another architecture it is empty.
    """
    for folder in ("state/lists/partial", "cache/archives/partial", "parts"):
        (private / folder).mkdir(parents=True)
    machine = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    settings = [line for line in machine.splitlines() if line.startswith("Acquire::")]
    settings += [
        f'Dir::State "{private}/state";',
        f'Dir::State::status "{private}/state/status";',
        f'Dir::Cache "{private}/cache";',
        f'Dir::Etc::parts "{private}/parts";',
        'Dir::Etc::main "";',
        'APT::Sandbox::User "";',
        'APT::Install-Recommends "false";',
    ]
    if architecture is None:
        shutil.copyfile("/var/lib/dpkg/status", private / "state/status")
    else:
        (private / "state/status").touch()
        settings += [f'APT::Architecture "{architecture}";', f'APT::Architectures "{architecture}";']
    config = private / "apt.conf"
    config.write_text("\n".join(settings) + "\n")
    environment = {**os.environ, "APT_CONFIG": str(config), "DEBIAN_FRONTEND": "noninteractive"}
    # One source that is out of order must not stop the others, so only the download decides.
    update = ["apt-get", "-q", "update"]
    subprocess.run(update, env=environment, capture_output=True, check=False, timeout=DOWNLOAD_TIMEOUT_S)
    run_step(["apt-get", "-q", "-y", "--download-only", "install", *packages], packages[0], hint, environment)
    archives = sorted((private / "cache/archives").glob("*.deb"))
    if not archives:
        raise Unavailable(f"{packages[0]} could not be fetched: apt downloaded nothing; {hint}")
    return archives


def run_step(command: list[str], what: str, hint: str = "", environment: Mapping[str, str] | None = None) -> None:
    """Run a step of a download; a failure becomes one line with the tool's own last words."""
    try:
        subprocess.run(
            command,
            env=environment,
            check=True,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=DOWNLOAD_TIMEOUT_S,
        )
    except subprocess.SubprocessError as error:
        output = getattr(error, "stdout", None) or str(error)
        text = output.decode(errors="replace") if isinstance(output, bytes) else str(output)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said = ("E:", "[ERROR]", "ERROR:")
        reason = next((line for line in lines if line.startswith(said)), lines[-1] if lines else "")
        tail = f"; {hint}" if hint else ""
        raise Unavailable(f"{what} could not be fetched: {Path(command[0]).name}: {reason[:300]}{tail}") from error
