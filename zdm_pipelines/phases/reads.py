"""Reads: let every client see where the flag stands before a shape of the data goes that some of them may read."""

from __future__ import annotations

import time

from zdm_pipelines import ledger
from zdm_pipelines.dialects.server import Session
from zdm_pipelines.engine.context import Context

# Longer than a client keeps a flag (`client.flags.MAX_TTL`) and takes to read it (one second) together.
FLAG_SECONDS = 4.0


def settle(context: Context, session: Session, migration_id: int) -> bool:
    """Wait until every client has had time to see the flag as it stands; false: the migration has none.

    Killed meanwhile, nothing happened: whoever runs it again waits for what is left of the time.
    """
    if ledger.flag(session, migration_id) is None:
        return False
    told = False
    while (left := ledger.flag_settles(session, migration_id, seconds=FLAG_SECONDS)) > 0:
        if not told:
            context.tell(f"waiting {left:.1f} s: clients may not have seen yet where the flag stands")
            told = True
        time.sleep(min(left, 0.2))
    return True
