"""The benchmarks' own backfill: it moves every row by the code that Dagster calls, and tells of each batch."""

from __future__ import annotations

from zdm_pipelines_tests.benchmarks.worker import BackfillWorker
from zdm_pipelines_tests.helpers import expanded, one, replaced


def test_every_batch_is_told(app_database: str) -> None:
    new = {"name": "display_name", "type": "text", "nullable": False}
    m = replaced(table="public.users", new=new, backfill={"batch_rows": 500})
    expanded(m, app_database)
    with BackfillWorker(m, app_database) as worker:
        begun = worker.begin()
        worker.join(60)
    assert worker.error == ""
    assert worker.finished is not None
    assert worker.finished > begun
    assert worker.memory
    assert sum(batch.rows for batch in worker.batches) == 2_000
    assert one(app_database, "SELECT count(*) FROM users WHERE display_name IS NULL") == 0
