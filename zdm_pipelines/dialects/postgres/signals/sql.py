"""SQL: a signal of the user's own, any query that gives one number."""

from __future__ import annotations

from zdm_pipelines.dialects.postgres.signals.session import Session
from zdm_pipelines.model.signals import Measured, Surroundings
from zdm_pipelines.model.throttle import SqlLimit


class Sql:
    """What a query gives, asked on the primary in a session that cannot write."""

    every = 0.5
    samples = 1

    def __init__(self, limit: SqlLimit, around: Surroundings) -> None:
        self._query = limit.query
        self.session = Session(around.url, purpose=f"throttle {limit.name}", read_only=True)

    def read(self) -> Measured:
        """Run the query that is declared.

        Raises:
            ValueError: it gives something other than one row of one column.
        """
        rows = self.session.first(self._query, 2)
        if not rows:
            raise ValueError("the query gives no row")
        if len(rows) > 1:
            raise ValueError("the query gives several rows")
        if len(rows[0]) != 1:
            raise ValueError(f"the query gives {len(rows[0])} columns")
        return Measured(value=rows[0][0])

    def close(self) -> None:
        """Close the connection of the query."""
        self.session.close()
