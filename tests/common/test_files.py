"""Files are whole or absent, and last through a power cut."""

import os
from pathlib import Path

import pytest

from clusterq_common.files import atomic_write


def test_contents_are_durable_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    replace = os.replace

    def synced(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        done.append("folder" if path == tmp_path else f"sync of {path.read_bytes().decode()}")

    def renamed(partial: Path, path: Path) -> None:
        replace(partial, path)
        done.append(f"name {path.name}")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    atomic_write(tmp_path / "file", "contents")
    assert done == ["sync of contents", "name file", "folder"]
