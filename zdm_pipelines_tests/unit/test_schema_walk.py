"""Schema walk: every key that may be declared is read by something when a migration runs."""

from __future__ import annotations

import ast
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import zdm_pipelines
from zdm_pipelines.changes import KINDS
from zdm_pipelines.engine import throttle, watch
from zdm_pipelines.model.migration import Contract, Database, Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.throttle import Limit, Throttle
from zdm_pipelines.model.values import Reading, Verdict
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.verbs import plan
from zdm_pipelines.verbs import watch as outside
from zdm_pipelines_tests.helpers import expanded, people, replaced, walk, work

PACKAGE = Path(zdm_pipelines.__file__).parent
# With the slash: the tests beside it are none of its code.
OURS, MODEL = f"{PACKAGE}/", f"{PACKAGE}/model/"

# Limits that nothing reaches; all three are asked.
TIME = {"pause_above": "24h", "resume_below": "23h", "critical_above": "25h"}
SIZE = {"pause_above": "90TB", "resume_below": "80TB", "critical_above": "100TB"}
COUNT = {"pause_above": 900, "resume_below": 800, "critical_above": 1_000}
# A server without the extension cannot read it: what is asked of it is asked apart from the walk.
UNREADABLE = "statements_p95"


def full(web: str) -> dict[str, Any]:
    """A full declaration: nothing is left out because its section is.

    Args:
        web: the URL of a service that answers with a number, as text, in JSON and as Prometheus does.
    """
    return {
        "new": {"name": "display_name", "type": "text", "nullable": True, "default": "'n:nobody'"},
        "backfill": {"range_rows": 50, "batch_rows": 20, "batch_target": "1s", "max_parallel": 1, "max_runs": 3},
        "throttle": {
            **dict.fromkeys(("replication_lag", "heartbeat_lag", "latency_p95", "oldest_transaction"), TIME),
            **dict.fromkeys(("replication_lag_bytes", "wal_rate", "slot_retention", "disk_used"), SIZE),
            **dict.fromkeys(
                ("active_sessions", "waiting_sessions", "lock_waits", "archive_backlog", "autovacuum"), COUNT
            ),
            "sql": [{"name": "own", "query": "SELECT 1", **COUNT}],
            "http": [
                {"name": "web_text", "url": f"{web}/text", "token_env": "TOKEN", **COUNT},
                {"name": "web_field", "url": f"{web}/json", "field": "a.0", **COUNT},
                {"name": "web_query", "url": web, "query": "up", **COUNT},
            ],
            "max_wait": "60s",
            "nice": 0.01,
        },
        "allowed": ["00:00-12:00 UTC", "12:00-24:00 UTC"],
        "reads": {"flag": "read_it", "ramp": [100]},
    }


class Service(BaseHTTPRequestHandler):
    """The number 1, in every form."""

    def do_GET(self) -> None:
        body = "1"
        if self.path == "/json":
            body = '{"a": [1]}'
        elif "query" in self.path:
            body = json.dumps({"status": "success", "data": {"resultType": "scalar", "result": [1, "1"]}})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The service's URL."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TOKEN", "secret")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def models(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and all that it holds."""
    yield root
    for info in root.model_fields.values():
        for kind in (*get_args(info.annotation), info.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from models(kind)


def fields(*roots: type[BaseModel]) -> set[str]:
    """Class.field of everything that may be declared."""
    return {f"{m.__name__}.{name}" for root in roots for m in models(root) for name in m.model_fields}


class Reads:
    """Notes which fields the package's own code reads.

    What a validator reads is no use of a field, nor is the search of a throttle for its limits a use of the rest.
    """

    def __init__(self, patch: pytest.MonkeyPatch, *classes: type[BaseModel]) -> None:
        self.seen: set[str] = set()
        seen = self.seen
        for cls in classes:
            inherited = cls.__getattribute__

            def noting(instance: Any, name: str, inherited: Any = inherited) -> Any:
                owner, value = type(instance), inherited(instance, name)
                if name in owner.model_fields:
                    frame = sys._getframe(1)
                    code = frame.f_code
                    searched = owner is Throttle and code.co_name == "limits" and not isinstance(value, Limit)
                    if code.co_filename.startswith(OURS) and not searched and not validates(frame):
                        seen.add(f"{owner.__name__}.{name}")
                return value

            patch.setattr(cls, "__getattribute__", noting)


def validates(frame: FrameType) -> bool:
    """Whether the outermost of the model's functions under way is private."""
    name, above = "", frame
    while above.f_code.co_filename.startswith(MODEL):
        name = above.f_code.co_name
        if above.f_back is None:
            break
        above = above.f_back
    return name.startswith("_")


def attributes_read(folder: Path, owners: set[str]) -> set[str]:
    """Names of attributes that code under a folder reads of variables or attributes called as given."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                name = (
                    owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
                )
                if name in owners:
                    found.add(node.attr)
    return found


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Reading]]:
    """What was read of each signal and held against its limits."""
    found: dict[str, list[Reading]] = {}
    judge = watch.judge

    def noting(limit: Limit, reading: Reading, *, paused: bool) -> Verdict:
        found.setdefault(reading.signal, []).append(reading)
        return judge(limit, reading, paused=paused)

    monkeypatch.setattr(throttle, "judge", noting)
    monkeypatch.setattr(watch, "judge", noting)
    return found


def test_every_key_is_read(
    database: str, cluster: Cluster, web: str, monkeypatch: pytest.MonkeyPatch, judged: dict[str, list[Reading]]
) -> None:
    people(database, 100)
    monkeypatch.setenv("REPLICA", cluster.replica.url(database.rsplit("/", 1)[1]))
    app = Database(name="app", replicas=("REPLICA",), max_parallel=3)
    m = replaced(**full(web))
    reads = Reads(monkeypatch, *set(models(Migration)), Database)
    plan.read(work(m, database))
    expanded(m, database)
    cluster.wait_caught_up()  # else the replica has no ledger to read yet
    walk(m, database, State.CONTRACTED, database=app)
    declared = {name for name, _ in m.throttle.limits()}
    assert {name for name, readings in judged.items() if any(r.value is not None for r in readings)} == declared
    assert set(Throttle.model_fields) - declared == {"sql", "http", "max_wait", "nice", UNREADABLE}
    monkeypatch.setenv("OTHER", database)
    assert Database(name="app", url_env="OTHER").url() == database
    with pytest.raises(Exception, match="ZDM_APP_URL"):
        Database(name="app").url()
    # Which database a migration names, and how many runs Dagster starts, is for the layer above the phases.
    if "database" in attributes_read(PACKAGE / "components", {"declared", "migration"}):
        reads.seen.add("Migration.database")
    if "max_runs" in attributes_read(PACKAGE / "components", {"backfill"}):
        reads.seen.add("Backfill.max_runs")
    # The keys of other kinds are looked at below.
    others = fields(*(kind.spec for name, kind in KINDS.items() if name != m.change.kind)) - fields(type(m.change))
    assert fields(Migration, Database) - others - reads.seen == {f"Throttle.{UNREADABLE}"}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_key_of_a_kind_has_a_reader_in_its_own_modules(name: str) -> None:
    own = [*(PACKAGE / "changes" / name).glob("*.py"), *(PACKAGE / "dialects").glob(f"*/kinds/{name}.py")]
    own += [*(PACKAGE / "dialects").glob(f"*/kinds/{name}/*.py"), *shared_by(name)]
    read = {
        node.attr
        for file in own
        if file.name != "declared.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    assert {field.partition(".")[2] for field in fields(KINDS[name].spec)} - {"kind"} - read == set()


def shared_by(name: str) -> list[Path]:
    """Modules that kinds of one family share."""
    folder = PACKAGE / "dialects" / "postgres"
    if name.endswith("_index"):
        # What builds an index, builds one that replaces another, too.
        return [folder / "new_indexes.py", *(PACKAGE / "changes" / "add_index").glob("*.py")]
    return [folder / "archive.py"]


def test_a_signal_that_this_server_does_not_have_is_asked_for(
    database: str, monkeypatch: pytest.MonkeyPatch, judged: dict[str, list[Reading]]
) -> None:
    people(database, 10)
    m = replaced(throttle={UNREADABLE: TIME})
    expanded(m, database)
    reads = Reads(monkeypatch, Throttle)
    (verdict,) = outside.look(work(m, database, database=Database(name="app"))).verdicts
    assert "pg_stat_statements" in verdict.reason
    assert f"Throttle.{UNREADABLE}" in reads.seen


def test_a_key_that_nothing_reads_is_found(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk above can fail: a planted key is reported."""

    class Planted(Contract):
        unread: int = 1

    people(database, 10)
    m = replaced()
    m = m.model_copy(update={"contract": Planted(**m.contract.model_dump(mode="json"))})
    reads = Reads(monkeypatch, Planted)
    walk(m, database, State.CONTRACTED)
    assert fields(Planted) - reads.seen == {"Planted.unread"}


def uses(throttle: Throttle) -> object:
    return throttle.nice


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda t: list(t.limits()), {"replication_lag", "heartbeat_lag", "latency_p95", "sql", "http"}),
        (lambda t: type(t).model_validate(t.model_dump(mode="json")), set()),
        (uses, set()),  # by a test, which is none of the package's code
    ],
    ids=["search", "validate", "outside"],
)
def test_what_is_no_use_of_a_key(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[Throttle], object], expected: set[str]
) -> None:
    reads = Reads(monkeypatch, Throttle)
    act(Throttle())
    assert reads.seen == {f"Throttle.{name}" for name in expected}


def test_every_key_is_described() -> None:
    """Those that are sections of their own are described by their class."""
    every: list[type[BaseModel]] = [*models(Migration), Database]
    for model in every:
        assert model.__doc__
        for name, info in model.model_fields.items():
            if name == "change":
                continue  # a union: each arm is described by its class
            holds_model = any(
                isinstance(k, type) and issubclass(k, BaseModel) for k in (*get_args(info.annotation), info.annotation)
            )
            if model.__name__ == "Limit" or name == "kind" or (holds_model and not get_args(info.annotation)):
                continue
            assert info.description, f"{model.__name__}.{name}"


def test_only_four_keys_are_required() -> None:
    required = {name for name, info in Migration.model_fields.items() if info.is_required()}
    assert required == {"name", "database", "table", "change"}
    for model in models(Migration):
        if model.__name__ in ("Backfill", "Throttle", "Locks", "Reads", "Contract"):
            assert all(not info.is_required() for info in model.model_fields.values())
