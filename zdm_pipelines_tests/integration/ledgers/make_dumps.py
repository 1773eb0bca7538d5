"""Dumps: a small database for each state that a migration may be in, made by an earlier version of this software.

    python make_dumps.py <a checkout of that version> [<folder>]

The version that the dumps here come from is the last one with ledger 0003 (commit af3a276). The checkout needs nothing
but its files: modules are imported from there, libraries from the environment that runs this script. The dumps are
INSERTs, so that a test can restore them with a driver; what differs at each call is left out of them.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

_ROWS = 20
_TABLE = """
CREATE INDEX people_by_name ON public.people (full_name);
ALTER TABLE public.people ADD CONSTRAINT full_name_is_short CHECK (length(full_name) < 80);
"""


def main(checkout: Path, folder: Path) -> None:
    """Write a dump for each state."""
    sys.path.insert(0, str(checkout))
    from zdm_pipelines.model.states import State
    from zdm_pipelines.sandbox.postgres import Cluster
    from zdm_pipelines_tests.helpers import at, people, replaced, sql

    migration = replaced(
        new={"name": "display_name", "type": "text", "nullable": False, "default": "'nobody'"},
        up="coalesce(full_name, '')",
        down="display_name",
        backfill={"range_rows": 10, "batch_rows": 5},
    )
    with Cluster(Path(tempfile.mkdtemp()) / "dumps", replica=False) as cluster:
        server = cluster.primary
        for state in State:
            url = server.create_database(f"dump_{state}")
            people(url, _ROWS)
            sql(url, _TABLE)
            at(migration, url, state)
            dump = server.run("pg_dump", "--inserts", "--no-owner", database=f"dump_{state}").stdout
            # psql's commands, of which \restrict is another at each call.
            lines = [line for line in dump.splitlines() if not re.match(r"\\(un)?restrict ", line)]
            (folder / f"{state}.sql").write_text("\n".join(lines).strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent)
