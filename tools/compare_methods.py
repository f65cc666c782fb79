"""Methods compared fairly: one teacher, quantizer, budget and evaluation; several seeds; nothing chosen by real labels.

    python tools/compare_methods.py --arch resnet20_cifar10 --weights resnet20.safetensors --val cifar10/test --out compare/ \\
        --methods clusterq,gdfq,adadfq,noise --bits w4a4,w3a3 --recipes fast,best --seeds 0,1,2

One set of shards for each method and seed serves all bits, recipes and protocols. Whatever is finished is kept: the same command goes on after an
interruption, and a longer list adds to the table. Writes table.md and table.json into --out.

Methods are those of `clusterq-gen train --method`, and `noise` (standard normal images) and `real` (--real-upper-bound, real images that are not
evaluated on). Every student is evaluated once, at the end of its training, on all images; `even` and `odd` are halves of these: every
second file of each class in sorted order, from the first or from the second.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from clusterq_common.runtime.config import RuntimeConfig
from clusterq_common.runtime.device import prepare_device
from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.runtime.files import atomic_write
from clusterq_common.runtime.guard import run_guarded
from clusterq_common.runtime.progress import say
from clusterq_common.teacher.load import load_teacher
from clusterq_common.teacher.spec import TeacherConfig
from compare.other_shards import write_noise, write_real
from compare.paired import Repeats, paired, spread

# How else results are reported: never in one row with the others.
PROTOCOLS = {"all": [], "ends8": ["--first-last-bits", "8"], "relu": ["--activation-sites", "relu"]}
COST = "cost.json"


@dataclass(frozen=True)
class Setting:
    """A row of the table."""

    method: str
    bits: str
    protocol: str
    recipe: str


def main(
    arch: Annotated[str, typer.Option(help="As for clusterq-gen train.")],
    val: Annotated[Path, typer.Option(help="Real images to evaluate on, at the end.")],
    out: Annotated[Path, typer.Option(help="Folder of all runs and of the table.")],
    weights: Annotated[str | None, typer.Option(help="As for clusterq-gen train.")] = None,
    teacher_flags: Annotated[str, typer.Option(help="More flags about the teacher, e.g. '--input-size 8 --mean 0.5'.")] = "",
    methods: Annotated[str, typer.Option(help="With commas between.")] = "clusterq,gdfq",
    bits: Annotated[str, typer.Option(help="With commas between.")] = "w4a4",
    protocols: Annotated[str, typer.Option(help=f"Of {', '.join(PROTOCOLS)}: which layers have the stated bits.")] = "all",
    recipes: Annotated[str, typer.Option(help="With commas between; `calibrate` does not fine-tune.")] = "fast",
    seeds: Annotated[str, typer.Option(help="With commas between.")] = "0,1,2",
    train_flags: Annotated[str, typer.Option(help="Flags of clusterq-gen train, for every method.")] = "--preset quick",
    finetune_flags: Annotated[str, typer.Option(help="Flags of clusterq-finetune, for every run.")] = "",
    images: Annotated[int, typer.Option(help="Images for each class, in every set.")] = 512,
    real_upper_bound: Annotated[Path | None, typer.Option(help="Real images in class folders, none of them in --val.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of each run.")] = None,
) -> None:
    """Run what is missing, then print the table."""

    def run() -> None:
        names = methods.split(",") + (["real"] if real_upper_bound is not None and "real" not in methods.split(",") else [])
        settings = [
            Setting(m, b, p, r)
            for m in names
            for b in bits.split(",")
            for p in protocols.split(",")
            for r in recipes.split(",")
        ]
        unknown = [setting.protocol for setting in settings if setting.protocol not in PROTOCOLS]
        if unknown:
            raise ClusterqError(f"--protocols: {unknown[0]!r} is unknown, expected {', '.join(PROTOCOLS)}.")
        if "real" in names and real_upper_bound is None:
            raise ClusterqError(
                "--methods: real needs --real-upper-bound DIR, a folder of real images that are not evaluated on."
            )
        numbers = [int(seed) for seed in seeds.split(",")]
        common = shlex.split(teacher_flags) + ([] if weights is None else ["--weights", weights])
        teacher = ["--arch", arch, *common]
        limit = [] if threads is None else ["--threads", str(threads)]
        for method in dict.fromkeys(names):
            for seed in numbers:
                folder = out / "sets" / f"{method}-{seed}"
                if method in {"noise", "real"}:
                    _other_set(folder, method, teacher, real_upper_bound, images, seed)
                else:
                    flags = [
                        *shlex.split(train_flags),
                        "--method",
                        method,
                        "--seed",
                        str(seed),
                        "--per-class",
                        str(images),
                        *limit,
                    ]
                    _once(folder, ["clusterq_gen", "train", *teacher, *flags], "shards/manifest.json")
        for setting in settings:
            for seed in numbers:
                flags = [*PROTOCOLS[setting.protocol], *shlex.split(finetune_flags), "--seed", str(seed), *limit]
                flags += ["--epochs", "0"] if setting.recipe == "calibrate" else ["--recipe", setting.recipe]
                shards = ["--shards", str(out / "sets" / f"{setting.method}-{seed}"), *teacher, "--bits", setting.bits]
                _once(_folder(out, setting, seed), ["clusterq_finetune", *shards, "--val", str(val), *flags], "result.json")
        rows = list(_rows(out, settings, numbers))
        atomic_write(out / "table.json", json.dumps(rows, indent=2) + "\n")
        atomic_write(out / "table.md", _markdown(rows))
        print(_markdown(rows), end="")

    run_guarded(run)


def _folder(out: Path, setting: Setting, seed: int) -> Path:
    return out / "students" / f"{setting.method}-{setting.bits}-{setting.protocol}-{setting.recipe}-{seed}"


def _once(folder: Path, command: list[str], last: str) -> None:
    """Run a program unless its last file is there; what it cost is noted, interruptions included."""
    if (folder / last).is_file():
        return
    say(f"== {' '.join(command)}")
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *command, "--out", str(folder), "--resume"])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / COST
    earlier = json.loads(path.read_text()) if path.is_file() else {"seconds": 0.0, "cpu_seconds": 0.0, "peak_mb": 0.0}
    cost = {
        "seconds": earlier["seconds"] + time.monotonic() - begin,
        "cpu_seconds": earlier["cpu_seconds"] + usage.ru_utime + usage.ru_stime,
        "peak_mb": max(earlier["peak_mb"], usage.ru_maxrss / 1024),
    }
    atomic_write(path, json.dumps(cost) + "\n")
    if process.returncode:
        raise ClusterqError(f"{' '.join(command[:2])} ended with exit code {process.returncode}; its own message says why.")


def _other_set(folder: Path, method: str, teacher_flags: list[str], real: Path | None, images: int, seed: int) -> None:
    if (folder / "manifest.json").is_file():
        return
    values = {
        name.removeprefix("--").replace("-", "_"): v for name, v in zip(teacher_flags[::2], teacher_flags[1::2], strict=True)
    }
    teacher = load_teacher(TeacherConfig.checked(values), device=prepare_device(RuntimeConfig()))
    if method == "noise":
        write_noise(folder, teacher, images * teacher.spec.num_classes, seed)
    else:
        assert real is not None
        write_real(folder, teacher, real, images, seed)


def _rows(out: Path, settings: list[Setting], seeds: list[int]) -> Iterator[dict[str, Any]]:
    first: dict[tuple[str, str, str], Repeats] = {}
    for setting in settings:
        folders = [_folder(out, setting, seed) for seed in seeds]
        whole = Repeats.read([folder / "predictions.npz" for folder in folders])
        results = [json.loads((folder / "result.json").read_text()) for folder in folders]
        made = [_cost(out / "sets" / f"{setting.method}-{seed}") for seed in seeds]
        tuned = [_cost(folder) for folder in folders]
        reference = first.setdefault((setting.bits, setting.protocol, setting.recipe), whole)
        yield {
            "method": setting.method,
            "bits": setting.bits,
            "protocol": setting.protocol,
            "recipe": setting.recipe,
            "seeds": len(seeds),
            "images": results[0]["shards"]["training_images"],
            "teacher": spread(whole.top1("teacher")[:1]),
            "calibrated": spread(whole.top1("calibrated")),
            "student": spread(whole.top1("student")),
            "below teacher [95 %]": str(whole.below()),
            "even half": str(whole.only(lambda _, place: place % 2 == 0).below()),
            "odd half": str(whole.only(lambda _, place: place % 2 == 1).below()),
            "first method minus this": str(paired(reference.right["student"], whole.right["student"])),
            "set, CPU min": _mean(made, "cpu_seconds", 60),
            "student, CPU min": _mean(tuned, "cpu_seconds", 60),
            "peak MB": _mean(made + tuned, "peak_mb", 1, largest=True),
        }


def _cost(folder: Path) -> dict[str, float]:
    path = folder / COST
    return json.loads(path.read_text()) if path.is_file() else {}


def _mean(costs: list[dict[str, float]], name: str, unit: float, *, largest: bool = False) -> str:
    values = [cost[name] / unit for cost in costs if name in cost]
    return "" if not values else f"{max(values) if largest else sum(values) / len(values):.1f}"


def _markdown(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows)]) + "\n"


if __name__ == "__main__":
    typer.run(main)
