"""Finds the servers that the tests need, and fetches what the machine does not have into a cache, once.

Kafka comes as Maven artifacts. Mosquitto and PostgreSQL are the machine's own where it has them, elsewhere Debian's
(`tests/fetching.py` has the cache and the way to Debian's packages). What cannot be had raises `Unavailable` with one
line that says what to install. `mosquitto.py`, `kafka.py` and `postgres.py` run what this module finds.
`python -m tests.brokers.fetch` fetches all of it beforehand.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.fetching import Unavailable, cached, debian, run_step, this_system

KAFKA_POM = Path(__file__).with_name("kafka-pom.xml")
COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
JAVA_AT_LEAST = 17


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
    root, program = unpacked("mosquitto", "usr/sbin/mosquitto")
    return Software((program.parent, root / "usr/bin"), root)


def postgres() -> Software:
    """PostgreSQL's server programs, the machine's own or Debian's."""
    installed = _newest(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    on_path = shutil.which("postgres", path=_search_path())
    if installed is not None:
        return Software((installed.parent,))
    if on_path is not None:
        return Software((Path(on_path).resolve().parent,))
    root, program = unpacked("postgresql", "usr/lib/postgresql/*/bin/postgres")
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
        run_step(
            [maven, "-q", "-B", "-f", str(KAFKA_POM), COPY_DEPENDENCIES, f"-DoutputDirectory={folder}"],
            "Kafka",
        )
        if not any(folder.glob("kafka_2.13-*.jar")):
            raise Unavailable("Kafka could not be fetched: Maven reported success and brought no broker")

    return cached(f"kafka-{hashlib.sha256(pom).hexdigest()[:12]}", copy_into)


def _search_path() -> str:
    """PATH and the folder of system daemons, which a plain user's PATH does not hold."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


def _newest(programs: Iterable[Path]) -> Path | None:
    """The one with the highest version in `…/<version>/bin/<program>`."""
    numbered = [path for path in programs if path.parent.parent.name.isdigit()]
    return max(numbered, key=lambda path: int(path.parent.parent.name), default=None)


def unpacked(package: str, server: str) -> tuple[Path, Path]:
    """A folder with the unpacked Debian package and those of its dependencies that the machine lacks.

    Returns:
        The folder, and in it the program that the pattern `server` names.
    """
    hint = f"install the package {package}"

    def unpack_into(folder: Path) -> None:
        debian([package], folder, hint)
        if not any(folder.glob(server)):
            raise Unavailable(f"{package} could not be fetched: Debian's package brought no server; {hint}")

    root = cached(f"{package}-{this_system()}", unpack_into)
    return root, next(root.glob(server))


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
