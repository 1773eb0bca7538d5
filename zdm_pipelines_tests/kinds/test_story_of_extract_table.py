"""The story of extract_table, through its phases, while clients of the old and of the new version read and write."""

from __future__ import annotations

from datetime import date

import pytest

from zdm_pipelines.model.errors import GateRefused
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.phases import contract
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines.verbs import plan, rollback
from zdm_pipelines_tests.helpers import (
    Probe,
    Worker,
    at,
    backfilled,
    dump,
    expanded,
    one,
    sql,
    state,
    validated,
    walk,
    work,
)

USERS = """
CREATE TABLE users (id bigint PRIMARY KEY, email text, profile jsonb);
INSERT INTO users SELECT n, 'u' || n, jsonb_build_object('theme', 't' || n % 7, 'notifications', n % 2 = 0)
FROM generate_series(1, 3000) n;
ANALYZE users;
"""
M = Migration.model_validate(
    {
        "name": "users_settings", "database": "app", "table": "public.users",
        "change": {
            "kind": "extract_table",
            "old": "profile",
            "new": {
                "table": "public.user_settings",
                "key": {"user_id": "id"},
                "columns": {
                    "theme": {"type": "text", "up": "profile->>'theme'"},
                    "notifications_enabled": {
                        "type": "boolean", "up": "(profile->>'notifications')::boolean", "nullable": False,
                        "default": "true",
                    },
                },
            },
            "down": "jsonb_build_object('theme', theme, 'notifications', notifications_enabled)",
        },
        "backfill": {"range_rows": 500, "batch_rows": 100},
        "throttle": {"replication_lag": None, "latency_p95": None},
        "locks": {"timeout": "200ms", "give_up_after": "60s"},
        "contract": {"confidence_window": "0s", "tombstone_window": "0s", "straggler_window": "0s"},
        "reads": {"ramp": [100]},
    }
)  # fmt: skip
OLD = (
    "UPDATE users SET profile = jsonb_set(profile, '{theme}', '\"old\"') WHERE id = 1 + (random() * 1400)::int",
    'INSERT INTO users SELECT max(id) + 1, \'x\', \'{"theme": "n", "notifications": true}\' FROM users',
    "SELECT profile FROM users WHERE id = 5",
)
NEW = (
    "INSERT INTO user_settings VALUES (1500 + (random() * 1400)::int, 'new', true) "
    "ON CONFLICT (user_id) DO UPDATE SET theme = excluded.theme",
    "SELECT theme FROM user_settings WHERE user_id = 2000",
)
DISAGREEING = (
    "SELECT count(*) FROM users u FULL JOIN user_settings s ON s.user_id = u.id "
    "WHERE u.profile IS NOT NULL AND (u.profile->>'theme', (u.profile->>'notifications')::boolean) "
    "IS DISTINCT FROM (s.theme, s.notifications_enabled)"
)


@pytest.fixture
def url(database: str) -> str:
    sql(database, USERS)
    return database


def test_the_story(url: str, server: Server) -> None:
    before = dump(server, url)
    assert list(plan.read(work(M, url)).phases) == list(Phase)
    expanded(M, url)
    assert rollback.run(work(M, url), to=State.ROLLED_BACK) == State.ROLLED_BACK
    assert dump(server, url) == before
    expanded(M, url)
    with Probe(url, OLD) as old, Probe(url, NEW) as new:
        backfilled(M, url)
        validated(M, url)
        walk(M, url, State.SWITCHED)
    assert (old.errors, new.errors) == ([], [])
    assert old.count > 0
    assert new.count > 0
    assert one(url, DISAGREEING) == 0
    with Probe(url, NEW) as new:
        walk(M, url, State.TOMBSTONED)
        assert rollback.run(work(M, url), to=State.SWITCHED) == State.SWITCHED
        assert one(url, DISAGREEING) == 0
        walk(M, url, State.CONTRACTED)
    assert new.errors == []
    assert "profile" not in dump(server, url)
    assert one(url, "SELECT count(*) FROM user_settings") == one(url, "SELECT count(*) FROM users")
    assert one(url, "SELECT count(*) FROM zdm.claim") == 0


@pytest.mark.parametrize(
    "reached",
    [State.EXPANDED, State.BACKFILLING, State.BACKFILLED, State.VALIDATED, State.SWITCHED, State.TOMBSTONED],
)
def test_it_can_be_undone_from_every_state(url: str, server: Server, reached: State) -> None:
    before = dump(server, url)
    at(M, url, reached)
    assert rollback.run(work(M, url), to=State.ROLLED_BACK) == State.ROLLED_BACK
    assert dump(server, url) == before


def test_a_trigger_that_is_gone_keeps_contract_shut(url: str) -> None:
    walk(M, url, State.SWITCHED)
    trigger = one(
        url, "SELECT tgname FROM pg_trigger WHERE tgrelid = 'user_settings'::regclass AND tgname LIKE 'zzz%%' LIMIT 1"
    )
    sql(url, f'DROP TRIGGER "{trigger}" ON user_settings')
    with pytest.raises(GateRefused, match=f"sync trigger {trigger} is missing"):
        contract.run(work(M, url))


@pytest.mark.parametrize("phase", ["expand", "backfill", "validate", "contract"])
def test_a_killed_worker_is_finished_by_running_it_again(url: str, phase: str) -> None:
    before = {"expand": State.PLANNED, "backfill": State.EXPANDED, "validate": State.BACKFILLED}
    at(M, url, before.get(phase, State.SWITCHED))
    Worker(phase, M, url, kill_at=12).end()
    walk(M, url, State.CONTRACTED)
    assert state(M, url) == State.CONTRACTED
    assert one(url, "SELECT count(*) FROM user_settings") == 3000


def test_expressions_mean_the_same_in_every_session(url: str) -> None:
    """Both functions say that they are immutable, and are not."""
    sql(
        url,
        "CREATE SCHEMA other; ALTER TABLE users ADD at timestamptz DEFAULT '2025-01-01 23:00+00';"
        "CREATE FUNCTION public.day_of(text) RETURNS date IMMUTABLE LANGUAGE sql AS 'SELECT $1::timestamptz::date';"
        "CREATE FUNCTION public.loud(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT upper($1)';"
        "CREATE FUNCTION other.loud(text) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT 'other' $$;"
        "UPDATE users SET profile = jsonb_build_object('theme', 'T' || id, 'at', '2025-01-01 23:00+00')",
    )
    columns = {
        "theme": {"type": "text", "up": "loud(profile->>'theme')", "default": "loud('none')"},
        "day": {"type": "date", "up": "day_of(profile->>'at')"},
    }
    new = {
        "table": "public.user_settings", "key": {"user_id": "id"}, "columns": columns,
        "indexes": [{"name": "by_loud", "definition": "(loud(theme))"}],
    }  # fmt: skip
    down = "jsonb_build_object('theme', loud(theme), 'at', day || ' 23:00+00')"
    change = M.model_dump(mode="json")["change"] | {"new": new, "down": down}
    m = Migration.model_validate(M.model_dump(mode="json", exclude_unset=True) | {"change": change})
    expanded(m, url)
    name = url.rsplit("/", 1)[-1]
    sql(url, f"ALTER DATABASE {name} SET search_path = other, public; ALTER DATABASE {name} SET timezone = 'Japan'")
    backfilled(m, url)
    sql(url, 'UPDATE users SET profile = profile || \'{"theme": "x"}\' WHERE id = 1')
    sql(url, "UPDATE user_settings SET theme = 'y' WHERE user_id = 2")
    validated(m, url)
    walk(m, url, State.TOMBSTONED)
    sql(url, "INSERT INTO users (id) VALUES (9999); INSERT INTO user_settings (user_id) VALUES (9999)")
    walk(m, url, State.CONTRACTED)
    assert sql(url, "SELECT DISTINCT day FROM user_settings WHERE user_id <> 9999") == [(date(2025, 1, 1),)]
    assert sql(url, "SELECT theme FROM user_settings WHERE user_id IN (1, 2, 3, 9999) ORDER BY user_id") == [
        ("X",), ("y",), ("T3",), ("NONE",)
    ]  # fmt: skip
    sql(url, "INSERT INTO users (id) VALUES (9998); INSERT INTO user_settings (user_id) VALUES (9998)")
    assert one(url, "SELECT theme FROM user_settings WHERE user_id = 9998") == "NONE"
    assert "public.loud" in one(url, "SELECT pg_get_indexdef('public.by_loud'::regclass)")
