"""The client: what runs inside the application while its data moves; light, and never imports Dagster."""

from zdm_pipelines.client.flags import Flags

__all__ = ["Flags"]
