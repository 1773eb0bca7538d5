"""What people do besides walking phases: plan, status, pause, tune, rollback, watch, doctor."""

from zdm_pipelines.engine.context import Context

__all__ = ["Context"]
