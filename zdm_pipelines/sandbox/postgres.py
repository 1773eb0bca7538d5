"""Postgres: an embedded primary with a streaming replica, up in seconds, gone without a trace."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import psycopg

from zdm_pipelines.sandbox import binaries, processes
from zdm_pipelines.sandbox.processes import SandboxError
from zdm_pipelines.sandbox.server import Server

__all__ = ["Cluster", "Server"]

_SLOT = "replica"  # the replica's replication slot on the primary


class Cluster:
    """A primary and, unless `replica` is false, its streaming replica.

    A context manager; nothing of it outlives this process. A folder left by an earlier cluster is used again.

    Args:
        folder: where its data lives; as root it may be replaced, see `Cluster.folder`.
        replica: whether there is a replica.
        version: major version of Postgres, 16 or 18.
        settings: `postgresql.conf` settings of both servers, on top of the sandbox's.
        port: the primary's port; the replica takes the next one. None: free ports are chosen.
        fresh: wipe what an earlier cluster left in the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        replica: bool = True,
        version: int = 18,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        fresh: bool = False,
    ) -> None:
        account = binaries.server_account()
        bin_folder = binaries.programs(version, account)
        self.folder = binaries.data_folder(folder, account)
        self._version = version
        self._fresh = fresh

        def server(name: str, server_port: int) -> Server:
            data = self.folder / name
            return Server(data, port=server_port, bin_folder=bin_folder, account=account, settings=settings or {})

        self.primary = server("primary", port or processes.free_port())
        replica_port = port + 1 if port else processes.free_port()
        self._standby = server("replica", replica_port)
        self._replicated = replica

    @property
    def replica(self) -> Server:
        """The streaming replica of the primary.

        Raises:
            SandboxError: this cluster has none.
        """
        if not self._replicated:
            raise SandboxError(str(self.folder), "this cluster has no replica", "make it with replica=True")
        return self._standby

    def start(self) -> None:
        """Start both servers, made first if need be, and wait until they take connections.

        Raises:
            SandboxError: the folder holds another version, or a server does not start.
        """
        if self._fresh:
            self._wipe()
            self._fresh = False
        try:
            self._start_primary()
            if self._replicated:
                self._start_replica(self._standby)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both servers; the folder stays, and may be started again."""
        self._standby.stop()
        self.primary.stop()

    def remove(self) -> None:
        """Stop both servers and delete what they stored."""
        self.stop()
        self._wipe()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def wait_caught_up(self, timeout: float = 10.0) -> None:
        """Wait until the replica has replayed everything the primary has committed up to now.

        Raises:
            SandboxError: it has not after `timeout` seconds.
        """
        with psycopg.connect(self.primary.url(), autocommit=True) as connection:
            row = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
            # An asynchronous commit is not flushed, hence not sent, by itself at once; this record's commit
            # flushes it.
            connection.execute("SELECT pg_logical_emit_message(true, 'sandbox', '')")
        deadline = time.monotonic() + timeout
        with psycopg.connect(self.replica.url(), autocommit=True) as connection:
            query = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
            while row is not None and connection.execute(query, row).fetchone() != (True,):
                if time.monotonic() > deadline:
                    raise SandboxError("replica", f"not caught up after {timeout:g} s", f"see {self.replica.log}")
                time.sleep(0.02)

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_primary(self) -> None:
        if not self.primary.initialized:
            self.primary.initialize()
            if self._standby.data.exists():
                shutil.rmtree(self._standby.data)  # the replica followed another primary
        found = (self.primary.data / "PG_VERSION").read_text().strip()
        if found != str(self._version):
            raise SandboxError(
                str(self.folder),
                f"holds Postgres {found}, not {self._version}",
                "choose another folder, or fresh=True",
            )
        self.primary.start()

    def _start_replica(self, replica: Server) -> None:
        if not replica.initialized:
            with psycopg.connect(self.primary.url(), autocommit=True) as connection:
                # An earlier cluster may have ended between making the slot and the copy.
                drop = """
                    SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s
                """
                connection.execute(drop, [_SLOT])
            replica.copy_from(self.primary, slot=_SLOT)
        replica.follow(self.primary, slot=_SLOT)
        replica.start()

    def _wipe(self) -> None:
        for server in (
            self._standby,
            self.primary,
        ):  # an earlier cluster in this folder may have had a replica
            server.await_predecessor()
            for place in (server.data, server.data.with_name(f"{server.data.name}.new")):
                shutil.rmtree(place, ignore_errors=True)
            server.log.unlink(missing_ok=True)
