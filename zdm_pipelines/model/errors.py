"""Errors: each names the thing, the fact and the way out, and carries the facts as attributes."""

from __future__ import annotations

from collections.abc import Sequence


class ZdmError(Exception):
    """Something the user can act on; printed as one message, never as a stack trace.

    Args:
        thing: what it is about (a file, a table, a migration).
        fact: what is the case.
        way_out: what to do about it.
    """

    def __init__(self, thing: str, fact: str, way_out: str) -> None:
        super().__init__(f"{thing}: {fact}; {way_out}")
        self.thing = thing
        self.fact = fact
        self.way_out = way_out


class SpecError(ZdmError):
    """A `defs.yaml` says something that cannot be meant."""


class PreflightError(ZdmError):
    """The database cannot take this migration as it is declared; nothing was changed."""

    def __init__(self, migration: str, problems: Sequence[Problem]) -> None:
        first = problems[0]
        more = "".join(f"\n  also: {p}" for p in problems[1:])
        super().__init__(f"{migration}: {first.thing}", first.fact, first.way_out + more)
        self.problems = tuple(problems)


class Problem(ZdmError):
    """One finding of preflight, said before anything was changed."""


class Judged(Problem):
    """A finding that people judge, for the server cannot: none where `contract.unaffected` lists its thing."""


class DatabaseUnreachable(ZdmError):
    """No connection could be had."""


class MissingPrivilege(ZdmError):
    """The role may not do what the migration needs."""


class LockNotAcquired(ZdmError):
    """A lock could not be had without making the application wait."""


class MigrationBusy(ZdmError):
    """Another process works on this migration."""


class StateConflict(ZdmError):
    """The migration is not in a state from which this may be done."""


class RolledBack(StateConflict):
    """The migration was rolled back since this work was launched."""


class OutcomeUnknown(ZdmError):
    """The connection was lost and the server could not be asked what happened."""


class MappingFailed(ZdmError):
    """`up` or `down` raised for a row, or the row cannot be deleted."""


class ParityMismatch(ZdmError):
    """Old and new disagree; the ranges to materialize again are in `partitions`."""

    def __init__(self, thing: str, fact: str, way_out: str, partitions: Sequence[str] = ()) -> None:
        super().__init__(thing, fact, way_out)
        self.partitions = tuple(partitions)


class Throttled(ZdmError):
    """The database, or somebody, asked for a pause that lasted longer than a run may wait; why is in `reasons`."""

    def __init__(self, thing: str, fact: str, way_out: str, reasons: Sequence[str]) -> None:
        super().__init__(thing, fact, way_out)
        self.reasons = tuple(reasons)


class GateRefused(ZdmError):
    """`contract` was refused; every reason is in `reasons`."""

    def __init__(self, migration: str, reasons: Sequence[str]) -> None:
        numbered = "".join(f"\n  - {reason}" for reason in reasons)
        super().__init__(
            migration,
            f"contract refused, nothing is taken away now:{numbered}",
            "mend these, then run contract again",
        )
        self.reasons = tuple(reasons)
