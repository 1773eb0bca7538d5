"""`python -m zdm_pipelines.cli`, where the command is not on the path."""

from zdm_pipelines.cli import main

main()
