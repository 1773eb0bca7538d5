"""Gauged: migrations with one signal, which shows what a test says; what is held by it, and what a run leaves behind."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any

from zdm_pipelines.model.migration import Migration
from zdm_pipelines_tests.helpers import eventually, one, replaced, sql

NAME = "people_display_name"
GAUGE = "signal:gauge"
STEADY = {"range_rows": 100_000, "batch_rows": 5, "batch_target": "60s", "max_parallel": 1}


def limit(**limits: Any) -> dict[str, Any]:
    """The limits of a signal that reads the gauge."""
    return {
        "name": "gauge", "query": "SELECT value FROM public.gauge", "pause_above": 10, "resume_below": 5, **limits
    }  # fmt: skip


def gauged(*, throttle: dict[str, Any] | None = None, **sections: Any) -> Migration:
    return replaced(**{"throttle": {"sql": [limit()], **(throttle or {})}, "backfill": STEADY, **sections})


def plain(**sections: Any) -> Migration:
    return replaced(**{"backfill": STEADY, **sections})


def gauge(url: str, shown: object, where: str = "") -> None:
    """Show something else: a number, or whatever else SQL can give."""
    sql(
        url,
        f"BEGIN; DROP VIEW IF EXISTS public.gauge; CREATE VIEW public.gauge AS SELECT {shown} AS value {where}; COMMIT",
    )


def expires(url: str, owner: str = GAUGE) -> datetime | None:
    """When a hold ends by itself; None when there is none."""
    rows = sql(url, "SELECT expires_at FROM zdm.hold WHERE migration = %s AND owner = %s", NAME, owner)
    return rows[0][0] if rows else None


def reason(url: str, owner: str = GAUGE) -> str:
    """What the ledger says of a hold."""
    rows = sql(url, "SELECT reason FROM zdm.hold WHERE migration = %s AND owner = %s", NAME, owner)
    return str(rows[0][0]) if rows else ""


def leaves_nothing(url: str) -> None:
    """No session and no thread of a run is left."""
    sessions = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'zdm %%' AND datname = current_database()"
    )
    eventually(lambda: one(url, sessions) == 0)
    eventually(lambda: not [t.name for t in threading.enumerate() if t.name.startswith("zdm ")])
