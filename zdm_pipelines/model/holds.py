"""Holds: who may hold a migration, and for whom a hold stands."""

from __future__ import annotations

EVERY = "*"  # in place of a migration's name: every migration of the database
OPERATOR = "operator"  # who pauses by hand, and gives no other name
WINDOW = "window"  # outside the declared hours
LEDGER = "ledger"  # the ledger cannot be read
_SIGNAL = "signal:"


def signal_owner(name: str) -> str:
    """The owner of a signal's hold."""
    return _SIGNAL + name


def is_signal(owner: str) -> bool:
    """Whether a hold is a signal's."""
    return owner.startswith(_SIGNAL)


def short_owner(owner: str) -> str:
    """An owner as short as people know it: a signal by its name."""
    return owner.removeprefix(_SIGNAL)
