"""Dagster's entry: loads defs/, nothing else."""

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """Everything declared in defs/. One process per run: a phase's parallel work is done by threads."""
    declared = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(declared, dg.Definitions(executor=dg.in_process_executor))
