"""Zero-downtime database migrations as Dagster assets."""

__version__ = "0.1.0"
