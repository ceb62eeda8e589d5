"""PostgreSQL on loopback, with a fresh cluster in a folder of its own.

It refuses to run as root; a test run that is root starts it as `nobody`, with a folder that `nobody` owns.
Nothing is synced to disk: what these tests kill is the process, and a crash of the machine is not among them.
"""

import os
import pwd
import secrets
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.brokers import fetch
from tests.brokers.process import HOST, POLL_S, STOP_TIMEOUT_S, Server, StartError

if TYPE_CHECKING:
    import psycopg

USER = "sluice"
DATABASE = "postgres"
INITDB_TIMEOUT_S = 60.0
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "fsync": "off",
    "max_connections": "50",
    "shared_buffers": "32MB",
}


class Postgres(Server):
    """A PostgreSQL server; `url` is that of its first database, `database()` makes others."""

    def __init__(self, folder: Path | None = None) -> None:
        self.software = fetch.postgres()
        super().__init__(folder)
        self.password = secrets.token_hex(8)
        self.data = self.folder / "data"
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self.user = (nobody.pw_uid, nobody.pw_gid)
            os.chown(self.folder, *self.user)

    @property
    def url(self) -> str:
        return self._url(DATABASE)

    def database(self, name: str) -> str:
        """Makes an empty database and returns its URL."""
        from psycopg import sql

        with self._connect() as connection:
            connection.autocommit = True
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._url(name)

    def prepare(self) -> None:
        if (self.data / "PG_VERSION").exists():
            return
        if self.user is not None:  # the cache may lie where nobody gets in
            self.software = self.software.moved(self.folder / "software")
        password = self.folder / "password"
        password.write_text(self.password)
        password.chmod(0o600)
        if self.user is not None:
            os.chown(password, *self.user)
        initdb = [
            self.software.program("initdb"),
            *("-D", str(self.data), "-U", USER, "--pwfile", str(password), "--auth=scram-sha-256"),
            *("--encoding=UTF8", "--locale=C", "--no-sync"),
        ]
        if self.launch(initdb).wait(INITDB_TIMEOUT_S) != 0:
            raise StartError(f"PostgreSQL could not make its cluster:\n{self.log_tail()}")

    def command(self) -> list[str]:
        settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        return [self.software.program("postgres"), "-D", str(self.data), "-p", str(self.port), *settings]

    def environment(self) -> dict[str, str]:
        return self.software.environment() | {"LC_ALL": "C"}

    def answers(self) -> bool:
        import psycopg

        try:
            with self._connect() as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """Ends the server without waiting for its clients to leave (a plain SIGTERM would)."""
        if self.running:
            os.kill(self.pid, signal.SIGINT)
        super().stop()

    def kill(self) -> None:
        """SIGKILL to the server and its children, who left its session and hold its shared memory."""
        children = _children(self.pid) if self.running else []
        super().kill()
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it saw that its parent was gone
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while any(_alive(child) for child in children) and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}:{self.password}@{HOST}:{self.port}/{database}"

    def _connect(self) -> "psycopg.Connection":
        import psycopg

        return psycopg.connect(
            host=HOST,
            port=self.port,
            user=USER,
            password=self.password,
            dbname=DATABASE,
            connect_timeout=5,
        )


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    """Whether it runs; what only waits to be reaped holds nothing any more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
