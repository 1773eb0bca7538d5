"""Failing rows: which row it is whose values a batch cannot take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from zdm_pipelines.dialects import DatabaseError, fault, safe, words
from zdm_pipelines.dialects.server import Fault, Session, Trigger
from zdm_pipelines.engine.rows.window import Bounds
from zdm_pipelines.model.capabilities import RowWork
from zdm_pipelines.model.errors import MappingFailed
from zdm_pipelines.model.values import Key


@dataclass(frozen=True, kw_only=True)
class FailingRows:
    """Finds the first row for which the work on a range raises."""

    conn: Session
    name: str
    work: RowWork
    repair: bool

    def failure(self, lower: Key | None, upper: Key | None, error: DatabaseError) -> MappingFailed:
        """What to tell of a batch that raised, with the key of its first row that does."""
        keys = self.conn.rows.keys(self.work.over, lower, upper)
        key = next((key for key in keys if self._raises(key)), None)
        where = f"the row with key {'/'.join(key)}" if key else "a row of a batch"
        if blamed := self.blamed(error):
            verb = "deleted" if self.work.destroys else "written"
            fact = f"{where} cannot be {verb}: {_named(blamed)} raises {safe(error)}"
            return MappingFailed(self.name, fact, f"correct that row, or {blamed[0].way_out}; then {self._again}")
        if self.work.destroys:
            fact = f"{where} cannot be deleted: {safe(error)}"
            way_out = (
                "look at it, the table's triggers and what refers to it, then run contract again; it goes on there"
            )
            return MappingFailed(self.name, fact, way_out)
        expression = "up or down" if self.repair else "up"  # a repair asks down, too
        return MappingFailed(
            self.name,
            f"{expression} fails for {where}: {safe(error)}",
            f"correct that row or {expression} and materialize the range again; what is moved stays moved",
        )

    @property
    def _again(self) -> str:
        return "run contract again" if self.work.destroys else "materialize the range again"

    def blamed(self, error: DatabaseError) -> list[Trigger]:
        """The application's triggers in which the server was when it raised."""
        told = words(error)
        return [trigger for trigger in self.conn.rows.triggers(self.work.writes) if trigger.function in told]

    def kept(self, key: Key, *, written: bool) -> MappingFailed | None:
        """What to tell of a row that waits still when it was worked on alone; None: no trigger can have caused that.

        Args:
            written: it was, so that a trigger has undone that; else one that fires before has kept it away.
        """
        suspects = [trigger for trigger in self.conn.rows.triggers(self.work.writes) if written or trigger.before]
        if not suspects:
            return None
        verb = "deleted" if self.work.destroys else "moved"
        undone = f"waits again as soon as it is {verb}" if written else f"is not {verb}"
        return MappingFailed(
            self.name,
            f"the row with key {'/'.join(key)} {undone}: {_named(suspects)} keeps it as it was",
            f"{suspects[0].way_out}; then {self._again}",
        )

    @contextmanager
    def sought(self, bounds: Bounds, *, rows: int) -> Iterator[None]:
        """Statements over a whole range: when a row's values make one raise, the row is looked for.

        Args:
            rows: in steps of so many.

        Raises:
            MappingFailed: one of them raised.
        """
        try:
            yield
        except DatabaseError as error:
            if fault(error) not in (Fault.OF_DATA, Fault.TOO_LARGE):
                raise
            raise self.failure(*self._first_step(bounds, rows), error) from None

    def _first_step(self, bounds: Bounds, rows: int) -> tuple[Key | None, Key | None]:
        """The first interval of a range for which the work raises; the whole range when none does any more."""
        at = bounds.lower
        while True:
            upper = bounds.key_after(at, rows)
            end = upper if upper is not None else bounds.end()
            try:
                self.conn.run(self.work.waiting(at, end, repair=self.repair))
            except DatabaseError:
                return at, end
            if upper is None:
                return bounds.lower, end
            at = upper

    def _raises(self, key: Key) -> bool:
        try:
            self.conn.rows.try_out(self.work.one(key, repair=self.repair))
        except DatabaseError as error:
            if (kind := fault(error)) is Fault.LOCK_BUSY:
                return False
            if kind not in (Fault.OF_DATA, Fault.TOO_LARGE):
                raise
            return True
        return False


def _named(triggers: Sequence[Trigger]) -> str:
    return " or ".join(trigger.name for trigger in triggers)
