"""Dev: Dagster's web UI and daemon for the project at hand, with storage of their own, until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.text import Text

import zdm_pipelines
from zdm_pipelines import project
from zdm_pipelines.cli import terminal
from zdm_pipelines.model.errors import SpecError, ZdmError

if TYPE_CHECKING:
    from zdm_pipelines.sandbox.dagster_services import DagsterServices

_PORT = 3000  # Dagster's own default
_LOOK = 0.5  # seconds between two looks at whether the services still live


def serve(defs: Path, *, port: int | None, storage_url: str | None) -> None:
    """Start everything, say where it is, stay until interrupted; nothing is left running.

    Args:
        port: of the web UI; none: 3000, or a free one when that is taken.
        storage_url: Dagster's database; none: an embedded Postgres below `.zdm`.

    Raises:
        SpecError: the project cannot be loaded into Dagster.
        ZdmError: something did not start, or ended.
    """
    try:
        from zdm_pipelines.sandbox import processes
        from zdm_pipelines.sandbox.dagster_services import DagsterServices
    except ImportError as error:
        raise ZdmError("zdm dev", f"{error.name} is missing", "pip install zdm-pipelines[pipelines,sandbox]") from None
    root = project.root_of(defs)
    if root is None:
        raise SpecError(str(defs), "is in no Dagster project", "add [tool.dg.project] to pyproject.toml")
    folder = root / ".zdm"
    if port is not None and not processes.port_is_free(port):
        raise SpecError(f"port {port}", "is taken", "choose another with --port")
    if port is None:
        port = _PORT if processes.port_is_free(_PORT) else processes.free_port()
    with _storage(folder / "dev", storage_url) as url:
        terminal.note("Dagster is starting, which takes a quarter of a minute", style="dim")
        with DagsterServices(folder / "dagster", url, _workspace(root, folder), port=port) as services:
            _announce(services)
            _stay(services)


@contextlib.contextmanager
def _storage(folder: Path, given: str | None) -> Iterator[str]:
    """Dagster's database, as given or embedded; the embedded one keeps its data from one call to the next."""
    if given:
        # DagsterServices names the driver itself; here anything SQLAlchemy takes will do.
        scheme, _, rest = given.partition("://")
        if scheme.partition("+")[0] not in ("postgresql", "postgres") or not rest:
            raise SpecError("Dagster's storage", "is no Postgres URL", "give postgresql://user:password@host/dagster")
        yield f"postgresql://{rest}"
        return
    from zdm_pipelines.sandbox.postgres import Cluster

    cluster = Cluster(folder, replica=False)
    with cluster:
        terminal.note(f"storage: embedded Postgres in {cluster.folder}", style="dim")
        yield cluster.primary.url()


def _workspace(root: Path, folder: Path) -> Path:
    """The project's `workspace.yaml` with its `dagster.yaml`, or a pair made for it."""
    if (root / "workspace.yaml").is_file() and (root / "dagster.yaml").is_file():
        return root / "workspace.yaml"
    module = project.root_module(root)
    if module is None:
        raise SpecError(str(root / "pyproject.toml"), "names no root_module", "add it below [tool.dg.project]")
    made = folder / "workspace"
    made.mkdir(parents=True, exist_ok=True)
    base = root / "src" if (root / "src" / module.split(".")[0]).is_dir() else root
    target = {
        "module_name": f"{module}.definitions",
        "location_name": module,
        "working_directory": str(base),
    }
    (made / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [{"python_module": target}]}), encoding="utf-8")
    (made / "dagster.yaml").write_text(_settings(root), encoding="utf-8")
    return made / "workspace.yaml"


def _settings(root: Path) -> str:
    """The project's own `dagster.yaml`, else the one that comes with this software."""
    package = Path(zdm_pipelines.__file__).parent
    for place in (root / "dagster.yaml", package / "sandbox" / "dagster.yaml"):
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise SpecError("dagster.yaml", f"is not in {root}", "copy the one of zdm_pipelines there")


def _announce(services: DagsterServices) -> None:
    terminal.out().print(Text.assemble("Dagster: ", (services.url, "bold cyan"), "   Ctrl-C ends it"))
    terminal.note(f"logs: {services.home}/webserver.log and daemon.log", style="dim")


def _stay(services: DagsterServices) -> None:
    try:
        while True:
            time.sleep(_LOOK)
            for name in ("webserver", "daemon"):
                if not _alive(services.pid(name)):
                    raise ZdmError(name, "has ended", f"look at {services.home / name}.log, then start again")
    except KeyboardInterrupt:
        terminal.note("ending Dagster; runs in progress stop at their next batch, and can be materialized again")


def _alive(pid: int) -> bool:
    """Whether a child of ours runs; one that ended stays a zombie until it is waited for."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False
