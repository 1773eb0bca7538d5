"""Failures: an error the user can act on becomes one message in the UI; anything else is a bug and keeps its trace.

A trace of the driver's would show the values of rows, as the server quotes them: its errors are told in our words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from zdm_pipelines.components.metadata import Metadata, bullets
from zdm_pipelines.model.errors import GateRefused, ParityMismatch, PreflightError, Throttled, ZdmError
from zdm_pipelines.verbs.failures import as_shown


@contextmanager
def readable() -> Iterator[None]:
    """Turn a ZdmError, or an error of the driver, into a Failure that says as much of it as may be shown.

    Raises:
        dagster.Failure: never retried: each needs somebody to act first.
    """
    try:
        yield
    except ZdmError as error:
        raise dg.Failure(description=str(error), metadata=_facts(error), allow_retries=False) from None
    except Exception as error:
        if (shown := as_shown(error)) is None:
            raise
        raise dg.Failure(description=str(shown), allow_retries=False) from None


def _facts(error: ZdmError) -> Metadata:
    facts: Metadata = {}
    if isinstance(error, (GateRefused, Throttled)):
        facts["reasons"] = bullets(error.reasons)
    elif isinstance(error, PreflightError):
        facts["problems"] = bullets([str(problem) for problem in error.problems])
    elif isinstance(error, ParityMismatch) and error.partitions:
        facts["ranges_to_materialize_again"] = bullets(error.partitions)
    return facts
