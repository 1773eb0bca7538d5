"""The chain of assets through Dagster: every phase, every refusal, and Dagster's memory against the ledger's."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from zdm_pipelines.model.migration import Migration
from zdm_pipelines_tests.helpers import validated
from zdm_pipelines_tests.integration.dagster_migration import (
    DECLARED,
    NAME,
    InProcess,
    document,
    key,
    load,
    refusal,
    write_project,
)


@pytest.fixture
def chain(tmp_path: Path, app_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    defs = load(write_project(tmp_path), monkeypatch)
    monkeypatch.setenv("ZDM_APP_URL", app_database)
    with dg.DagsterInstance.ephemeral() as instance:
        yield InProcess(defs, app_database, instance)


def test_the_whole_chain(chain: InProcess) -> None:
    planned = chain.materialize("plan")
    assert planned.success
    shown = chain.latest("plan")
    assert shown is not None
    table = str(shown.metadata["plan"].value)
    for phase in ("expand", "backfill", "validate", "switch_reads", "contract"):
        assert f"| {phase} |" in table
    assert "DROP COLUMN" in str(shown.metadata["sql"].value)
    assert chain.sql("SELECT to_regnamespace('zdm')") == [(None,)]  # a plan changes nothing

    chain.walk("expand")
    ranges = chain.ranges()
    assert len(ranges) == 4
    assert ranges == sorted(ranges)

    moved = chain.materialize("backfill", partitions=ranges[1:3])
    assert moved.success
    events = [e.materialization for e in moved.all_events if e.is_step_materialization]
    assert {e.partition for e in events} == set(ranges[1:3])
    assert sum(int(str(e.metadata["rows"].value)) for e in events) == 1000
    assert "UPDATE ONLY" in str(events[0].metadata["sql"].value)
    assert chain.instance.get_materialized_partitions(key("backfill")) == set(ranges[1:3])

    chain.walk("backfill", "validate")
    assert {e.check_name for e in _checks(chain)} == {"parity", "backfill_complete", "constraints_valid"}
    for percent in (1, 10, 50, 100):
        assert chain.materialize("switch_reads").success
        latest = chain.latest("switch_reads")
        assert latest is not None
        assert latest.metadata["percent"].value == percent

    first = chain.materialize("contract")
    assert first.success
    assert chain.state() == "tombstoned"
    assert chain.latest("contract") is None  # the asset means: dropped
    observed = chain.instance.fetch_observations(key("contract"), limit=1).records[0].asset_observation
    assert observed is not None
    assert "out of sight" in str(observed.metadata["summary"].value)
    assert chain.materialize("contract").success
    assert chain.state() == "contracted"
    assert chain.materialized() == {"plan", "expand", "backfill", "validate", "switch_reads", "contract"}
    assert chain.sql("SELECT count(*) FROM users WHERE display_name IS NULL") == [(0,)]


def test_a_refusal_is_one_message_without_our_stack(chain: InProcess) -> None:
    result = chain.materialize("validate")
    assert refusal(result) == f"{NAME}: is planned, so that it cannot be validated; run expand first"
    error = next(e for e in result.all_events if e.is_step_failure).step_failure_data.error
    assert error is not None
    assert error.cause is None
    assert error.context is None


def test_an_unset_url_is_said_by_the_run(chain: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZDM_APP_URL")
    assert "environment variable ZDM_APP_URL is not set" in refusal(chain.materialize("plan"))


def test_a_bug_keeps_its_trace(chain: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdm_pipelines.verbs.plan.read", lambda *_: 1 / 0)
    error = next(e for e in chain.materialize("plan").all_events if e.is_step_failure).step_failure_data
    assert error.user_failure_data is None
    assert "ZeroDivisionError" in error.error_display_string


def test_validate_names_the_ranges_to_materialize_again(chain: InProcess) -> None:
    chain.walk("expand", "backfill")
    ranges = chain.ranges()
    _past_the_trigger(chain, "UPDATE users SET display_name = 'someone else' WHERE id IN (700, 701)")
    result = chain.materialize("validate")
    assert ranges[1] in refusal(result)
    assert chain.latest("validate") is None
    parity = next(e for e in _checks(chain) if e.check_name == "parity")
    assert not parity.passed
    assert parity.metadata["different"].value == 2
    assert "700" in str(parity.metadata["first_different_keys"].value)
    # As the message says: the ranges again, with repair.
    assert chain.materialize("backfill", {"repair": True}, partitions=[ranges[1]]).success
    chain.walk("validate")
    assert all(e.passed for e in _checks(chain))


class TestGate:
    """Contract alone, from anywhere, asks both memories."""

    def test_nothing_was_done(self, chain: InProcess) -> None:
        said = refusal(chain.materialize("contract"))
        assert "run expand first" in said
        assert "validate was never materialized in Dagster" in said

    def test_dagster_says_yes_but_the_data_says_no(self, chain: InProcess) -> None:
        chain.walk("expand", "backfill", "validate", "switch_reads")
        _past_the_trigger(chain, "UPDATE users SET full_name = 'changed behind our back' WHERE id = 1500")
        result = chain.materialize("contract")
        assert "old and new disagree" in refusal(result)
        failed = next(e for e in result.all_events if e.is_step_failure).step_failure_data.user_failure_data
        assert failed is not None
        assert str(failed.metadata["reasons"].value).startswith("- old and new disagree")
        assert chain.state() == "switched"

    def test_validate_reads_again_what_it_is_told_to(self, chain: InProcess) -> None:
        chain.walk("expand", "backfill", "validate", "validate")
        parity = next(e for e in _checks(chain) if e.check_name == "parity")
        assert (parity.metadata["rows_compared"].value, parity.metadata["rows_compared_earlier"].value) == (0, 2_000)
        assert chain.materialize("validate", {"full": True}).success
        parity = next(e for e in _checks(chain) if e.check_name == "parity")
        assert (parity.metadata["rows_compared"].value, parity.metadata["rows_compared_earlier"].value) == (2_000, 0)

    def test_the_data_says_yes_but_dagster_forgot(self, chain: InProcess) -> None:
        chain.walk("expand", "backfill", "validate", "switch_reads")
        chain.instance.wipe_assets([key(p) for p in ("expand", "backfill", "validate", "switch_reads")])
        said = refusal(chain.materialize("contract"))
        assert "4 of 4 ranges are not materialized in Dagster: 000001-from-start" in said
        for phase in ("expand", "validate", "switch_reads"):
            assert f"{phase} was never materialized in Dagster" in said
        assert "check parity is not in Dagster's event log" in said
        # As the message says: what is done is found done.
        chain.walk("expand", "backfill", "validate", "switch_reads", "contract", "contract")
        assert chain.state() == "contracted"

    def test_a_backfill_after_validate(self, chain: InProcess) -> None:
        chain.walk("expand", "backfill", "validate", "switch_reads")
        assert chain.materialize("backfill", partitions=chain.ranges()[:1]).success
        assert "backfill was materialized after validate" in refusal(chain.materialize("contract"))
        chain.walk("validate", "contract")
        assert chain.state() == "tombstoned"

    def test_a_check_that_failed(self, chain: InProcess) -> None:
        chain.walk("expand", "backfill", "validate", "switch_reads")
        chain.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(check_name="parity", asset_key=key("validate"), passed=False)
        )
        assert "check parity failed in Dagster" in refusal(chain.materialize("contract"))

    def test_a_check_of_an_earlier_materialization(self, chain: InProcess) -> None:
        chain.walk("expand", "backfill", "validate", "switch_reads")
        chain.instance.report_runless_asset_event(dg.AssetMaterialization(key("validate")))
        assert "check constraints_valid is stale" in refusal(chain.materialize("contract"))

    def test_a_range_that_dagster_did_not_see(self, chain: InProcess) -> None:
        chain.walk("expand")
        assert chain.materialize("backfill", partitions=chain.ranges()[:3]).success
        said = refusal(chain.materialize("contract"))
        assert "1 of 4 ranges are not materialized in Dagster: 000004" in said
        assert "1 of 4 ranges are not backfilled: 000004" in said


class TestRollback:
    """Afterwards Dagster shows what is true."""

    def test_to_validated(self, chain: InProcess) -> None:
        chain.walk("expand", "backfill", "validate", "switch_reads", "contract")
        assert chain.rollback("validated").success
        assert chain.state() == "validated"
        assert chain.materialized() == {"expand", "backfill", "validate"}
        chain.walk("switch_reads", "contract", "contract")
        assert chain.state() == "contracted"

    def test_of_everything_and_again(self, chain: InProcess) -> None:
        chain.walk("plan", "expand", "backfill", "validate", "switch_reads")
        assert chain.rollback("rolled_back").success
        assert chain.materialized() == {"plan"}
        assert chain.ranges() == []
        assert _checks(chain) == []
        assert chain.instance.get_materialized_partitions(key("backfill")) == set()
        chain.walk("expand")
        assert chain.instance.get_materialized_partitions(key("backfill")) == set()
        chain.walk("backfill", "validate", "switch_reads", "contract", "contract")

    def test_elsewhere_is_noticed_by_expand(self, chain: InProcess) -> None:
        chain.walk("expand", "backfill", "validate")
        for statement in (
            "UPDATE zdm.range SET done_at = NULL, checkpoint = NULL WHERE ordinal = 2",
            "DELETE FROM zdm.check_result",
            "UPDATE zdm.migration SET state = 'backfilling', version = version + 1",
        ):
            chain.sql(statement)
        chain.walk("expand")
        ranges = chain.ranges()
        assert chain.instance.get_materialized_partitions(key("backfill")) == {ranges[0], *ranges[2:]}
        assert "validate" not in chain.materialized()

    def test_of_nothing(self, chain: InProcess) -> None:
        assert "never began" in refusal(chain.rollback("rolled_back"))


def test_cut_anew_the_partitions_stay_in_key_order(
    chain: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.walk("expand")
    before = chain.ranges()
    assert chain.materialize("backfill", partitions=before[1:2]).success
    finer = {**DECLARED, "backfill": {**DECLARED["backfill"], "range_rows": 250}}
    chain.defs = load(write_project(tmp_path / "finer", document(finer)), monkeypatch)
    chain.walk("expand")
    after = chain.ranges()
    in_ledger = chain.sql("SELECT partition FROM zdm.range ORDER BY lower[1]::bigint NULLS FIRST")
    assert after == [partition for (partition,) in in_ledger]
    assert len(after) > len(before)
    assert chain.instance.get_materialized_partitions(key("backfill")) == {before[1]}
    chain.walk("backfill", "validate")
    assert chain.materialized() == {"expand", "backfill", "validate"}


def test_a_purge_asks_dagster_too(chain: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    purge = {**DECLARED, "change": {"kind": "purge_rows", "where": "id <= 700"}}
    del purge["backfill"]
    chain.defs = load(write_project(tmp_path / "purge", document(purge)), monkeypatch)
    chain.walk("expand")
    m = Migration.model_validate(purge)
    validated(m, chain.url)  # by the command line
    refused = refusal(chain.materialize("contract", partitions=chain.ranges()))
    assert "validate was never materialized in Dagster" in refused
    assert chain.sql("SELECT count(*) FROM users") == [(2000,)]
    chain.walk("validate")
    assert chain.materialize("contract", partitions=chain.ranges()).success
    assert chain.sql("SELECT count(*) FROM users") == [(1300,)]
    assert chain.state() == "contracted"
    assert chain.materialize("contract", partitions=chain.ranges()).success


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_keeps_its_checkpoint(chain: InProcess) -> None:
    chain.walk("expand")
    chain.sql(  # a trigger of the application's makes batches slow
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(0.002); RETURN new; END$$;"
        "CREATE TRIGGER a_slow BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION slow()"
    )

    def interrupt() -> None:
        deadline = time.monotonic() + 30
        with psycopg.connect(chain.url, autocommit=True) as connection:
            while time.monotonic() < deadline:
                row = connection.execute("SELECT 1 FROM zdm.range WHERE batches > 0 LIMIT 1").fetchone()
                if row:
                    break
                time.sleep(0.02)
        # What the UI's terminate does, by way of the run's launcher.
        chain.instance.report_run_canceling(chain.instance.get_runs(limit=1)[0])
        os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    begun = time.monotonic()
    result = chain.materialize("backfill", partitions=chain.ranges())
    other.join()
    run = chain.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.status == dg.DagsterRunStatus.CANCELED
    assert time.monotonic() - begun < 4  # 2,000 rows would have taken longer
    done, begun_only, rows = chain.sql(
        "SELECT count(*) FILTER (WHERE done_at IS NOT NULL), "
        "count(*) FILTER (WHERE done_at IS NULL AND checkpoint IS NOT NULL), sum(rows) FROM zdm.range"
    )[0]
    assert done < 4
    assert begun_only >= 1
    assert 0 < rows < 2000
    assert chain.sql("SELECT count(*) FROM users WHERE display_name IS NOT NULL") == [(rows,)]
    assert chain.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'zdm%range%'") == [(0,)]
    chain.sql("DROP TRIGGER a_slow ON users")
    chain.walk("backfill", "validate")
    assert chain.sql("SELECT sum(rows) FROM zdm.range") == [(2000,)]  # nothing was moved twice


def _checks(chain: InProcess) -> list[dg.AssetCheckEvaluation]:
    """The latest verdicts that Dagster shows."""
    found = []
    for name in ("parity", "backfill_complete", "constraints_valid"):
        record = chain.instance.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(key("validate"), name))
        if record is not None and record.evaluation is not None:
            found.append(record.evaluation)
    return found


def _past_the_trigger(chain: InProcess, statement: str) -> None:
    """A change that no trigger sees."""
    chain.sql("ALTER TABLE users DISABLE TRIGGER USER")
    chain.sql(statement)
    for (trigger,) in chain.sql("SELECT tgname FROM pg_trigger WHERE tgrelid = 'users'::regclass AND NOT tgisinternal"):
        chain.sql(f'ALTER TABLE users ENABLE ALWAYS TRIGGER "{trigger}"')
