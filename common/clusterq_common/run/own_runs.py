"""Record of the runs that this user's own programs wrote. It is kept outside of all runs, which might be a stranger's."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clusterq_common.files import atomic_write, sha256_file
from clusterq_common.progress.console import warn
from clusterq_common.run.run_folder import CONFIG

STATE = "CLUSTERQ_STATE"
RUNS = "runs"
# Largest size of a record in bytes. A record is a few lines.
LARGEST_RECORD = 1 << 20

_warned = False


def state_folder() -> Path | None:
    """Return `CLUSTERQ_STATE`, else `clusterq` in the user's state folder; None for a user without a home.

    A relative path would lie wherever the program is started, perhaps in a folder that was received, so it does not count.
    """
    named = os.environ.get(STATE)
    if named:
        return Path(named) if Path(named).is_absolute() else None
    shared = os.environ.get("XDG_STATE_HOME", "")
    if Path(shared).is_absolute():
        return Path(shared) / "clusterq"
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor an entry for this user
        return None
    return home / ".local" / "state" / "clusterq" if home.is_absolute() else None


def remember_run(folder: Path, code: Iterable[str], files: Iterable[str] = ()) -> None:
    """Record that this user's program has just started the run in a folder, with code that the user named.

    Args:
        folder: the run's; its config.yaml is written.
        code: factories of the run, each `path/to/file.py:function`.
        files: other files that the user named, such as the teacher's weights. A run that names nothing needs no record.
    """
    named, others = sorted(set(code)), sorted(set(files))
    if not named and not others:
        return
    state = state_folder()
    if state is None:
        _warn_once(f"there is no home folder to remember this run in, so later commands need its flags again; set {STATE}.")
        return
    path = _record_of(state, folder)
    try:
        record = {
            "folder": str(folder.resolve()),
            "config": sha256_file(folder / CONFIG),
            "code": {path: sha256_file(_file_of(path)) for path in named},
            "files": others,
        }
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_write(path, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        _warn_once(
            f"{path} cannot be written ({error.strerror}), so later commands on this run need its flags again; set {STATE} to a "
            "folder of yours."
        )


def is_own_code(folder: Path, code: str) -> bool:
    """Return whether this user's program wrote the run with this code, and config and code are unchanged since."""
    record = _own_record(folder)
    known = record.get("code")
    if not isinstance(known, dict) or code not in known:
        return False
    try:
        return bool(known[code] == sha256_file(_file_of(code)))
    except OSError:
        return False


def is_own_file(folder: Path, path: str) -> bool:
    """Return whether this user's program wrote the run with this file, and its config has not changed since."""
    known = _own_record(folder).get("files")
    return isinstance(known, list) and path in known


def _own_record(folder: Path) -> dict[str, Any]:
    """Return the record of a run with an unchanged config; empty if there is none."""
    state = state_folder()
    if state is None:
        return {}
    path = _record_of(state, folder)
    try:
        about = path.stat()
        # A record that another user wrote does not count.
        if about.st_size > LARGEST_RECORD or (os.name == "posix" and about.st_uid != os.geteuid()):
            return {}
        record = json.loads(path.read_bytes())
        whole = isinstance(record, dict) and record.get("folder") == str(folder.resolve())
        return record if whole and record.get("config") == sha256_file(folder / CONFIG) else {}
    except (OSError, ValueError):
        return {}


def _record_of(state: Path, folder: Path) -> Path:
    """Return the file of a run's record. It is named by the run's path, so a copy of the run has none."""
    return state / RUNS / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()}.json"


def _file_of(code: str) -> Path:
    return Path(code.rpartition(":")[0])


def _warn_once(sentence: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warn(sentence)
