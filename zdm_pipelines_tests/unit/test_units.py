"""Units: read as people write them, written so that they are read again as the same value."""

from __future__ import annotations

import pytest

from zdm_pipelines.model.migration import Backfill
from zdm_pipelines.model.throttle import SizeLimit
from zdm_pipelines.model.units import Unit, as_declared, for_people, seconds, size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("250ms", 0.25), ("5s", 5), ("1.5 m", 90), (" 25h ", 90_000), ("7d", 604_800), ("0s", 0), ("0.5ms", 0.0005)],
)
def test_durations(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("0B", 0), ("10B", 10), ("1kB", 1024), ("64 MB", 67_108_864), ("1.5GB", 1.5 * 1024**3)]
)
def test_sizes(text: str, expected: float) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("value", [5, 0.25, None, True, "5", "5 sec", "-5s", "1e3s", "s", "5s5", "5S", "", "5s 5s"])
def test_a_duration_needs_its_unit(value: object) -> None:
    with pytest.raises(ValueError, match="is not a duration: write a number and ms, s, m, h or d"):
        seconds(value)


@pytest.mark.parametrize("value", [64, "64", "64mb", "64 KB", "-1MB", "64MiB", "", None])
def test_a_size_needs_its_unit(value: object) -> None:
    with pytest.raises(ValueError, match="is not a size: write a number and B, kB, MB, GB or TB"):
        size(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("250ms", "250ms"), ("0.25s", "250ms"), ("60s", "1m"), ("90s", "90s"), ("25h", "25h"), ("24h", "1d"),
        ("0.0001s", "0.0001s"), ("1.1s", "1100ms"), ("0.1s", "100ms"), ("0.7ms", "0.0007s"),
    ],
)  # fmt: skip
def test_a_duration_is_written_as_one_would(text: str, expected: str) -> None:
    declared = Backfill.model_validate({"batch_target": text})
    assert declared.model_dump(mode="json")["batch_target"] == expected
    assert Backfill.model_validate(declared.model_dump(mode="json")) == declared


@pytest.mark.parametrize(
    ("text", "expected"), [("64MB", "64MB"), ("1024kB", "1MB"), ("1.5kB", "1536B"), ("0B", "0B"), ("0.5B", "0.5B")]
)
def test_a_size_is_written_as_one_would(text: str, expected: str) -> None:
    declared = SizeLimit.model_validate({"pause_above": text})
    assert declared.model_dump(mode="json")["pause_above"] == expected
    assert SizeLimit.model_validate(declared.model_dump(mode="json")) == declared


def test_what_is_written_is_read_as_the_same_value() -> None:
    for number in range(1, 3_000, 7):
        for text in (f"{number}ms", f"{number / 1000}s", f"{number / 7:.6f}m"):
            declared = Backfill.model_validate({"batch_target": text})
            assert Backfill.model_validate_json(declared.model_dump_json()) == declared


def test_a_duration_is_shown_as_declared() -> None:
    shown = [as_declared(s, Unit.SECONDS) for s in (7 * 86400.0, 25 * 3600.0, 600.0, 5.0, 0.25, 0.0)]
    assert shown == ["7d", "25h", "10m", "5s", "250ms", "0s"]


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.25, Unit.SECONDS, "0.250 s"),
        (119.4, Unit.SECONDS, "119 s"),
        (720, Unit.SECONDS, "12 min"),
        (7_200.4, Unit.SECONDS, "2 h"),
        (90_000, Unit.SECONDS, "25 h"),
        (7.5 * 86_400, Unit.SECONDS, "7.5 d"),
        (64 * 1024**2, Unit.BYTES, "64.0 MB"),
        (1023, Unit.BYTES, "1023 B"),
        (5_000 * 1024**4, Unit.BYTES, "5,000.0 TB"),
        (2048, Unit.BYTES_PER_SECOND, "2.0 kB/s"),
        (1_234_567, Unit.COUNT, "1.23457e+06"),
        (12, Unit.COUNT, "12"),
    ],
)
def test_values_for_people(value: float, unit: Unit, shown: str) -> None:
    assert for_people(value, unit) == shown
