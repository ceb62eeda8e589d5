"""Finds the servers that the tests need, and fetches what the machine does not have into a cache, once.

Kafka comes as Maven artifacts. Mosquitto and PostgreSQL are the machine's own where it has them; elsewhere
Debian's packages are downloaded and unpacked into the cache by an apt with folders of its own: nothing is
installed and no root is needed. The cache is `$SLUICE_CACHE`, or `~/.cache/sluice`. Each entry is built next
to its place under a lock and then renamed, so that two test runs at once share one download and nobody ever
sees half an entry.

What cannot be had raises `Unavailable` with one line that says what to install. `mosquitto.py`, `kafka.py`
and `postgres.py` run what this module finds. `python -m tests.brokers.fetch` fetches all of it beforehand.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

KAFKA_POM = Path(__file__).with_name("kafka-pom.xml")
COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
JAVA_AT_LEAST = 17
DOWNLOAD_TIMEOUT_S = 900


class Unavailable(Exception):
    """A server is not here and could not be fetched; the text says what is missing and what to install."""


@dataclass(frozen=True)
class Software:
    """Programs of one server: the folders where they lie, and the root of what was fetched, if it was."""

    programs: tuple[Path, ...]
    fetched: Path | None = None

    def program(self, name: str) -> str:
        for folder in self.programs:
            if (folder / name).is_file():
                return str(folder / name)
        raise Unavailable(f"{name} is missing: it is not in {', '.join(map(str, self.programs))}")

    def environment(self) -> dict[str, str]:
        """The environment of the programs: unpacked libraries have to be named, installed ones are found."""
        environment = dict(os.environ)
        if self.fetched is not None:
            libraries = sorted({str(lib.parent) for lib in self.fetched.glob("**/lib*/**/*.so*") if lib.is_file()})
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
        return environment

    def moved(self, copy: Path) -> "Software":
        """The same software at another place, for a user who cannot reach the cache."""
        if self.fetched is None:
            return self
        shutil.copytree(self.fetched, copy, symlinks=True)
        return Software(tuple(copy / folder.relative_to(self.fetched) for folder in self.programs), copy)


def mosquitto() -> Software:
    """Mosquitto with `mosquitto_passwd`, the machine's own or Debian's."""
    names = ("mosquitto", "mosquitto_passwd")
    found = [shutil.which(name, path=_search_path()) for name in names]
    if all(found):
        return Software(tuple(Path(program).parent for program in found if program))
    root, program = _debian("mosquitto", "usr/sbin/mosquitto")
    return Software((program.parent, root / "usr/bin"), root)


def postgres() -> Software:
    """PostgreSQL's server programs, the machine's own or Debian's."""
    installed = _newest(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    on_path = shutil.which("postgres", path=_search_path())
    if installed is not None:
        return Software((installed.parent,))
    if on_path is not None:
        return Software((Path(on_path).resolve().parent,))
    root, program = _debian("postgresql", "usr/lib/postgresql/*/bin/postgres")
    return Software((program.parent,), root)


def java() -> str:
    """A Java that is new enough for the Kafka broker."""
    home = os.environ.get("JAVA_HOME")
    program = shutil.which("java", path=f"{home}/bin" if home else None) or shutil.which("java")
    hint = f"install Java {JAVA_AT_LEAST} or newer (package openjdk-17-jre-headless)"
    if program is None:
        raise Unavailable(f"Kafka needs Java, which is missing: {hint}")
    said = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(\d+)', said.stderr)
    if version is None or int(version[1]) < JAVA_AT_LEAST:
        raise Unavailable(f"Kafka needs a newer Java: {hint}")
    return program


def kafka_jars() -> Path:
    """The folder with the jars of a Kafka broker."""
    pom = KAFKA_POM.read_bytes()

    def copy_into(folder: Path) -> None:
        maven = shutil.which("mvn")
        if maven is None:
            raise Unavailable("Kafka is fetched by Maven, which is missing: install Maven (package maven)")
        _run(
            [maven, "-q", "-B", "-f", str(KAFKA_POM), COPY_DEPENDENCIES, f"-DoutputDirectory={folder}"],
            "Kafka",
        )
        if not any(folder.glob("kafka_2.13-*.jar")):
            raise Unavailable("Kafka could not be fetched: Maven reported success and brought no broker")

    return _cached(f"kafka-{hashlib.sha256(pom).hexdigest()[:12]}", copy_into)


def cache_folder() -> Path:
    """Where fetched servers are kept between test runs."""
    chosen = os.environ.get("SLUICE_CACHE")
    return Path(chosen).expanduser().resolve() if chosen else Path.home() / ".cache" / "sluice"


def _search_path() -> str:
    """PATH and the folder of system daemons, which a plain user's PATH does not hold."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


def _newest(programs: Iterable[Path]) -> Path | None:
    """The one with the highest version in `…/<version>/bin/<program>`."""
    numbered = [path for path in programs if path.parent.parent.name.isdigit()]
    return max(numbered, key=lambda path: int(path.parent.parent.name), default=None)


def _cached(name: str, build: Callable[[Path], None]) -> Path:
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


def _debian(package: str, server: str) -> tuple[Path, Path]:
    """A folder with the unpacked Debian package and those of its dependencies that the machine lacks.

    Returns:
        The folder, and in it the program that the pattern `server` names.
    """
    hint = f"install the package {package}"

    def unpack_into(folder: Path) -> None:
        missing = [tool for tool in ("apt-get", "apt-config", "dpkg-deb") if shutil.which(tool) is None]
        if missing:
            raise Unavailable(f"{package} is missing, and so is {missing[0]} that could fetch it: {hint}")
        with tempfile.TemporaryDirectory(prefix=f"{package}.apt-", dir=cache_folder()) as private:
            for archive in _download(package, Path(private), hint):
                _run(["dpkg-deb", "-x", str(archive), str(folder)], package, hint)
        if not any(folder.glob(server)):
            raise Unavailable(f"{package} could not be fetched: Debian's package brought no server; {hint}")

    root = _cached(f"{package}-{_os_release()}-{platform.machine()}", unpack_into)
    return root, next(root.glob(server))


def _download(package: str, private: Path, hint: str) -> list[Path]:
    """Downloads a package and what the machine lacks of its dependencies, with an apt of its own folders.

    Sources, keys and proxies are the machine's; its hooks are left out. The list of installed packages is a
    copy: apt locks the folder where it lies.
    """
    for folder in ("state/lists/partial", "cache/archives/partial", "parts"):
        (private / folder).mkdir(parents=True)
    shutil.copyfile("/var/lib/dpkg/status", private / "state/status")
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
    config = private / "apt.conf"
    config.write_text("\n".join(settings) + "\n")
    environment = {**os.environ, "APT_CONFIG": str(config), "DEBIAN_FRONTEND": "noninteractive"}
    # One source that is out of order must not stop the others, so only the download decides.
    update = ["apt-get", "-q", "update"]
    subprocess.run(update, env=environment, capture_output=True, check=False, timeout=DOWNLOAD_TIMEOUT_S)
    _run(["apt-get", "-q", "-y", "--download-only", "install", package], package, hint, environment)
    archives = sorted((private / "cache/archives").glob("*.deb"))
    if not archives:
        raise Unavailable(f"{package} could not be fetched: apt downloaded nothing; {hint}")
    return archives


def _run(command: list[str], what: str, hint: str = "", environment: dict[str, str] | None = None) -> None:
    """Runs a step of a download; a failure becomes one line with the tool's own last words."""
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
        reason = next((line for line in lines if line.startswith(("E:", "[ERROR]"))), lines[-1] if lines else "")
        tail = f"; {hint}" if hint else ""
        raise Unavailable(f"{what} could not be fetched: {Path(command[0]).name}: {reason[:300]}{tail}") from error


def _os_release() -> str:
    """Name and version of the system, since its packages fit no other one."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return platform.system().lower()
    return f"{release.get('ID', 'linux')}-{release.get('VERSION_ID', 'rolling')}"


def main() -> int:
    """Fetches everything; the exit code says whether all of it is there."""
    missing = 0
    for find in (mosquitto, java, kafka_jars, postgres):
        try:
            print(f"{find.__name__}: {find()}")
        except Unavailable as error:
            print(f"{find.__name__}: {error}", file=sys.stderr)
            missing += 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
