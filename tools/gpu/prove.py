"""Verify clusterq's claims about GPUs on a GPU, in one command and a bounded time. Every claim becomes a figure.

    python tools/gpu/prove.py --pack .gpu --out proof --seconds 520
    python tools/gpu/prove.py --pack .gpu --out proof --rehearse

Stages run by importance, each in its own process and within its share of the time. Unused time goes to the next stage. A stage
that fails or exceeds its time is ended, and the next one begins. --out receives STAGE.json after each figure, proof.log, and at
the end proof.json and table.md, which is also printed. `pack.py` makes the pack. --rehearse runs every stage at about a hundredth
of its budget, on a CPU where there is no GPU. Its figures only show that the stages work.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from record import shown

from clusterq_cli.main import run_guarded
from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_write
from clusterq_common.progress.console import info
from clusterq_common.run.environment import environment

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "tools" / "bench"

# Name -> seconds of 520, most important first.
STAGES = {"sound": 40, "steps": 90, "paper-cifar": 200, "imagenet": 180}
# Seconds between a stage's time limit and its termination.
GRACE = 5.0
REHEARSAL_SECONDS = 1200.0


def main(
    pack: Annotated[Path, typer.Option(help="Folder that pack.py made.")],
    out: Annotated[Path, typer.Option(help="Folder for the figures; it must not exist yet, or be empty.")],
    seconds: Annotated[float, typer.Option(min=20, help="Time for all stages together.")] = 520.0,
    stages: Annotated[str, typer.Option(help="Names of stages, with commas between.")] = ",".join(STAGES),
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Small: only whether every stage works.")] = False,
) -> None:
    """Run the stages and print the table; exit code 1 where a stage or a part of one failed."""
    code = [0]

    def run() -> None:
        begin = time.monotonic()
        chosen = _chosen(stages)
        if out.is_dir() and any(out.iterdir()):
            raise ClusterqError(f"--out: {out} is not empty, expected a new folder; choose another one.")
        if not (pack / "pack.json").is_file():
            raise ClusterqError(f"--pack: {pack} holds no pack.json, expected a folder of tools/gpu/pack.py; make one first.")
        out.mkdir(parents=True, exist_ok=True)
        end = begin + (REHEARSAL_SECONDS if rehearse else seconds)
        results = {}
        with tempfile.TemporaryDirectory(prefix="clusterq-proof-") as work:
            for number, stage in enumerate(chosen):
                weight = STAGES[stage] / sum(STAGES[name] for name in chosen[number:])
                share = max(1.0, end - time.monotonic()) * weight
                info(f"== {stage}: {share:.0f} s")
                results[stage] = _stage(stage, pack.resolve(), out.resolve(), Path(work), share, rehearse=rehearse)
        whole = {
            "stages": results,
            "seconds": round(time.monotonic() - begin, 1),
            "machine": environment(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            "rehearsal": rehearse,
        }
        atomic_write(out / "proof.json", json.dumps(whole, indent=1) + "\n")
        table = markdown(whole)
        atomic_write(out / "table.md", table)
        print(table, end="")
        code[0] = int(any(result["status"] != "done" or result["failures"] for result in results.values()))

    run_guarded(run)
    raise typer.Exit(code[0])


def _chosen(stages: str) -> list[str]:
    chosen = stages.split(",")
    unknown = [name for name in chosen if name not in STAGES]
    if unknown:
        raise ClusterqError(f"--stages: {unknown[0]!r} is unknown, expected some of {', '.join(STAGES)}.")
    return chosen


def _stage(name: str, pack: Path, out: Path, work: Path, seconds: float, *, rehearse: bool) -> dict[str, Any]:
    """Run a stage in its own process group, which ends with it. Returns its figures and its status."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("run_stage.py")),
        name,
        str(pack),
        str(out),
        str(work),
        str(seconds),
    ]
    command += ["--rehearse"] if rehearse else []
    # The stages import the benchmarks' modules.
    paths = [str(BENCH), *(path for path in sys.path if path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    begin = time.monotonic()
    with (out / "proof.log").open("ab") as log:
        log.write(f"== {name}\n".encode())
        log.flush()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=env)
        try:
            code = process.wait(seconds + GRACE)
            status = "done" if code == 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            status = "ran over its time and was ended"
        finally:
            # All its child processes end, too, because the next stage needs the device alone.
            _end(process)
    path = out / f"{name}.json"
    found = json.loads(path.read_text()) if path.is_file() else {"figures": [], "failures": {}}
    if status != "done":
        tail = (out / "proof.log").read_bytes()[-2000:].decode(errors="replace").splitlines()[-6:]
        info("\n".join(["  ...", *(f"  {line}" for line in tail)]))
    info(
        f"   {name}: {status}, {time.monotonic() - begin:.0f} s, {len(found['figures'])} figures, {len(found['failures'])} failures"
    )
    return {**found, "status": status, "wall_seconds": round(time.monotonic() - begin, 1)}


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # all of the group have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def markdown(whole: dict[str, Any]) -> str:
    """Return all figures as Markdown, a table for each stage with its failures below."""
    machine = whole["machine"]
    versions = machine["versions"]
    lines = [
        f"{machine['device']}, torch {versions['torch']}, Python {versions['python']}, commit {machine['commit']}, {whole['seconds']:.0f} s"
    ]
    if whole["rehearsal"]:
        lines.append("**A rehearsal: no figure here means anything.**")
    for name, result in whole["stages"].items():
        lines += [
            "",
            f"## {name}: {result['status']}, {result['wall_seconds']:.0f} s",
            "",
            "| what | value | |",
            "|---|---|---|",
        ]
        for figure in result["figures"]:
            lines.append(f"| {figure['name']} | {shown(figure['value'])} {figure['unit']} | {figure['note']} |")
        lines += [f"\n- **{part}**: {why}" for part, why in result["failures"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
