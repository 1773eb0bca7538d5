"""The sandbox: its servers come, go and crash as told, and what it starts ends with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest

from zdm_pipelines.sandbox import processes
from zdm_pipelines.sandbox.dagster_services import DagsterServices, psycopg2_url
from zdm_pipelines.sandbox.postgres import Cluster, Server
from zdm_pipelines.sandbox.processes import SandboxError


def scalar(url: str, statement: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
        return row[0] if row else None


def execute(url: str, statement: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement.encode()).rowcount


def eventually(condition: Callable[[], bool], timeout: float = 15.0) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def family(server: Server) -> list[psutil.Process]:
    return [psutil.Process(server.pid), *processes.descendants(server.pid)]


def alive(members: list[psutil.Process]) -> list[psutil.Process]:
    return [member for member in members if processes.is_alive(member)]


# Servers


def test_the_replica_streams(cluster: Cluster, database: str) -> None:
    execute(database, "CREATE TABLE t AS SELECT 42 AS answer")
    cluster.wait_caught_up()
    replica = cluster.replica.url(database.rsplit("/", 1)[1])
    assert scalar(replica, "SELECT answer FROM t") == 42
    assert scalar(replica, "SELECT pg_is_in_recovery()") is True
    assert scalar(database, "SELECT slot_name FROM pg_replication_slots WHERE active") == "replica"
    assert scalar(database, "SELECT application_name FROM pg_stat_replication") == "replica"


def test_only_the_loopback_is_served(server: Server, database: str) -> None:
    listening = {
        connection.laddr.ip
        for connection in psutil.Process(server.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    assert scalar(database, "SHOW unix_socket_directories") == ""


def test_a_port_is_given_once_and_a_server_may_listen_there() -> None:
    port = processes.free_port()
    choosing = textwrap.dedent(f"""
        from zdm_pipelines.sandbox import processes
        processes._PORTS = range({port}, {port} + 200)
        try:
            while True:
                print(processes.free_port())
        except processes.SandboxError as error:
            print(error)
        """)
    told = subprocess.run(
        [sys.executable, "-c", choosing], capture_output=True, text=True, timeout=60, check=True
    ).stdout.splitlines()
    assert "all are taken" in told.pop()
    assert told
    assert str(port) not in told
    with socket.create_server(("127.0.0.1", port)) as server:
        assert not processes.port_is_free(port)
        assert server.getsockname()[1] == port
    assert processes.port_is_free(port)


def test_a_killed_server_leaves_nothing_and_comes_back(own_server: Server) -> None:
    execute(own_server.url(), "CREATE TABLE kept AS SELECT 1 AS n")
    busy = psycopg.connect(own_server.url())
    members, port = family(own_server), own_server.port
    own_server.kill()
    assert alive(members) == []
    assert processes.port_is_free(port)
    assert not own_server.running
    with pytest.raises(psycopg.OperationalError):
        busy.execute("SELECT 1")
    own_server.start()
    assert own_server.port == port
    assert scalar(own_server.url(), "SELECT n FROM kept") == 1


def test_restart_takes_new_settings(own_server: Server) -> None:
    first = own_server.pid
    own_server.settings["work_mem"] = "7MB"
    own_server.restart()
    assert own_server.pid != first
    assert scalar(own_server.url(), "SHOW work_mem") == "7MB"


def test_a_test_may_alter_system(own_server: Server) -> None:
    execute(own_server.url(), "ALTER SYSTEM SET wal_level = 'logical'")
    own_server.restart()
    assert scalar(own_server.url(), "SHOW wal_level") == "logical"


def test_a_replica_finds_its_primary_again(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "pair", settings={"fsync": "off"})
    try:
        cluster.start()
        cluster.primary.kill()
        cluster.primary.start()
        execute(cluster.primary.url(), "CREATE TABLE after_the_crash AS SELECT 1 AS n")
        cluster.wait_caught_up(20)
        assert scalar(cluster.replica.url(), "SELECT n FROM after_the_crash") == 1
    finally:
        cluster.remove()
    assert not cluster.primary.data.exists()


def test_a_folder_is_used_again_or_wiped(tmp_path: Path) -> None:
    folder = tmp_path / "again"
    with Cluster(folder, settings={"fsync": "off"}) as first:
        execute(first.primary.url(), "CREATE TABLE kept AS SELECT 1 AS n")
    with Cluster(folder, settings={"fsync": "off"}) as second:
        assert scalar(second.primary.url(), "SELECT n FROM kept") == 1
        second.wait_caught_up(20)
        assert scalar(second.replica.url(), "SELECT n FROM kept") == 1
    third = Cluster(folder, replica=False, settings={"fsync": "off"}, fresh=True)
    try:
        third.start()
        assert scalar(third.primary.url(), "SELECT to_regclass('kept')") is None
    finally:
        third.remove()
    assert not third.folder.exists()


def test_another_version_of_postgres(tmp_path: Path) -> None:
    older = Cluster(tmp_path / "v", replica=False, version=16, settings={"fsync": "off"})
    try:
        older.start()
        assert str(scalar(older.primary.url(), "SHOW server_version")).startswith("16")
        older.stop()
        with pytest.raises(SandboxError, match="holds Postgres 16, not 18"):
            Cluster(tmp_path / "v", replica=False).start()
    finally:
        older.remove()
    with pytest.raises(SandboxError, match="choose one of"):
        Cluster(tmp_path / "v", version=9)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    broken = Cluster(tmp_path / "broken", replica=False, settings={"shared_buffers": "many"})
    try:
        with pytest.raises(SandboxError, match="shared_buffers"):
            broken.start()
    finally:
        broken.remove()


def test_client_programs_run_against_the_server(server: Server, app_database: str) -> None:
    name = app_database.rsplit("/", 1)[1]
    dump = server.run("pg_dump", "--schema-only", database=name).stdout
    assert "CREATE TABLE public.users" in dump
    with pytest.raises(SandboxError, match="exit code"):
        server.run("psql", "-c", "SELECT 1/0", "-v", "ON_ERROR_STOP=1")


CHILD = """
    import json, sys, time
    from pathlib import Path
    from zdm_pipelines.sandbox import application, processes
    from zdm_pipelines.sandbox.postgres import Cluster
    from zdm_pipelines.sandbox.traffic import Traffic
    cluster = Cluster(Path(sys.argv[1]), settings={"fsync": "off"})
    cluster.start()
    url = cluster.primary.create_database("app")
    application.load(url, rows=100)
    traffic = Traffic(url, clients=2).start()
    found = processes.descendants(__import__("os").getpid())
    place = [str(cluster.folder), cluster.primary.port]
    print(json.dumps([[process.pid for process in found], *place]), flush=True)
    time.sleep(600)
"""


def test_nothing_outlives_a_killed_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / "orphan")]
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert parent.stdout is not None
    pids, folder, port = json.loads(parent.stdout.readline())
    members = [psutil.Process(pid) for pid in pids]
    assert len(members) > 10
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: not alive(members)), alive(members)
    # What the crash left is started again.
    cluster = Cluster(Path(folder), settings={"fsync": "off"}, port=port)
    try:
        cluster.start()
        assert scalar(cluster.primary.url("app"), "SELECT count(*) >= 90 FROM users") is True
    finally:
        cluster.remove()


# Dagster's services

DEFINITIONS = """
import dagster as dg

@dg.asset
def sample() -> None: ...

defs = dg.Definitions(assets=[sample])
"""

WORKSPACE = "load_from:\n  - python_file:\n      relative_path: definitions.py\n      location_name: sample\n"

INSTANCE = """
storage: {postgres: {postgres_url: {env: DAGSTER_POSTGRES_URL}}}
telemetry: {enabled: false}
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "dagster.yaml").write_text(INSTANCE)
    (tmp_path / "workspace.yaml").write_text(WORKSPACE)
    return tmp_path / "workspace.yaml"


def test_dagster_serves_a_workspace_and_leaves_nothing(workspace: Path, database: str, tmp_path: Path) -> None:
    with DagsterServices(tmp_path / "home", database, workspace) as dagster:
        assets = dagster.query("{ assetNodes { assetKey { path } } }")["assetNodes"]
        assert [asset["assetKey"]["path"] for asset in assets] == [["sample"]]
        first = dagster.pid("daemon")
        dagster.kill("daemon")
        dagster.restart("daemon")
        dagster.wait_ready()
        members = [*processes.session_members(first), *processes.session_members(dagster.pid("daemon"))]
        members += processes.session_members(dagster.pid("webserver"))
        assert len(members) >= 4  # two services and their code servers
    assert alive(members) == []
    assert processes.port_is_free(dagster.port)


def test_definitions_that_do_not_load_are_reported(workspace: Path, database: str, tmp_path: Path) -> None:
    (workspace.parent / "definitions.py").write_text("import no_such_module")
    services = DagsterServices(tmp_path / "home", database, workspace)
    try:
        services.start()
        with pytest.raises(SandboxError, match="no_such_module"):
            services.wait_ready()
    finally:
        services.stop()


def test_the_sweeper_ends_what_ignores_signals() -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    stubborn = processes.start([sys.executable, "-c", deaf], pipes=True)
    spared = processes.start([sys.executable, "-c", deaf], pipes=True)
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    sweeper = processes.start_module("zdm_pipelines.sandbox.sweeper", death_signal=None)
    sweeper.communicate(f"+{stubborn.pid}\n+{spared.pid}\n-{spared.pid}\n", timeout=20)
    assert stubborn.wait(5) == -signal.SIGKILL
    assert spared.poll() is None
    processes.end(spared, grace=0)
    for process in (stubborn, spared):
        process.communicate()


def test_dagsters_storage_names_its_driver() -> None:
    assert psycopg2_url("postgresql://u@h:1/d") == "postgresql+psycopg2://u@h:1/d"
    assert psycopg2_url("postgresql+psycopg2://u@h:1/d") == "postgresql+psycopg2://u@h:1/d"
    with pytest.raises(SandboxError, match="mysql"):
        psycopg2_url("mysql://h/d")
