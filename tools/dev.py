"""Set up the project and run one thing in it: `python3 tools/dev.py demo | test | lint | docs`.

Needs nothing but Python 3.11 or later. It makes `.venv` where there is none, installs the versions that `constraints.txt`
pins, and runs the command inside; a second call with nothing changed installs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
OLDEST = (3, 11)
COVERAGE_FLOOR = 90
SOURCES, COVERED = "common,gen,finetune", ".coverage.json"  # folders whose lines are counted, and the counts
# Set by .ci/run: the whole suite measures its coverage.
COVERAGE = "CLUSTERQ_COVERAGE"
WORKERS = 4  # largest number of processes for the whole suite

# An environment with the extra on the left also serves a command that asks for one on the right.
COVERS = {"demo": {"demo"}, "dev": {"demo", "dev"}}


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: that of the first step that failed, else 0."""
    parser = argparse.ArgumentParser(
        prog="python3 tools/dev.py",
        description="Set up the project in .venv and run one thing in it.",
        epilog="demo: the offline demo on handwritten digits, a few minutes on two cores. test: the whole suite, or "
        "what the pytest arguments select. lint: style, types and the direction of imports. docs: the "
        "documentation as a site, in site/.",
    )
    parser.add_argument("command", choices=("demo", "test", "lint", "docs"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for the demo or for pytest")
    chosen = parser.parse_args(arguments)
    if chosen.command in ("lint", "docs") and chosen.arguments:
        parser.error(f"{chosen.command} takes no arguments, found {shlex.join(chosen.arguments)}")

    refusal = python_too_old(sys.version_info[:3])
    if refusal:
        print(refusal, file=sys.stderr)
        return 2
    # Without bytecode on disk each of the many processes would compile the project anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        ensure_environment("demo" if chosen.command == "demo" else "dev")
        {"demo": demo, "test": test, "lint": lint, "docs": docs}[chosen.command](chosen.arguments)
    except subprocess.CalledProcessError as failure:
        info(f"failed with exit code {failure.returncode}: {shown(failure.cmd)}")
        # A negative code means "killed by that signal"; shells write it as 128 + signal.
        return failure.returncode if failure.returncode > 0 else 128 - failure.returncode
    except KeyboardInterrupt:
        return 130
    return 0


def demo(arguments: list[str]) -> None:
    """Run the offline demo: teacher, generator, shards and low-bit student on scikit-learn's digits."""
    run("running the offline demo", BIN / "python", ROOT / "tools" / "demo" / "digits.py", *arguments)


def test(arguments: list[str]) -> None:
    """Run the whole suite, or the tests that the pytest arguments select. With CLUSTERQ_COVERAGE the whole suite has a coverage floor."""
    # Each file runs in one process, because its tests share fixtures. The networks are tiny, so more threads would only wait.
    # Files keep the order of collection, which begins with the longest tests.
    # One process more than cores was tried: it takes longer.
    whole = ["--numprocesses", str(min(os.cpu_count() or 1, WORKERS)), "--dist", "loadfile", "--no-loadscope-reorder"]
    whole += ["--durations=15"]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # slipcover changes the bytecode of modules when they are imported, and has no cost a line: tracing takes a third more time.
    measured = bool(os.environ.get(COVERAGE)) and not arguments
    cover = ["-m", "slipcover", "--source", SOURCES, "--json", "--out", COVERED] if measured else []
    run("running the tests", BIN / "python", *cover, "-m", "pytest", *(arguments or whole))
    if measured:
        # On its own: with a floor in the first call, slipcover 1.1 prints a table without what the tests' processes have run.
        floor = ["--skip-covered", f"--fail-under={COVERAGE_FLOOR}"]
        run("checking the coverage", BIN / "python", "-m", "slipcover", "--merge", COVERED, "--out", COVERED, *floor)


def lint(_: list[str]) -> None:
    """Run all four checks, so that one call shows all problems; then raise the first failure, if any."""
    # Run with python -m, because scripts in .venv/bin contain the path of the folder they were installed in.
    checks = {
        "checking style": ("-m", "ruff", "check", "."),
        "checking format": ("-m", "ruff", "format", "--check", "."),
        "checking types": ("-m", "mypy"),
        "checking imports": ("-c", "from importlinter.cli import lint_imports_command as check; check()"),
    }
    failures = []
    for what, arguments in checks.items():
        try:
            run(what, BIN / "python", *arguments)
        except subprocess.CalledProcessError as failure:
            failures.append(failure)
    if failures:
        raise failures[0]


def docs(_: list[str]) -> None:
    """Build the site in site/. Any warning, such as a broken link, is a failure."""
    os.environ["NO_MKDOCS_2_WARNING"] = "1"  # hides an announcement of the theme's authors
    # Not --quiet, with which mkdocs counts no warnings and strict has no effect.
    run("building the documentation", BIN / "python", "-m", "mkdocs", "build", "--strict", "--clean")
    info(f"open {ROOT / 'site' / 'index.html'}")


def python_too_old(version: tuple[int, ...]) -> str | None:
    """Return an error message for a Python that cannot run the project, or None for one that can."""
    if version >= OLDEST:
        return None
    found, wanted = (".".join(map(str, part)) for part in (version, OLDEST))
    return (
        f"clusterq needs Python {wanted} or later, and {sys.executable} is {found}; "
        f"run this again with a newer one, for example python{wanted} tools/dev.py"
    )


def ensure_environment(extra: str) -> None:
    """Make or refresh `.venv` so that it holds the project with this extra ("demo" or "dev"), at the pinned versions."""
    wanted = fingerprint()
    usable = python_runs()
    if usable and any(extra in COVERS[name] and stamp(name) == wanted for name in COVERS):
        return
    if not usable:
        # --clear, because the folder is no environment, or its Python is missing or too old.
        run(f"making {VENV.name} with Python {sys.version.split()[0]}", sys.executable, "-m", "venv", "--clear", VENV)
    for name in COVERS:  # an interrupted install must not look finished
        stamp_path(name).unlink(missing_ok=True)
    pip: list[str | Path] = [
        BIN / "python",
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
        "--no-compile",  # Python compiles what is imported, about a third of it
        "-c",
        "constraints.txt",
    ]
    # torch first, so that the pinned build is installed before another package requests one of its own choice.
    run("installing torch (the large one)", *pip, "torch")
    run(f"installing clusterq with the {extra} extra", *pip, "-e", f".[{extra}]")
    stamp_path(extra).write_text(wanted + "\n", encoding="ascii")


def fingerprint() -> str:
    """Return a SHA-256 of everything that determines the environment. A moved checkout needs new console scripts."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update(hashlib.sha256((ROOT / name).read_bytes()).digest())
    return digest.hexdigest()


def stamp_path(extra: str) -> Path:
    return VENV / f".clusterq-{extra}"


def stamp(extra: str) -> str | None:
    """Return the fingerprint with which this extra was installed in `.venv`, or None."""
    path = stamp_path(extra)
    return path.read_text(encoding="ascii").strip() if path.is_file() else None


def python_runs() -> bool:
    """Return whether `.venv` has a Python that starts, is new enough, and can install packages."""
    probe = f"import sys, pip; sys.exit(sys.version_info < {OLDEST})"
    try:
        return subprocess.run([BIN / "python", "-c", probe], capture_output=True, stdin=subprocess.DEVNULL).returncode == 0
    except OSError:  # no such file, or its target is gone
        return False


def run(what: str, *command: str | Path) -> None:
    """Print a description, and run a command in the project root with empty stdin. Raises CalledProcessError when it fails."""
    info(what)
    info(f"  {shown(command)}")
    subprocess.run([str(part) for part in command], cwd=ROOT, stdin=subprocess.DEVNULL, check=True)


def shown(command: tuple[str | Path, ...] | list[str]) -> str:
    """Return a command as typed in the project root."""
    return shlex.join(str(part).removeprefix(f"{ROOT}{os.sep}") for part in command)


def info(line: str) -> None:
    print(f"dev: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
