"""Zero-downtime database migrations as Dagster assets."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# The names that `type:` in a defs.yaml takes. Found on demand, so that an application which imports
# zdm_pipelines.client never imports Dagster.
_COMPONENTS = ("Database", "ZeroDowntimeMigration")


def __getattr__(name: str) -> Any:
    if name in _COMPONENTS:
        return getattr(import_module("zdm_pipelines.components"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_COMPONENTS]
