"""Check a pack, unpack its images, and install the packages that this Python lacks. Prints the folder of the installed packages.

    python3 unpack.py

Every pack has a copy of this file, which run.sh calls, so it needs only Python. Unpacked files go into PACK.unpacked beside the
unchanged pack, or into the folder that CLUSTERQ_UNPACKED names. Existing files are not made again.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FACTS = "pack.json"
UNPACKED = "CLUSTERQ_UNPACKED"
# Always installed from the pack, because a machine's own version may be other code.
OWN = "clusterq"


class PackError(Exception):
    """Error for a pack that cannot be used, with one sentence."""


def read_facts(pack: Path) -> dict[str, Any]:
    """Read a pack's pack.json.

    Raises:
        PackError: the file is missing or is not a pack's.
    """
    try:
        facts: dict[str, Any] = json.loads((pack / FACTS).read_text(encoding="utf-8"))
        if not {"files", "images", "python"} <= facts.keys():
            raise ValueError("what every pack states is not there")
    except (OSError, ValueError, AttributeError) as error:
        raise PackError(
            f"{pack} is no pack: its {FACTS} cannot be read ({type(error).__name__}); make or copy it again."
        ) from error
    return facts


def check(pack: Path) -> None:
    """Compare every file with the size and the SHA-256 in pack.json.

    Raises:
        PackError: a file is missing or differs.
    """
    for name, stated in read_facts(pack)["files"].items():
        path = pack / name
        if not path.is_file():
            raise PackError(f"{path} is missing, expected all files that {FACTS} lists; copy the pack again.")
        if path.stat().st_size != stated["bytes"] or _digest(path.read_bytes()) != stated["sha256"]:
            raise PackError(f"{path} is not the file that {FACTS} lists (its SHA-256 differs); copy the pack again.")


def place_of(pack: Path) -> Path:
    """Return the folder for a pack's unpacked files. Each pack has its own, so that packs do not share files."""
    base = os.environ.get(UNPACKED)
    return (Path(base) if base else pack.with_name(f"{pack.name}.unpacked")).resolve() / _digest((pack / FACTS).read_bytes())[
        :12
    ]


def unpack_images(pack: Path, place: Path) -> dict[str, Path]:
    """Decompress the tars of images into `place`. Returns their paths by name.

    Raises:
        PackError: `place` cannot be written to, or this Python was built without lzma.
    """
    found = {}
    for name, stated in read_facts(pack)["images"].items():
        found[name] = tar = place / f"{name}.tar"
        if tar.is_file():
            continue
        _make(place)
        try:
            import lzma
        except ImportError as error:
            raise PackError("this Python has no lzma module, expected one that can read .xz files; use another one.") from error
        partial = place / f"{name}.{os.getpid()}.partial"
        with lzma.open(pack / stated["file"]) as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        partial.replace(tar)
    return found


def install(pack: Path, place: Path) -> Path:
    """Install the wheels that this Python lacks into a folder in `place`. Returns the folder, for PYTHONPATH.

    A package is left unchanged if this Python has the wheel's version or a newer one, because a GPU image's own are built for it.

    Raises:
        PackError: the wheels are for another Python, pip is missing, or pip fails.
    """
    facts = read_facts(pack)
    running = f"{sys.version_info[0]}.{sys.version_info[1]}"
    wheels = [wheel for wheel in sorted((pack / "wheels").glob("*.whl")) if _is_lacking(wheel)]
    if wheels and running != facts["python"]:
        raise PackError(
            f"this is Python {running}, the wheels are for {facts['python']}; use that one, or make a pack with --python {running}."
        )
    # Named by its contents, because two environments with one pack may lack different packages.
    site = place / f"site-{_digest(chr(10).join([running, *(wheel.name for wheel in wheels)]).encode())[:8]}"
    if site.is_dir():
        return site
    partial = site.with_name(f"{site.name}.{os.getpid()}.partial")
    _make(partial)
    if wheels:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "-q",
            "--no-index",
            "--no-deps",
            "--no-compile",
        ]
        done = subprocess.run([*pip, "--target", str(partial), *map(str, wheels)], capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(partial)
            last = ([line for line in done.stderr.splitlines() if line.strip()] or ["it gave no reason"])[-1]
            raise PackError(f"the wheels in {pack / 'wheels'} cannot be installed with {sys.executable} -m pip: {last.strip()}")
    try:
        partial.rename(site)
    except OSError:  # another process was faster
        shutil.rmtree(partial)
    return site


def _is_lacking(wheel: Path) -> bool:
    name, wanted = wheel.name.split("-")[:2]
    name = re.sub(r"[-_.]+", "-", name).lower()
    try:
        return name == OWN or _numbers(version(name)) < _numbers(wanted)
    except PackageNotFoundError:
        return True


def _numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PackError(
            f"{folder} cannot be made ({error.strerror}); set {UNPACKED} to a folder that can be written to."
        ) from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    try:
        check(here)
        unpack_images(here, place_of(here))
        print(install(here, place_of(here)))
    except PackError as problem:
        print(f"Error: {problem}", file=sys.stderr)
        sys.exit(2)
