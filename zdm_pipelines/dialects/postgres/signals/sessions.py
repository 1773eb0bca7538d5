"""Sessions: how many of the application's run a statement, and how many wait for a lock."""

from __future__ import annotations

from psycopg import errors

from zdm_pipelines.dialects.postgres.signals.session import NOT_OURS, OnPrimary, hidden
from zdm_pipelines.model.signals import Measured

# SQL over pg_stat_activity: a session that the role may not look at, so that nothing can be said of it. Only what the
# server does for itself has no user; a replica's sender has no database.
HIDDEN = "(backend_type IS NULL AND usesysid IS NOT NULL AND datid IS NOT NULL)"

# All databases: they share one machine.
_COUNT = f"""
SELECT count(*) FILTER (WHERE {{counted}}), count(*) FILTER (WHERE state = 'disabled'), count(*) FILTER (WHERE {HIDDEN})
FROM pg_stat_activity WHERE {NOT_OURS} AND (backend_type = 'client backend' OR {HIDDEN})"""


def untracked() -> errors.ObjectNotInPrerequisiteState:
    """The error for sessions of which the server keeps no state."""
    return errors.ObjectNotInPrerequisiteState("a session of others has track_activities off: it shows no state")


class _Sessions(OnPrimary):
    counted: str  # SQL
    by_state: bool

    def read(self) -> Measured:
        """Count the sessions that this signal is about."""
        count, disabled, unseen = self.session.query(_COUNT.format(counted=self.counted))[0]
        if unseen:
            raise hidden(f"{unseen} sessions are")
        if self.by_state and disabled:
            raise untracked()
        return Measured(value=count)


class ActiveSessions(_Sessions):
    """Sessions of others, in any database of the server, that run a statement; one that waits runs it too."""

    counted = "state IN ('active', 'fastpath function call')"
    by_state = True


class WaitingSessions(_Sessions):
    """Sessions of others, in any database of the server, that wait for a lock."""

    counted = "wait_event_type = 'Lock'"
    by_state = False
