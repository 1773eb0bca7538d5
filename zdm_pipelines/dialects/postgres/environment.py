"""Environment: the settings under which declared expressions are read and evaluated, the same wherever that happens.

What `up` gives for a row hangs on the session: on how a float or a timestamp is printed, on what a literal means, on
where names are looked for. So the settings are recorded when a migration begins, set by every session of ours that
evaluates an expression, and part of every function that does so in the application's sessions.

Most of them are FIXED: they have one value in every session of ours, whatever the server, the database, the role or the
machine says. The others are recorded as the database gives them to our role on the day of expand: no one value of
theirs is right everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from zdm_pipelines.dialects.postgres.literals import text

if TYPE_CHECKING:
    from zdm_pipelines.dialects.postgres.connection import Connection

PATH = "search_path"
# Printing: casts to text hang on these although the server counts some of them among what depends on the row alone.
# A literal, too, means by them what it means: '01/02/2025'::date. So they are set for every expression.
_FIXED_PRINTING = {"IntervalStyle": "postgres", "extra_float_digits": "1", "bytea_output": "hex"}
_PRINTING = ("TimeZone", "DateStyle")
# Reading: what a backslash, a brace, `= NULL` or an XML value means, and what quote_ident gives.
_FIXED_READING = {
    "array_nulls": "on",
    "backslash_quote": "safe_encoding",
    "escape_string_warning": "off",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "xmlbinary": "base64",
    "xmloption": "content",
}
_LOCALE = ("default_text_search_config", "lc_monetary", "lc_numeric", "lc_time", "timezone_abbreviations")
FIXED: Mapping[str, str] = {**_FIXED_PRINTING, **_FIXED_READING}
RECORDED = (PATH, *_PRINTING, *_LOCALE)

# A literal of neither letters nor digits, backslashes nor braces reads alike everywhere: '', ' ', ', '.
_HARMLESS = re.compile(r"'[^'\\{$\w]*'")
_HARMFUL = re.compile(r"['\\{$]|\bnull\b|xml|money|quote_", re.IGNORECASE)


def recorded(conn: Connection) -> dict[str, str]:
    """The environment of a session, to be kept with the migration that begins in it."""
    settings: dict[str, str] = dict(conn.named("environment.settings", list(RECORDED)))
    return {**settings, PATH: str(conn.value("environment.path"))}


def enter(conn: Connection, environment: Mapping[str, str]) -> None:
    """From now on a session evaluates what is declared as it was when the migration began."""
    entered = {**FIXED, **environment}
    conn.named("environment.enter", list(entered), list(entered.values()))


def plain(expressions: Iterable[str]) -> bool:
    """Whether expressions, which the server calls immutable, read alike under every setting but those of printing.

    Errs on the side of caution.
    """
    return not any(_HARMFUL.search(_HARMLESS.sub("", sql)) for sql in expressions)


def clauses(environment: Mapping[str, str], *, plain: bool = False) -> str:
    """The settings as clauses of a function; what an earlier version did not record is as the session has it.

    Args:
        plain: only what matters to plain expressions; each setting costs a write of the application a little.
    """
    fixed = _FIXED_PRINTING if plain else FIXED
    recorded = _PRINTING if plain else RECORDED[1:]
    given = [f"{n} = {text(environment[n])}" if n in environment else f"{n} FROM CURRENT" for n in recorded]
    always = [f"{n} = {text(value)}" for n, value in fixed.items()]
    return "\n  ".join(" ".join(f"SET {one}" for one in line) for line in ([path(environment)], given, always))


def path(environment: Mapping[str, str]) -> str:
    """Where a function looks for names, as a setting.

    A function of ours runs with its owner's rights: a caller's temporary table never stands in for a real one.
    """
    return f"{PATH} = {', '.join(part for part in (environment.get(PATH, ''), 'pg_temp') if part)}"
