"""Application: a simulated application whose shapes are data; it knows what every row of its own must answer."""

from zdm_pipelines.sandbox.application.samples import EVENTS, ORDERS, SETTINGS, USERS
from zdm_pipelines.sandbox.application.shapes import Application, Fact, Shape, Tables, Write
from zdm_pipelines.sandbox.application.tables import Progress, load

__all__ = [
    "EVENTS",
    "ORDERS",
    "SETTINGS",
    "USERS",
    "Application",
    "Fact",
    "Progress",
    "Shape",
    "Tables",
    "Write",
    "load",
]
