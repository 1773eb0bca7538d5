"""pgbench: its TPC-B runs through a whole migration of the column it updates, and not one transaction fails."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from zdm_pipelines.model.states import State
from zdm_pipelines.phases import contract, switch_reads
from zdm_pipelines.sandbox import processes
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines_tests.helpers import backfilled, eventually, expanded, one, replaced, sql, state, validated, work

SCALE = 10

MIGRATION = replaced(
    name="balance_in_cents",
    table="public.pgbench_accounts",
    old="abalance",
    new={"name": "balance_cents", "type": "bigint"},
    up="abalance * 100",
    down="balance_cents / 100",
    backfill={"range_rows": 250_000, "batch_rows": 2_000},
)

# The same transaction as new code writes it.
NEW_CODE = f"""
\\set aid random(1, 100000 * {SCALE})
\\set bid random(1, 1 * {SCALE})
\\set tid random(1, 10 * {SCALE})
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET balance_cents = balance_cents + :delta * 100 WHERE aid = :aid;
SELECT balance_cents FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
END;
"""


class Pgbench:
    """A run until it is told to stop."""

    def __init__(self, server: Server, database: str, *arguments: str, log: Path) -> None:
        self._log = log
        # Started by the sandbox, so that SIGINT reaches pgbench also where this process inherited to ignore it.
        self._process = processes.start(
            [server.binary("pgbench"), "-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres", "-n", "-T", "3600",
             "-P", "1", "-c", "4", *arguments, database],
            log=log, pipes=True,
        )  # fmt: skip

    def assert_running(self) -> None:
        assert self._process.poll() is None, self._log.read_text()

    def stop(self) -> int:
        """Stop it; transactions per its progress reports, none of which may report a failure."""
        self.assert_running()
        eventually(lambda: "progress:" in self._log.read_text())  # once a second
        self._process.send_signal(signal.SIGINT)
        out, _ = self._process.communicate(timeout=30)
        err = self._log.read_text()
        assert not re.search(r"error|abort|fatal", out + err, re.IGNORECASE), out + err
        reports = re.findall(r"progress: .*?([\d.]+) tps, .* (\d+) failed", err)
        assert reports
        assert {failed for _, failed in reports} == {"0"}
        return int(sum(float(tps) for tps, _ in reports))


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_migration_under_pgbench(own_server: Server, tmp_path: Path) -> None:
    url = own_server.create_database("bench")
    own_server.run("pgbench", "-i", "-q", "-s", str(SCALE), database="bench")
    old = Pgbench(own_server, "bench", "-M", "prepared", log=tmp_path / "old_code.log")
    expanded(MIGRATION, url)
    old.assert_running()
    moved = backfilled(MIGRATION, url)
    old.assert_running()
    assert len(moved) == 4
    validated(MIGRATION, url)
    switch_reads.run(work(MIGRATION, url))
    assert old.stop() > 100

    script = tmp_path / "new_code.sql"
    script.write_text(NEW_CODE)
    new = Pgbench(own_server, "bench", "-M", "prepared", "-f", str(script), log=tmp_path / "new_code.log")
    new.assert_running()
    assert contract.run(work(MIGRATION, url)).state == State.TOMBSTONED
    new.assert_running()
    in_tombstone = one(url, "SELECT sum(zdm_tombstone_abalance) FROM pgbench_accounts WHERE aid <= 1000")
    assert in_tombstone is not None
    assert contract.run(work(MIGRATION, url)).state == State.CONTRACTED
    assert new.stop() > 10

    assert state(MIGRATION, url) == State.CONTRACTED
    rows, cents, missing = sql(
        url, "SELECT count(*), sum(balance_cents), count(*) FILTER (WHERE balance_cents IS NULL) FROM pgbench_accounts"
    )[0]
    assert (rows, missing) == (100_000 * SCALE, 0)
    assert cents == 100 * one(url, "SELECT sum(delta) FROM pgbench_history")
    per_account = """
        SELECT count(*) FROM pgbench_accounts a
        JOIN (SELECT aid, sum(delta) AS total FROM pgbench_history GROUP BY aid) h USING (aid)
        WHERE a.balance_cents <> 100 * h.total
    """
    assert one(url, per_account) == 0
    columns = "SELECT string_agg(attname, ' ') FROM pg_attribute WHERE attrelid = 'pgbench_accounts'::regclass AND attnum > 0 AND NOT attisdropped"
    assert one(url, columns) == "aid bid filler balance_cents"
