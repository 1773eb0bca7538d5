"""Failures: what the server says when a verb or a phase fails, as an error that can be shown."""

from __future__ import annotations

from zdm_pipelines.dialects import DatabaseError, fault, privilege_problem, read_only_problem, safe
from zdm_pipelines.dialects.server import Fault
from zdm_pipelines.model.errors import ZdmError


def as_shown(error: Exception) -> ZdmError | None:
    """An error of the server's driver in our words, without any row's values; None: it is none of those."""
    if not isinstance(error, DatabaseError):
        return None
    if fault(error) is Fault.PRIVILEGE:
        return privilege_problem(error, "database")
    if fault(error) is Fault.READ_ONLY:
        return read_only_problem("database")
    return ZdmError("database", safe(error), "see the server's log, then run it again")
