"""Watched: a primary with a replica, a running Dagster over it, and a migration that takes a while."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from zdm_pipelines.sandbox import application
from zdm_pipelines.sandbox.dagster_client import DagsterClient
from zdm_pipelines.sandbox.dagster_services import DagsterServices
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines_tests import in_memory
from zdm_pipelines_tests.integration.dagster_migration import DECLARED, NAME, document, write_project

ROOT = Path(__file__).resolve().parents[2]
FAST = {"fsync": "off", "full_page_writes": "off"}
BACKFILL = [NAME, "backfill"]

_WORKSPACE = """\
load_from:
  - python_module: {module_name: shop.definitions, working_directory: ., location_name: shop}
"""

_RUNS = """
query Runs($filter: RunsFilter) { runsOrError(filter: $filter) { ... on Runs { results {
  runId status startTime endTime tags { key value } } } } }"""

_ASSET = """
query Asset($path: [String!]!) { assetNodeOrError(assetKey: {path: $path}) { ... on AssetNode {
  partitionStats { numMaterialized numPartitions numFailed numMaterializing }
  assetObservations(limit: 1000) { timestamp description metadataEntries { label ... on FloatMetadataEntry { floatValue }
    ... on TextMetadataEntry { text } } } } } }"""

_COUNTS = """
query Counts($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status
  assetBackfillData { assetBackfillStatuses { ... on AssetPartitionsStatusCounts {
    numPartitionsTargeted numPartitionsInProgress numPartitionsMaterialized numPartitionsFailed } } } } } }"""

_TICKS = """
query Ticks($selector: InstigationSelector!) { instigationStateOrError(instigationSelector: $selector) {
  ... on InstigationState { status ticks(limit: 20) { timestamp status skipReason error { message } } } } }"""

_SENSOR = """
query Sensor($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) {
  ... on Sensor { sensorState { id } } } }"""

_STOP = """
mutation Stop($id: String!) { stopSensor(id: $id) { __typename } }"""

_MATERIALIZATIONS = """
query Materializations($path: [String!]!) { assetOrError(assetKey: {path: $path}) { ... on Asset {
  assetMaterializations(limit: 5000) { partition runId } } } }"""


@dataclass
class Watched:
    """What a test drives and asks."""

    cluster: Cluster
    services: DagsterServices
    client: DagsterClient
    url: str

    def sql(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        """Ask or change the primary."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), params or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, statement: str, *params: Any) -> Any:
        """The first column of the first row."""
        return self.sql(statement, *params)[0][0]

    def moved(self) -> int:
        """Rows that the backfill has moved."""
        return int(self.one("SELECT coalesce(sum(rows), 0) FROM zdm.range"))

    def holds(self) -> dict[str, str]:
        """The holds that stand, with their reasons."""
        found = self.sql("SELECT owner, reason FROM zdm.hold WHERE coalesce(expires_at, 'infinity') > now()")
        return dict(found)

    def replay(self, verb: str) -> None:
        """`pause` or `resume` the replica's replay."""
        with psycopg.connect(self.cluster.replica.url(), autocommit=True) as connection:
            connection.execute(f"SELECT pg_wal_replay_{verb}()".encode())

    def runs(self, **tags: str) -> list[dict[str, Any]]:
        """Runs, latest first, with their tags as a dictionary."""
        wanted = [{"key": key, "value": value} for key, value in tags.items()]
        found = self.services.query(_RUNS, {"filter": {"tags": wanted}})["runsOrError"]["results"]
        return [run | {"tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found]

    def of_backfill(self, backfill: str) -> list[dict[str, Any]]:
        """The runs that the backfill's page lists."""
        return self.runs(**{"dagster/backfill": backfill})

    def backfill_page(self, backfill: str) -> dict[str, Any]:
        """Status and counts, as the backfill's page shows them."""
        page = self.services.query(_COUNTS, {"id": backfill})["partitionBackfillOrError"]
        counts = page["assetBackfillData"]["assetBackfillStatuses"] if page["assetBackfillData"] else [{}]
        return {"status": page["status"], **counts[0]}

    def asset_page(self, *path: str) -> dict[str, Any]:
        """What an asset's page shows."""
        return dict(self.services.query(_ASSET, {"path": list(path)})["assetNodeOrError"])

    def ticks(self, name: str) -> list[dict[str, Any]]:
        """The latest ticks of a sensor or schedule."""
        selector = {"name": name, "repositoryName": "__repository__", "repositoryLocationName": "shop"}
        return list(self.services.query(_TICKS, {"selector": selector})["instigationStateOrError"]["ticks"])

    def stop_sensor(self, name: str) -> None:
        """Switch a sensor off, as its page does."""
        selector = {"sensorName": name, "repositoryName": "__repository__", "repositoryLocationName": "shop"}
        found = self.services.query(_SENSOR, {"selector": selector})["sensorOrError"]["sensorState"]["id"]
        answer = self.services.query(_STOP, {"id": found})["stopSensor"]
        assert answer["__typename"] == "StopSensorMutationResult", answer

    def tune(self, settings: str) -> None:
        """Run the job that tunes."""
        config = {"ops": {f"{NAME}__tune": {"config": {"settings": settings}}}}
        outcome = self.client.wait(self.client.launch_job(f"tune_{NAME}", config))
        assert outcome.status == "SUCCESS", outcome.problem

    def expand(self) -> None:
        """Materialize expand."""
        outcome = self.client.wait(self.client.launch([NAME, "expand"]))
        assert outcome.status == "SUCCESS", outcome.problem

    def launch(self) -> str:
        """Launch the backfill of every range, as the UI does."""
        return self.client.launch_backfill(BACKFILL, self.client.partitions(BACKFILL))

    def until(self, condition: Callable[[], Any], what: str, timeout: float = 60.0) -> Any:
        """Wait until it holds; what it gave."""
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
            time.sleep(0.05)
        return found

    def still(self, seconds: float) -> bool:
        """Whether nothing is moved for a while."""
        before = self.moved()
        time.sleep(seconds)
        return self.moved() == before


def materializations(found: Watched) -> Counter[str]:
    """How often each range was materialized."""
    asset = found.services.query(_MATERIALIZATIONS, {"path": BACKFILL})["assetOrError"]
    return Counter(m["partition"] for m in asset["assetMaterializations"])


@contextmanager
def watched(
    folder: Path,
    *,
    rows: int,
    migration: Mapping[str, Any],
    more: Mapping[str, Mapping[str, Any]] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Watched]:
    """Everything started, the table filled, nothing expanded yet.

    Args:
        migration: sections over the usual declaration.
        more: further migrations by name, whole.
    """
    cluster = Cluster(in_memory.folder(folder / "cluster"), settings=FAST)
    try:
        cluster.start()
        url = cluster.primary.create_database("app")
        application.load(url, rows=rows)
        project = write_project(folder / "project", {**DECLARED, **migration})
        for name, attributes in (more or {}).items():
            path = project / "shop/defs" / name / "defs.yaml"
            path.parent.mkdir(parents=True)
            path.write_text(document(attributes))
        (project / "workspace.yaml").write_text(_WORKSPACE)
        (project / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
        storage = cluster.primary.create_database("dagster")
        urls = {"ZDM_APP_URL": url, "ZDM_REPLICA_URL": cluster.replica.url("app"), **(env or {})}
        with DagsterServices(folder / "home", storage, project / "workspace.yaml", env=urls) as services:
            yield Watched(cluster=cluster, services=services, client=DagsterClient(services), url=url)
    finally:
        cluster.remove()
