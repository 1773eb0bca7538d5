"""Declared: components whose `attributes` are a class of the model, and the look-up of what else a project declares."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Generic, Self, TypeVar

import dagster as dg
from pydantic import BaseModel

from zdm_pipelines.components import dagster_internals

D = TypeVar("D", bound=BaseModel)


class DeclaredComponent(dg.Component, Generic[D]):
    """A component whose YAML is read by a class of the model, which the command line reads it with too."""

    produces: ClassVar[list[str]]  # kinds of definitions, for lists of components

    def __init__(self, declared: D) -> None:
        self.declared = declared

    @classmethod
    @abstractmethod
    def get_model_cls(cls) -> type[D]:
        """The schema of `attributes`."""

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """What is shown in lists of components."""
        return dg.ComponentTypeSpec(description=cls.__doc__, produces=cls.produces)

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """The component of a validated declaration."""
        assert isinstance(attributes, cls.get_model_cls())  # the schema has required keys
        return cls(attributes)


def declarations(context: dg.ComponentLoadContext, model: type[D]) -> list[D]:
    """Everything that the project declares of one class of the model, whichever component reads it.

    So a database's component finds migrations, and a migration's finds databases, and neither imports the other.
    """
    # The class is only asked for; nothing makes an instance of an abstract class.
    components: list[DeclaredComponent[Any]] = dagster_internals.components_of(context, DeclaredComponent)  # type: ignore[type-abstract]
    return [component.declared for component in components if isinstance(component.declared, model)]
