"""Time-outs: none is ever taken for no limit."""

from __future__ import annotations

import pytest

from zdm_pipelines.dialects.postgres.timeouts import milliseconds


@pytest.mark.parametrize(
    ("seconds", "setting"),
    [(None, "0"), (0.0, "1ms"), (0.0001, "1ms"), (0.0004, "1ms"), (0.25, "250ms"), (600.0, "600000ms")],
)
def test_a_short_one_stays_a_limit(seconds: float | None, setting: str) -> None:
    assert milliseconds(seconds) == setting
