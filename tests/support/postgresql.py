"""A PostgreSQL of Debian's package, for one run of the tests: its own folder, a Unix socket in it, no port.

`with running_cluster() as cluster:` starts it; databases are copies of a template, which takes some 50 ms each.  It
never syncs to the disk.  As root it runs as the user `postgres`, whom the package made.  No pytest here.
"""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

USER: Final = "tailnet"
PASSWORD: Final = "hunter2-of-the-tests"
# A hang guard: it is up within half a second.
START_SECONDS: Final = 60.0
_FAST: Final = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum=off", "shared_buffers=32MB")


class PostgresqlMissing(Exception):
    """No PostgreSQL is installed here."""


class Cluster:
    """One server.  `stop` and `start` as often as a test likes; running_cluster() removes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._address = folder  # where its socket is
        self._programs = find_programs()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()

    def create(self) -> None:
        """Make its files.  The password is asked for on every connection."""
        passwords = self.folder / "password"
        passwords.write_text(PASSWORD)
        data = self.folder / "data"
        data.mkdir()
        if os.geteuid() == 0:
            for path in (self.folder, passwords, data):
                shutil.chown(path, "postgres", "postgres")
        self._run("initdb", "-D", str(data), "-U", USER, "--pwfile", str(passwords), "-A", "scram-sha-256", "-N",
                  "-E", "UTF8", "--locale", "C.UTF-8")  # fmt: skip

    def start(self, *settings: str) -> None:
        """Start it, and return when it takes connections."""
        options = [part for each in (*_FAST, *settings) for part in ("-c", each)]
        # Whoever kills the tests ends it too.
        dies_with_us = ["setpriv", "--pdeathsig", "QUIT"] if shutil.which("setpriv") else []
        where = ["-D", str(self.folder / "data"), "-k", str(self._address), "-h", ""]
        command = [*dies_with_us, str(self._programs / "postgres"), *where]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **_as_owner()
            )
        give_up_at = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > give_up_at:
                    raise RuntimeError((self.folder / "log").read_text()) from None
            time.sleep(0.02)

    def copy(self, folder: Path) -> "Cluster":
        """A copy of the files as they are while it is stopped: what a standby has that got no further."""
        made = Cluster(folder)
        shutil.copytree(self.folder / "data", folder / "data", copy_function=shutil.copy2)
        (folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        if os.geteuid() == 0:
            for path in (folder, *folder.rglob("*")):
                shutil.chown(path, "postgres", "postgres")
        return made

    def take_over(self, other: "Cluster") -> None:
        """Answer where another one did, which is stopped."""
        self._address = other._address

    @property
    def pid(self) -> int:
        """The first process, whose children serve; only while it runs."""
        assert self._process is not None
        return self._process.pid

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT ends sessions first (fast), SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_SECONDS)
            self._process = None

    def url(self, database: str, *, user: str = USER, password: str = PASSWORD) -> str:
        return f"postgresql+psycopg://{user}:{password}@/{database}?host={self._address}"

    def connect(self, database: str = "postgres") -> "psycopg.Connection[Any]":
        """A connection of the administrator's, outside of transactions."""
        return psycopg.connect(
            host=str(self._address), user=USER, password=PASSWORD, dbname=database, autocommit=True, connect_timeout=10
        )

    def make_database(self, template: str = "template1") -> str:
        """A new database, a copy of that one; its name."""
        name = f"store{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def drop_database(self, name: str) -> None:
        with self.connect() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            **_as_owner(),
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")


def find_programs() -> Path:
    """Where initdb and postgres are: Debian keeps them off the path.  Raises PostgresqlMissing."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if versions:
        return versions[-1].parent
    found = shutil.which("initdb")
    if found is None:
        raise PostgresqlMissing("no PostgreSQL here: apt-get install postgresql")
    return Path(found).resolve().parent


@contextmanager
def running_cluster(*settings: str) -> Iterator[Cluster]:
    """A running server, stopped and removed at the end.  Raises PostgresqlMissing."""
    find_programs()
    # Not pytest's folder, which is closed to others; and a socket's path has 107 characters at the most.
    folder = Path(tempfile.mkdtemp(prefix="tailnet-pg-", dir=_in_memory()))
    folder.chmod(0o755)
    cluster = Cluster(folder)
    try:
        cluster.create()
        cluster.start(*settings)
        yield cluster
    finally:
        cluster.stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


def _in_memory() -> str | None:
    # A database is 300 files: making them takes a second on a disk, 50 ms in memory.  Containers often have too little.
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30 else None


def _as_owner() -> dict[str, Any]:
    # It refuses to be root's.
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
