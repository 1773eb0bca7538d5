"""Folder: where a project's declarations lie."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from zdm_pipelines.model.errors import SpecError

FILE = "defs.yaml"
VARIABLE = "ZDM_DEFS"


def find(given: Path | None = None, *, start: Path | None = None) -> Path:
    """The `defs` folder: as given, as ZDM_DEFS says, of the project around `start`, or ./defs.

    Args:
        given: the command line's word, if any.
        start: where to look from; default: the working directory.

    Raises:
        SpecError: there is none.
    """
    start = (start or Path.cwd()).absolute()
    for source, said in (("--defs", given), (VARIABLE, os.environ.get(VARIABLE))):
        if said:
            folder = start / said
            if not folder.is_dir():
                raise SpecError(f"{source} {said}", "is no folder", f"name the folder that holds your {FILE} files")
            return folder
    if (root := root_of(start)) is not None:
        return _defs_of(root)
    if (start / "defs").is_dir():
        return start / "defs"
    raise SpecError(
        str(start),
        "no pyproject.toml with [tool.dg.project] here or above, and no folder defs",
        f"run it inside the project, or name the folder with --defs or {VARIABLE}",
    )


def root_of(start: Path) -> Path | None:
    """The nearest folder, upwards, whose pyproject.toml is a Dagster project's."""
    return next((folder for folder in (start, *start.parents) if _dg_table(folder) is not None), None)


def root_module(root: Path) -> str | None:
    """The Python package of a Dagster project."""
    module = (_dg_table(root) or {}).get("root_module")
    return module if isinstance(module, str) else None


def _dg_table(folder: Path) -> dict[str, Any] | None:
    place = folder / "pyproject.toml"
    try:
        read = tomllib.loads(place.read_text(encoding="utf-8"))
    except OSError:
        return None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(shown(place), f"is no TOML ({error})", "correct it, or use --defs") from None
    table = read.get("tool", {}).get("dg", {}).get("project")
    return table if isinstance(table, dict) else None


def _defs_of(root: Path) -> Path:
    table = _dg_table(root) or {}
    module = table.get("defs_module") or f"{table.get('root_module', '')}.defs"
    places = [base.joinpath(*str(module).split(".")) for base in (root, root / "src")]
    for place in places:
        if place.is_dir():
            return place
    raise SpecError(
        f"{shown(root / 'pyproject.toml')} [tool.dg.project]",
        f"its definitions would be in {shown(places[0])}, which is no folder",
        "create it, or correct root_module or defs_module",
    )


def shown(path: Path) -> str:
    """A path as short as it can be told."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
