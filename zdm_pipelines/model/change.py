"""Change: what every kind's part of a declaration has in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.units import Declared


class Unquoted:
    """Marks a key whose text no message quotes: SQL may hold a password or a key."""


Expression = Annotated[str, Field(min_length=1), Unquoted()]


class ChangeSpec(Declared):
    """One kind's part of the YAML. A kind's model adds its keys, and `kind: Literal["<its name>"]` as the first.

    A key that is added later has a default, so that what an earlier version stored is read as today's model.
    """

    kind: str

    @property
    @abstractmethod
    def needs(self) -> frozenset[Need]:
        """What this change needs, as declared: the phases of its migration follow from it."""

    def names(self) -> Mapping[str, str]:
        """Names of database objects that the declaration gives, by what they are: they must fit the server."""
        return {}
