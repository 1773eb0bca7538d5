"""Declared: find other declarations of the project, and say where in a file something stands."""

from __future__ import annotations

from typing import TypeVar

import dagster as dg
from dagster.components.core.decl import YamlBackedComponentDecl

C = TypeVar("C", bound=dg.Component)


def component_of(context: dg.ComponentLoadContext, kind: type[C]) -> list[C]:
    """Every component of that kind in the project."""
    return context.component_tree.get_all_components(of_type=kind)


def where(context: dg.ComponentLoadContext, attribute: str) -> str:
    """File and line of an attribute, for messages."""
    decl = context.component_decl
    if isinstance(decl, YamlBackedComponentDecl) and decl.source_tree is not None:
        document = decl.source_tree.source_position_tree
        attributes = document.children.get("attributes", document)
        position = attributes.children.get(attribute, attributes).position
        return f"{position.filename}:{position.start.line}"
    return str(context.component_loc)
