"""Your migrations, one folder each, and the databases they name."""
