"""`zdm`: the verbs of a migration on the command line, without Dagster."""

import sys


def main() -> None:
    """The command; an application that installed only the client is told what is missing."""
    try:
        from zdm_pipelines.cli import app
    except ModuleNotFoundError as error:
        sys.exit(f"zdm: {error.name} is not installed; pip install 'zdm-pipelines[pipelines]'")
    app.main()
