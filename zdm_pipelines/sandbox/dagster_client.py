"""Dagster client: launch and watch through GraphQL, with the requests that the UI's buttons send."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zdm_pipelines.sandbox.dagster_services import DagsterServices
from zdm_pipelines.sandbox.processes import SandboxError

_POLL = 0.5  # seconds between two looks at a run

_LOCATION = """{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"""

_LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on InvalidSubsetError { message }
  }
}"""

_RUN = """
query Run($id: ID!) {
  runOrError(runId: $id) { ... on Run { status eventConnection { events { __typename
    ... on ExecutionStepFailureEvent { error { message } failureMetadata { description } }
    ... on RunFailureEvent { message } } } } }
}"""

_BACKFILL = """
mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}"""

_BACKFILL_STATUS = """
query Status($id: String!) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } ... on PythonError { message } }
}"""

_PARTITIONS = """
query Partitions($path: [String!]!) {
  assetNodeOrError(assetKey: {path: $path}) { ... on AssetNode { partitionKeys } }
}"""

_ENDED = ("SUCCESS", "FAILURE", "CANCELED")
_BACKFILL_ENDED = ("COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """How a run ended."""

    run_id: str
    status: str  # SUCCESS, FAILURE or CANCELED
    problem: str  # what the failed step said; empty when it did not fail


class DagsterClient:
    """A client that presses the buttons of Dagster's UI.

    Args:
        services: the running web UI.
    """

    def __init__(self, services: DagsterServices) -> None:
        self._services = services
        node = services.query(_LOCATION)["repositoriesOrError"]["nodes"][0]
        self._repository = {"repositoryName": node["name"], "repositoryLocationName": node["location"]["name"]}

    def launch(self, asset: Sequence[str], config: Mapping[str, Any] | None = None) -> str:
        """Press `Materialize` on one asset; returns the run's id.

        Args:
            asset: its key, as ["users_display_name", "expand"].
            config: the asset's config.
        """
        ops = {"ops": {"__".join(asset): {"config": dict(config)}}} if config else {}
        selection = {"jobName": "__ASSET_JOB", "assetSelection": [{"path": list(asset)}], "assetCheckSelection": None}
        return self._launch(selection, ops)

    def launch_job(self, job: str, config: Mapping[str, Any] | None = None) -> str:
        """Press `Launch run` in a job's launchpad; returns the run's id."""
        return self._launch({"jobName": job}, dict(config or {}))

    def _launch(self, selection: Mapping[str, Any], run_config: Mapping[str, Any]) -> str:
        params = {
            "mode": "default",
            "runConfigData": dict(run_config),
            "selector": {**self._repository, **selection},
            "executionMetadata": {"tags": []},
        }
        answer = self._services.query(_LAUNCH, {"params": params})["launchPipelineExecution"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise SandboxError("dagster", f"did not launch ({answer['__typename']})", str(answer))
        return str(answer["run"]["runId"])

    def wait(self, run_id: str, *, timeout: float = 1800.0, tick: Callable[[], None] = lambda: None) -> RunOutcome:
        """Wait for the end of a run.

        Args:
            tick: called at each look.

        Raises:
            SandboxError: it has not ended after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            tick()
            run = self._services.query(_RUN, {"id": run_id})["runOrError"]
            if run.get("status") in _ENDED:
                return RunOutcome(run_id=run_id, status=run["status"], problem=_problem(run))
            time.sleep(_POLL)
        raise SandboxError(f"run {run_id}", f"did not end within {timeout:g} s", f"look at it at {self._services.url}")

    def partitions(self, asset: Sequence[str]) -> list[str]:
        """The partition keys of an asset, in their order."""
        node = self._services.query(_PARTITIONS, {"path": list(asset)})["assetNodeOrError"]
        return list(node["partitionKeys"])

    def launch_backfill(self, asset: Sequence[str], partitions: Sequence[str]) -> str:
        """Press `Launch backfill` for some partitions of an asset; returns the backfill's id."""
        params = {"assetSelection": [{"path": list(asset)}], "partitionNames": list(partitions), "fromFailure": False}
        answer = self._services.query(_BACKFILL, {"params": params})["launchPartitionBackfill"]
        if answer["__typename"] != "LaunchBackfillSuccess":
            raise SandboxError("dagster", f"did not launch the backfill ({answer['__typename']})", str(answer))
        return str(answer["backfillId"])

    def backfill_status(self, backfill_id: str) -> str:
        """The status that the backfill's page shows."""
        return str(self._services.query(_BACKFILL_STATUS, {"id": backfill_id})["partitionBackfillOrError"]["status"])

    def wait_backfill(
        self, backfill_id: str, *, timeout: float = 7200.0, tick: Callable[[], None] = lambda: None
    ) -> str:
        """Wait for the end of a backfill; returns its status, COMPLETED_SUCCESS when all is well."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            tick()
            if (status := self.backfill_status(backfill_id)) in _BACKFILL_ENDED:
                return status
            time.sleep(_POLL)
        raise SandboxError(f"backfill {backfill_id}", f"did not end within {timeout:g} s", "look at its page")


def _problem(run: Mapping[str, Any]) -> str:
    for event in run["eventConnection"]["events"]:
        if event["__typename"] == "ExecutionStepFailureEvent":
            described = (event.get("failureMetadata") or {}).get("description")
            return str(described or (event.get("error") or {}).get("message") or "")
    return next((e["message"] for e in run["eventConnection"]["events"] if e["__typename"] == "RunFailureEvent"), "")
