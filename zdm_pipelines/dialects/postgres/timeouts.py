"""Time-outs: seconds as the server's settings have them."""

from __future__ import annotations


def milliseconds(seconds: float | None) -> str:
    """A time-out as a setting; None: no limit, which the server writes as 0, so that a short one becomes 1 ms."""
    return "0" if seconds is None else f"{max(1, round(seconds * 1000))}ms"
