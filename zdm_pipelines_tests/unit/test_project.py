"""Reading a defs folder: what is declared, and every mistake with its file and line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from zdm_pipelines import project
from zdm_pipelines.changes import KINDS, overview
from zdm_pipelines.model.errors import SpecError
from zdm_pipelines.model.lifecycle import Lifecycle
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.model.throttle import Limit, NamedLimit, Throttle
from zdm_pipelines.model.units import Unit
from zdm_pipelines.project import declarations

GOOD = """\
type: zdm_pipelines.Database
attributes:
  name: app
---
type: zdm_pipelines.components.ZeroDowntimeMigration
attributes:
  name: users_display_name
  database: app
  table: public.users
  change:
    kind: replace_column
    old: full_name
    new: {name: display_name, type: text}
    up: full_name
    down: display_name
"""
DATABASE, _, MIGRATION = GOOD.partition("---\n")


def read(tmp_path: Path, **files: str) -> project.Project:
    for name, text in files.items():
        (tmp_path / "defs" / name).mkdir(parents=True)
        (tmp_path / "defs" / name / "defs.yaml").write_text(text)
    return project.read(tmp_path / "defs")


def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [str(p) for p in read(tmp_path, one=text).problems]


def test_reads_all_files_and_documents_and_leaves_other_types_alone(tmp_path):
    found = read(tmp_path, app=GOOD, other="type: dagster.PythonScriptComponent\nattributes: {execution: {}}\n")
    assert not found.problems
    assert list(found.migrations) == ["users_display_name"]
    assert found.databases["app"].variable == "ZDM_APP_URL"
    assert str(found.places["users_display_name"]).endswith("app/defs.yaml:5")
    found.require_sound()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("    up: full_name\n", "", "defs/one/defs.yaml:6 users_display_name change.up: is missing; add it"),
        ("  table:", "  tabel: x\n  table:", ":5 users_display_name tabel: x: is no key here; did you mean table"),
        ("type: text}", "typ: text, type: text}", ":9 users_display_name change.new.typ: text: is no key here"),
        ("database: app", "database: app\n  batch_rows: 5", ":5 users_display_name batch_rows: 5: is no key here"),
        ("database: app", "database: app\n  batch_rows: 5", "did you mean backfill.batch_rows?"),
        ("database: app", "database: app\n  backfill:\n    batch_rows: 0", ":6 users_display_name backfill.batch_rows"),
        ("database: app", "database: app\n  backfill:\n    batch_rows: 0", "should be greater than 0"),
        ("database: app", "database: app\n  contract: {confidence_window: 7}", "7 is not a duration"),
        ("database: app", "database: app\n  reads: {ramp: [1, 50]}", "must rise and end at 100"),
        ("new: {name: display_name", "new: {name: full_name", "give the new column a name of its own"),
        ("  table: public.users", "  table: a.b.c", ":5 users_display_name table: a.b.c"),
        ("name: users_display_name", "name: Users", ":3 Users name: Users"),
        ("type: text}", "type: [}", ":9: is no YAML"),
        ("  table:", "  name: x\n  table:", ":5 name: stands here a second time"),
        ("  database: app", "  database: [app", "is no YAML"),
        ("attributes:\n", "attributs:\n", ":2 attributs: stands beside type"),
        ("ZeroDowntimeMigration", "ZeroDowntimeMigraton", ":1 type: zdm_pipelines.components.ZeroDowntimeMigraton"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_a_way_out(tmp_path, monkeypatch, old, new, expected):
    assert old in MIGRATION
    text = MIGRATION.replace(old, new, 1) + "---\n" + DATABASE
    assert any(expected in p for p in problems(tmp_path, monkeypatch, text))


def test_all_mistakes_are_told_at_once(tmp_path, monkeypatch):
    text = GOOD.replace("up: full_name", "upp: full_name").replace("table: public.users", "table: ''")
    found = problems(tmp_path, monkeypatch, text)
    assert len(found) == 3
    with pytest.raises(project.ProjectError) as error:
        project.read(tmp_path / "defs").require_sound()
    assert all(p in str(error.value) for p in found)


def test_a_url_in_the_file_is_refused_without_showing_its_password(tmp_path, monkeypatch):
    (found,) = problems(tmp_path, monkeypatch, DATABASE + "  url: postgresql://u:hunter2@h/d\n")
    assert "defs/one/defs.yaml:4 app url" in found
    assert "url_env" in found
    assert "hunter2" not in found


def test_a_name_that_two_declare_is_nobodys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = read(tmp_path, one=GOOD, two=MIGRATION)
    assert not found.migrations
    assert "defs/two/defs.yaml:1 migration users_display_name: is declared at defs/one/defs.yaml:5 too" in str(
        found.problems[0]
    )
    with pytest.raises(SpecError, match="declared at"):
        found.migration("users_display_name")


def test_an_undeclared_database_is_named_with_the_one_that_was_meant(tmp_path):
    found = read(tmp_path, one=GOOD.replace("database: app", "database: ap"))
    assert "names database ap" in str(found.problems[0])
    assert "did you mean app?" in str(found.problems[0])


def test_a_broken_database_is_the_only_one_to_blame(tmp_path):
    found = read(tmp_path, one=GOOD.replace("name: app", "name: app\n  port: 1"))
    assert len(found.problems) == 1
    assert "port" in str(found.problems[0])


def test_a_mistake_elsewhere_does_not_hide_a_good_declaration(tmp_path):
    found = read(tmp_path, good=GOOD, bad="type: zdm_pipelines.Database\nattributes: {}\n")
    assert found.migration("users_display_name").table == "public.users"
    with pytest.raises(SpecError, match="name: is missing"):
        found.require_sound()


def test_an_unknown_name_is_answered_with_close_ones(tmp_path):
    with pytest.raises(SpecError, match=r"did you mean users_display_name\?"):
        read(tmp_path, one=GOOD).migration("user_display_name")


# -- finding the folder -----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv(project.VARIABLE, raising=False)


def make(tmp_path: Path, toml: str, folder: str) -> Path:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(toml)
    below = tmp_path / "some" / "where"
    below.mkdir(parents=True)
    return below


@pytest.mark.parametrize(
    ("toml", "folder"),
    [
        ('[tool.dg.project]\nroot_module = "mine"\n', "mine/defs"),
        ('[tool.dg.project]\nroot_module = "mine"\n', "src/mine/defs"),
        ('[tool.dg.project]\nroot_module = "mine"\ndefs_module = "mine.more.defs"\n', "mine/more/defs"),
    ],
)
def test_the_project_around_the_working_directory(tmp_path, toml, folder):
    assert project.find(start=make(tmp_path, toml, folder)) == tmp_path / folder


def test_another_pyproject_on_the_way_up_is_passed_over(tmp_path):
    below = make(tmp_path, '[tool.dg.project]\nroot_module = "mine"\n', "mine/defs")
    (below / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert project.find(start=below) == tmp_path / "mine/defs"


def test_what_is_said_goes_first(tmp_path, monkeypatch):
    below = make(tmp_path, '[tool.dg.project]\nroot_module = "mine"\n', "mine/defs")
    (below / "a").mkdir()
    (below / "b").mkdir()
    monkeypatch.setenv(project.VARIABLE, "a")
    assert project.find(start=below) == below / "a"
    assert project.find(Path("b"), start=below) == below / "b"
    with pytest.raises(SpecError, match="--defs c: is no folder"):
        project.find(Path("c"), start=below)


def test_without_a_project_a_folder_defs_will_do(tmp_path):
    with pytest.raises(SpecError, match="no pyproject"):
        project.find(start=tmp_path)
    (tmp_path / "defs").mkdir()
    assert project.find(start=tmp_path) == tmp_path / "defs"


def test_a_project_without_its_folder_is_told(tmp_path):
    below = make(tmp_path, '[tool.dg.project]\nroot_module = "mine"\n', "other")
    with pytest.raises(SpecError, match="root_module"):
        project.find(start=below)


# -- docs/configuration.md --------------------------------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def as_yaml(value: object) -> str:
    """A default as one would write it; what is null inside a section is left out."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {as_yaml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(as_yaml(v) for v in value)}]"
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def is_literal(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal


def bounds(field: FieldInfo) -> str:
    """What a value must be, beside its type."""
    names = {"gt": "above {}", "ge": "at least {}", "le": "at most {}", "pattern": "matches `{}`"}
    said = ["one of " + ", ".join(f"`{a}`" for a in get_args(field.annotation))] if is_literal(field) else []
    for one in field.metadata:
        said += [text.format(getattr(one, n)) for n, text in names.items() if getattr(one, n, None) is not None]
        if getattr(one, "max_length", None):
            said.append(f"at most {one.max_length} characters")
    return ", ".join(said)


_LIMITS = {
    Unit.SECONDS: "limits in time, as `5s`",
    Unit.BYTES: "limits in bytes, as `64MB`",
    Unit.BYTES_PER_SECOND: "limits in bytes, as `64MB`",
    Unit.COUNT: "limits are numbers",
}


def rows(model: type[BaseModel], *, given: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Key, default, bounds and meaning; a signal's limits are one row.

    Args:
        given: what the section's own default says, in place of the defaults of its keys.
    """
    for name, field in model.model_fields.items():
        if name == "change":
            kinds = " ".join(f"`{kind}`" for kind in sorted(KINDS))
            yield f"{prefix}change.kind", "**required**", f"one of {kinds}", "What is changed; keys of each: kinds.md."
            continue
        key, inside = f"{prefix}{name}", next(declarations._models(field.annotation), None)
        required = field.is_required() and name not in given
        default = given.get(name, field.default)
        meaning = (field.description or "").replace("|", "\\|").replace("<", "&lt;")
        if inside is not None and not issubclass(inside, Limit):
            section = default.model_dump(mode="json") if isinstance(default, BaseModel) else {}
            yield from rows(inside, given=section, prefix=f"{key}.")
            continue
        if isinstance(default, BaseModel):
            default = default.model_dump(mode="json")
        shown = "**required**" if required else f"`{as_yaml(default)}`"
        yield key, shown, bounds(field) if inside is None else _LIMITS[inside.unit], meaning
        if inside is not None and issubclass(inside, NamedLimit):
            own = [one for one in rows(inside, given={}, prefix=f"{key}.") if one[0] not in limit_keys(key)]
            yield from own


def limit_keys(signal: str) -> set[str]:
    """The three keys that every signal has."""
    return {f"{signal}.{name}" for name in Limit.model_fields}


def reference(model: type[BaseModel]) -> str:
    table = [f"| `{key}` | {' | '.join(more)} |" for key, *more in rows(model, given={})]
    return "\n".join(["| key | default | bounds | meaning |", "|---|---|---|---|", *table])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_page_of_kinds_has_every_key(kind):
    begin, end = f"<!-- {kind}: generated -->\n", "\n<!-- end -->"
    keys = [row for row in reference(KINDS[kind].spec).splitlines() if not row.startswith("| `kind` |")]
    generated(PAGE.with_name("kinds.md"), begin, "\n".join(keys), end)


def test_the_page_of_kinds_has_the_table():
    generated(PAGE.with_name("kinds.md"), "<!-- kinds: generated -->\n", overview.markdown().strip(), "\n<!-- end -->")


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_on_how_it_works_has_the_states(kind):
    page = PAGE.with_name("how-it-works.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("|") and f"`{kind}`" in line)
    states = " → ".join(Lifecycle.of(overview.example_of(KINDS[kind]).needs).states)
    assert states in (page if "as above" in row else row)


def generated(file: Path, begin: str, wanted: str, end: str) -> None:
    """A part of a page that is made from the code."""
    page = file.read_text(encoding="utf-8")
    before, _, rest = page.partition(begin)
    _, there, after = rest.partition(end)
    assert there, f"{file.name} has nothing between {begin.strip()} and {end.strip()}"
    if os.environ.get("ZDM_WRITE_DOCS"):
        file.write_text(f"{before}{begin}{wanted}{end}{after}", encoding="utf-8")
    else:
        assert f"{begin}{wanted}{end}" in page, "ZDM_WRITE_DOCS=1 make test ARGS='-k page' brings it up to date"


@pytest.mark.parametrize("model", [Database, Migration, Limit])
def test_the_configuration_page_is_complete_and_current(model):
    begin, end = f"<!-- {model.__name__}: generated -->\n", "\n<!-- end -->"
    generated(PAGE, begin, reference(model), end)
    signals = [f"throttle.{name}" for name in Throttle.model_fields] if model is Migration else []
    covered = set().union(*map(limit_keys, signals))
    own = {key for key in project.keys(model) if not key.startswith("change.")}
    for key in {*own, *signals} - covered:
        assert f"| `{key}` |" in reference(model)


def test_the_examples_on_the_pages_can_be_meant(tmp_path):
    """Every complete YAML declaration in README and docs."""
    pages = [PAGE.parents[1] / "README.md", *PAGE.parent.glob("*.md")]
    blocks = [b for page in pages for b in re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]
    declared = [b for b in blocks if "type: zdm_pipelines." in b]
    assert len(declared) >= 2
    database = "" if any("zdm_pipelines.Database" in b for b in declared) else DATABASE
    found = read(tmp_path, **{f"block{n}": b for n, b in enumerate(declared)}, database=database)
    assert not [p for p in found.problems if "is declared at" not in str(p)]
