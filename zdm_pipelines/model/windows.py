"""Windows: the hours at which a backfill may write."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

_WINDOW = re.compile(r"^\s*(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})\s+(\S+)\s*$")


class Window:
    """A daily window, `22:00-06:00 Europe/Berlin`; one that ends before it begins runs over midnight.

    Raises:
        ValueError: the text is no window, or nobody knows the time zone.
    """

    def __init__(self, text: str) -> None:
        match = _WINDOW.match(text)
        if match is None:
            raise ValueError(f"{text!r} is not a window: write hours and a time zone, as 22:00-06:00 Europe/Berlin")
        self.begins, self.ends = _at(match[1], match[2], text), _at(match[3], match[4], text)
        if self.begins == self.ends:
            raise ValueError(f"{text!r} begins when it ends: leave it out when every hour is allowed")
        try:
            self.zone = ZoneInfo(match[5])
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{match[5]!r} is no time zone: name one as Europe/Berlin or UTC") from None

    def open_at(self, moment: datetime) -> bool:
        """Whether an aware moment lies in it, by the clock on the wall of its zone."""
        now = moment.astimezone(self.zone).time()
        if self.begins < self.ends:
            return self.begins <= now < self.ends
        return now >= self.begins or now < self.ends

    def opens_after(self, moment: datetime) -> datetime:
        """When it opens next."""
        local = moment.astimezone(self.zone)
        opens = local.replace(hour=self.begins.hour, minute=self.begins.minute, second=0, microsecond=0)
        # The same wall clock a day later: an hour more or less when the clocks are changed.
        return opens if opens > local else opens + timedelta(days=1)


def _at(hour: str, minute: str, text: str) -> time:
    if (hour, minute) == ("24", "00"):
        return time.min
    try:
        return time(int(hour), int(minute))
    except ValueError:
        raise ValueError(f"{text!r} has no such hour: write 00:00 to 24:00") from None


def closed(windows: tuple[str, ...], moment: datetime | None = None) -> str | None:
    """Why nothing may be written now, None when a window is open or none is declared."""
    now = moment or datetime.now(UTC)
    parsed = [Window(text) for text in windows]
    if not parsed or any(window.open_at(now) for window in parsed):
        return None
    opens = min((window.opens_after(now) for window in parsed), key=lambda at: at.astimezone(UTC))
    return f"outside {', '.join(windows)}; opens at {opens:%Y-%m-%d %H:%M %Z}"


def _known(text: str) -> str:
    Window(text)
    return text


def _one_or_several(given: object) -> object:
    return (given,) if isinstance(given, str) else given


WindowText = Annotated[str, Field(min_length=1), AfterValidator(_known)]
Windows = Annotated[
    tuple[WindowText, ...],
    BeforeValidator(_one_or_several),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
