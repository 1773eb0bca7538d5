"""Windows: by the clock on the wall of their zone, over midnight, and on the days when clocks are changed."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from zdm_pipelines.model.windows import Window, closed
from zdm_pipelines_tests.helpers import replaced

BERLIN = ZoneInfo("Europe/Berlin")
NIGHT = "22:00-06:00 Europe/Berlin"
DAY = "08:00-17:30 Europe/Berlin"


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


@pytest.mark.parametrize(
    ("window", "local", "expected"),
    [
        (DAY, "2026-03-02 07:59:59", False),
        (DAY, "2026-03-02 08:00", True),
        (DAY, "2026-03-02 17:29:59", True),
        (DAY, "2026-03-02 17:30", False),
        (NIGHT, "2026-03-02 21:59:59", False),
        (NIGHT, "2026-03-02 22:00", True),
        (NIGHT, "2026-03-02 23:59:59.999999", True),
        (NIGHT, "2026-03-03 00:00", True),
        (NIGHT, "2026-03-03 05:59:59", True),
        (NIGHT, "2026-03-03 06:00", False),
        ("00:00-24:00 Europe/Berlin", "2026-03-02 12:00", None),
        ("20:00-24:00 Europe/Berlin", "2026-03-02 23:59", True),
        ("20:00-24:00 Europe/Berlin", "2026-03-03 00:00", False),
        ("24:00-06:00 Europe/Berlin", "2026-03-03 00:00", True),
        ("  9:00 - 10:00   Europe/Berlin ", "2026-03-02 09:30", True),
    ],
)
def test_open_from_its_beginning_until_before_its_end(window: str, local: str, expected: bool | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="begins when it ends"):
            Window(window)
    else:
        assert Window(window).open_at(at(local, "Europe/Berlin")) is expected


def test_the_clock_is_the_zones_whatever_the_moments_own() -> None:
    assert Window(NIGHT).open_at(at("2026-01-15 21:00"))  # 22:00 in Berlin
    assert not Window(NIGHT).open_at(at("2026-01-15 20:59"))
    assert Window(NIGHT).open_at(at("2026-07-15 20:00"))  # summer: two hours ahead
    assert Window(NIGHT).open_at(at("2026-01-15 13:00", "America/Los_Angeles"))


# In Berlin, 2026-03-29 has no 02:00 to 03:00 and 2026-10-25 has it twice.


def test_in_spring_a_window_is_as_long_as_the_wall_says() -> None:
    assert Window(NIGHT).open_at(at("2026-03-29 03:59:59"))
    assert not Window(NIGHT).open_at(at("2026-03-29 04:00"))  # 06:00, after seven hours
    within = Window("02:00-03:00 Europe/Berlin")  # never that day
    moments = [at(f"2026-03-29 {hour:02}:{minute:02}") for hour in range(24) for minute in range(0, 60, 10)]
    assert not any(within.open_at(moment) for moment in moments)


def test_in_autumn_the_hour_that_comes_twice_is_open_twice() -> None:
    twice = Window("02:00-03:00 Europe/Berlin")
    assert [twice.open_at(at(f"2026-10-{day}")) for day in ("24 23:59", "25 00:30", "25 01:30", "25 02:00")] == [
        False, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("window", "now", "opens"),
    [
        (DAY, "2026-03-02 06:00", "2026-03-02 07:00"),
        (DAY, "2026-03-02 17:00", "2026-03-03 07:00"),
        (NIGHT, "2026-03-28 12:00", "2026-03-28 21:00"),
        (NIGHT, "2026-03-29 12:00", "2026-03-29 20:00"),  # summer time since the morning
        (DAY, "2026-03-28 20:00", "2026-03-29 06:00"),  # the night is an hour shorter
        (DAY, "2026-10-24 20:00", "2026-10-25 07:00"),  # and an hour longer
    ],
)
def test_when_it_opens_next(window: str, now: str, opens: str) -> None:
    assert Window(window).opens_after(at(now)) == at(opens)


def test_one_open_window_is_enough() -> None:
    assert closed(()) is None
    assert closed((DAY, NIGHT), at("2026-03-02 11:00", "Europe/Berlin")) is None
    said = closed((DAY, NIGHT), at("2026-03-02 07:00", "Europe/Berlin"))
    assert said == f"outside {DAY}, {NIGHT}; opens at 2026-03-02 08:00 CET"
    assert closed((DAY, "22:00-06:00 Asia/Tokyo"), at("2026-03-02 05:00")) == (
        f"outside {DAY}, 22:00-06:00 Asia/Tokyo; opens at 2026-03-02 08:00 CET"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is not a window"),
        ("at night", "is not a window"),
        ("22:00-06:00", "is not a window"),
        ("22-6 Europe/Berlin", "is not a window"),
        ("22:00-06:00 Europe/Berlin daily", "is not a window"),
        ("25:00-06:00 UTC", "no such hour"),
        ("22:60-06:00 UTC", "no such hour"),
        ("24:30-06:00 UTC", "no such hour"),
        ("22:00-22:00 UTC", "begins when it ends"),
        ("24:00-00:00 UTC", "begins when it ends"),
        ("22:00-06:00 Europe/Atlantis", "is no time zone: name one as Europe/Berlin"),
        ("22:00-06:00 ../../etc/passwd", "is no time zone"),
        ("22:00-06:00 /etc/localtime", "is no time zone"),
        ("22:00-06:00 Europe", "is no time zone"),
    ],
)
def test_what_cannot_be_meant(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Window(text)
    if text:
        with pytest.raises(ValidationError, match=expected):
            _declared([text])


def test_one_window_or_several_are_declared() -> None:
    assert _declared(NIGHT) == (NIGHT,)
    assert _declared([DAY, NIGHT]) == (DAY, NIGHT)
    assert _declared([]) == ()


def _declared(allowed: object) -> tuple[str, ...]:
    values = replaced().model_dump(mode="json")
    return type(replaced()).model_validate(values | {"allowed": allowed}).allowed
