"""`zdm`: the verbs of a migration on the command line, without Dagster."""

from zdm_pipelines.cli.app import app, main

__all__ = ["app", "main"]
