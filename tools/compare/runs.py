"""Runs of a comparison, each made once, and the resulting table."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.setup import prepare_device
from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_write
from clusterq_common.progress.console import info
from clusterq_common.run.environment import write_environment
from clusterq_common.run.run_folder import CONFIG, ENVIRONMENT, RESULT, SHARDS, TABLE
from clusterq_common.shards.manifest import MANIFEST
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_gen.config import GenConfig
from clusterq_report.command import report_at_end
from compare.in_loop import evaluate_in_loop
from compare.other_shards import write_noise, write_real
from compare.paired import Repeats, paired, spread

# Other conventions for reported results; never in one row with the others.
PROTOCOLS = {"all": [], "ends8": ["--first-last-bits", "8"], "relu": ["--activation-sites", "relu"]}
# Not a recipe of clusterq-finetune, but the state before any training.
CALIBRATE = ["--reconstruct", "none", "--epochs", "0"]
# Sets that are not made by clusterq-gen.
NOISE, REAL = "noise", "real"
COST = "cost.json"
# Not a recipe of clusterq-finetune: the student trained along with the generator, at the generator's bits.
IN_LOOP = "in-loop"


@dataclass(frozen=True)
class Setting:
    """A row of the table: the name of a set of shards, and the settings of the student made from it."""

    name: str
    bits: str
    protocol: str
    recipe: str


@dataclass(frozen=True)
class Comparison:
    """Settings shared by all rows.

    Attributes:
        out: folder of all runs and of the table.
        val: real images, evaluated on at the end.
        teacher: flags that name the teacher.
        sets: flags of `clusterq-gen train` by the set's name.
        seeds: seeds of sets and students.
        train: flags of `clusterq-gen train` for every set; `finetune`: flags of `clusterq-finetune` for every student.
        images: training images for each class.
        one_generator: sets differ in their emission only. The later ones use the first one's generator, and only the emission is
            their cost.
        real: real images for the upper bound.
    """

    out: Path
    val: Path
    teacher: list[str]
    sets: dict[str, list[str]]
    seeds: list[int]
    train: list[str] = field(default_factory=list)
    finetune: list[str] = field(default_factory=list)
    images: int = 512
    one_generator: bool = False
    real: Path | None = None

    def table(self, settings: list[Setting]) -> list[dict[str, Any]]:
        """Make missing runs, and return one row a setting; table.json, table.md and report.html are written to `out`.

        Raises:
            ClusterqError: a program failed; finished runs are kept.
        """
        for name, flags in self.sets.items():
            for seed in self.seeds:
                self._make_set(name, flags, seed)
        for setting in settings:
            for seed in self.seeds:
                if setting.recipe == IN_LOOP:
                    self._in_loop(setting, seed)
                    continue
                flags = [*PROTOCOLS[setting.protocol], *self.finetune, "--seed", str(seed)]
                flags += CALIBRATE if setting.recipe == "calibrate" else ["--recipe", setting.recipe]
                shards = ["--shards", str(self._set(setting.name, seed)), *self.teacher, "--bits", setting.bits]
                folder = self._student(setting, seed)
                _once(
                    folder,
                    ["clusterq_finetune", *shards, "--val", str(self.val), *flags, "--out", str(folder), "--resume"],
                    RESULT,
                )
        rows = list(self._rows(settings))
        atomic_write(self.out / TABLE, json.dumps(rows, indent=2) + "\n")
        atomic_write(self.out / "table.md", markdown(rows))
        write_environment(self.out / ENVIRONMENT, prepare_device(RuntimeConfig()))
        report_at_end(self.out, f"clusterq-finetune report {self.out}")
        return rows

    def _set(self, name: str, seed: int) -> Path:
        return self.out / "sets" / f"{name}-{seed}"

    def _student(self, setting: Setting, seed: int) -> Path:
        return self.out / "students" / f"{setting.name}-{setting.bits}-{setting.protocol}-{setting.recipe}-{seed}"

    def _make_set(self, name: str, flags: list[str], seed: int) -> None:
        folder = self._set(name, seed)
        if name not in {NOISE, REAL}:
            first = next(iter(self.sets))
            if self.one_generator and name != first:
                where = ["--run", str(self._set(first, seed)), "--out", str(folder / SHARDS)]
                pairs = zip(self.teacher[::2], self.teacher[1::2], strict=True)
                named = [word for pair in pairs if pair[0] in {"--arch", "--weights"} for word in pair]
                _once(folder, ["clusterq_gen", "emit", *where, *named, *flags], f"{SHARDS}/{MANIFEST}")
                return
            own = ["--per-class", str(self.images), *self.train, *flags, "--seed", str(seed), "--out", str(folder), "--resume"]
            _once(folder, ["clusterq_gen", "train", *self.teacher, *own], f"{SHARDS}/{MANIFEST}")
            return
        if (folder / MANIFEST).is_file():
            return
        teacher = self._teacher()
        if name == NOISE:
            write_noise(folder, teacher, self.images * teacher.spec.num_classes, seed)
        else:
            assert self.real is not None
            write_real(folder, teacher, self.real, self.images, seed)

    def _in_loop(self, setting: Setting, seed: int) -> None:
        folder, run = self._student(setting, seed), self._set(setting.name, seed)
        bits = GenConfig.from_yaml(run / CONFIG).quant.bits
        if bits != setting.bits or setting.protocol != "all":
            raise ClusterqError(
                f"--recipes: {IN_LOOP} is the student of {run} at {bits} in all layers, expected of {setting.bits}, {setting.protocol}; "
                "give --bits of the generator in --train-flags."
            )
        if not (folder / RESULT).is_file():
            evaluate_in_loop(folder, run, self.val, self._teacher(), prepare_device(RuntimeConfig()))

    def _teacher(self) -> Teacher:
        pairs = zip(self.teacher[::2], self.teacher[1::2], strict=True)
        values = {flag.removeprefix("--").replace("-", "_"): value for flag, value in pairs}
        return load_teacher(TeacherConfig.validated(values), device=prepare_device(RuntimeConfig()))

    def _rows(self, settings: list[Setting]) -> Iterator[dict[str, Any]]:
        first: dict[tuple[str, str, str], Repeats] = {}
        for setting in settings:
            folders = [self._student(setting, seed) for seed in self.seeds]
            whole = Repeats.read([folder / "predictions.npz" for folder in folders])
            result = json.loads((folders[0] / RESULT).read_text())
            made = [_cost(self._set(setting.name, seed)) for seed in self.seeds]
            tuned = [_cost(folder) for folder in folders]
            reference = first.setdefault((setting.bits, setting.protocol, setting.recipe), whole)
            yield {
                "set": setting.name,
                "bits": setting.bits,
                "protocol": setting.protocol,
                "recipe": setting.recipe,
                "seeds": len(self.seeds),
                "images": result["shards"]["training_images"],
                "teacher": spread(whole.top1("teacher")[:1]),
                "calibrated": spread(whole.top1("calibrated")) if "calibrated" in whole.right else "",
                "student": spread(whole.top1("student")),
                "below teacher [95 %]": str(whole.below()),
                "even half": str(whole.only(lambda _, place: place % 2 == 0).below()),
                "odd half": str(whole.only(lambda _, place: place % 2 == 1).below()),
                "first set minus this": str(paired(reference.right["student"], whole.right["student"])),
                "set, CPU min": _mean(made, "cpu_seconds"),
                "student, CPU min": _mean(tuned, "cpu_seconds"),
                "peak MB": _largest([*made, *tuned], "peak_mb"),
            }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows)]) + "\n"


def _once(folder: Path, command: list[str], last: str) -> None:
    """Run a program that writes into a folder, unless its last file exists. The cost is recorded, including interrupted runs."""
    if (folder / last).is_file():
        return
    info(f"== {' '.join(command)}")
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *command])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if folder.is_dir():
        earlier = {"seconds": 0.0, "cpu_seconds": 0.0, "peak_mb": 0.0} | _cost(folder)
        cost = {
            "seconds": earlier["seconds"] + time.monotonic() - begin,
            "cpu_seconds": earlier["cpu_seconds"] + usage.ru_utime + usage.ru_stime,
            "peak_mb": max(earlier["peak_mb"], usage.ru_maxrss / 1024),
        }
        atomic_write(folder / COST, json.dumps(cost) + "\n")
    if process.returncode:
        raise ClusterqError(f"{' '.join(command[:2])} ended with exit code {process.returncode}; its own message says why.")


def _cost(folder: Path) -> dict[str, float]:
    path = folder / COST
    return json.loads(path.read_text()) if path.is_file() else {}


def _mean(costs: list[dict[str, float]], name: str) -> str:
    minutes = [cost[name] / 60 for cost in costs if name in cost]
    return f"{sum(minutes) / len(minutes):.1f}" if minutes else ""


def _largest(costs: list[dict[str, float]], name: str) -> str:
    values = [cost[name] for cost in costs if name in cost]
    return f"{max(values):.0f}" if values else ""
