"""Settings of `clusterq-finetune quantize`, where its stages lie, and the words that say what will happen. Free of torch."""

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field

from clusterq_common.errors import ClusterqError
from clusterq_common.escape import shell_command
from clusterq_common.export.targets import TARGETS, RuntimeName, TargetName
from clusterq_common.run.run_folder import CONFIG
from clusterq_common.settings import Settings
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_finetune.config import EvaluationConfig, RecipeName

PLAN, EXPORTED = "quantize.yaml", "exported.json"
SET, STUDENT = "set", "student"
# A set to calibrate on needs no generator: images optimised for a few steps (ZeroQ) will do.
CALIBRATION_SET = ("--method", "zeroq", "--preset", "quick", "--images", "512", "--bank-steps", "100")

# What makes its command a dry run whose plan can be read.
PLAN_ONLY = ("--dry-run", "--json")

# Shares of a time budget: the set's, and the set's and student's together. Export and benchmark have the rest.
SET_SHARE, SET_AND_STUDENT_SHARE = 0.6, 0.9
# The student's share where the set took longer than planned.
LEAST_STUDENT_SHARE = 0.2

# Flags of `clusterq-gen train` that `quantize` gives itself, or that would leave no set.
OWN_FLAGS = {"--out", "--resume", "--overwrite", "--dry-run", "--json", "--help", "--help-all", "--time-budget"} | {
    f"--{name.replace('_', '-')}" for name in TeacherConfig.model_fields
}


def set_flags_of(text: str) -> tuple[str, ...]:
    """Return the words of `--set-flags`.

    Raises:
        ClusterqError: a quote does not end, or a flag is one of `OWN_FLAGS`.

    Examples:
        >>> set_flags_of("--per-class 64 --no-report")
        ('--per-class', '64', '--no-report')
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ClusterqError(
            f"--set-flags: {text!r} has a quote that does not end, or a backslash at its end, expected flags as a shell reads them; "
            "close the quote."
        ) from error
    for word in words:
        flag = word.partition("=")[0]
        if flag in OWN_FLAGS:
            raise ClusterqError(f"--set-flags: {flag} is set by quantize itself, expected other flags; leave it out of them.")
    return words


class Plan(Settings):
    """Everything that the stages depend on; saved in the work folder, so that another command does not go on with them.

    Attributes:
        teacher, quant, file, runtime: values of `TeacherConfig`, `QuantConfig`, `OnnxConfig` and `RuntimeConfig` that differ from the
            defaults, the target's choices among them.
        bits: of the student.
        target: runtime of the file.
        recipe: of the fine-tuning.
        preset: of the set.
        set_flags: more flags of `clusterq-gen train`.
        shards: a set that is there already; None: one is made.
        choice, evaluation: values of `BitChoice` and `EvaluationConfig` that differ from the defaults.
        classes: file of the names of the real images' classes.
        time_budget: seconds for all stages; None: as long as their own plans take.
    """

    teacher: dict[str, Any]
    quant: dict[str, Any]
    file: dict[str, Any]
    runtime: dict[str, Any]
    bits: str
    target: TargetName
    recipe: RecipeName
    preset: str
    set_flags: tuple[str, ...] = ()
    shards: str | None = None
    choice: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] = Field(default_factory=dict)
    classes: str | None = None
    time_budget: float | None = None

    @property
    def timed_in(self) -> RuntimeName:
        """Package that times the file: the target's own where it has one and it is installed."""
        package = TARGETS[self.target].package
        return "onnxruntime" if package is None or find_spec(package) is None else package

    @property
    def class_file(self) -> Path | None:
        """The file of the names of the real images' classes."""
        return None if self.classes is None else Path(self.classes)

    @property
    def reading(self) -> EvaluationConfig:
        """Settings for reading real images."""
        return EvaluationConfig.validated(self.evaluation)

    def set_command(self, work: Path) -> list[str]:
        """Return the arguments of `clusterq-gen` that make the set."""
        calibrated = self.recipe == "calibrated"
        chosen = list(CALIBRATION_SET) if calibrated else ["--preset", self.preset]
        flags = [*_flags(self.teacher), *_flags(self.runtime), *chosen, "--bits", self.bits, *self.set_flags]
        if self.time_budget is not None:
            flags += ["--time-budget", f"{SET_SHARE * self.time_budget:.0f}s"]
        return ["train", *flags, "--out", str(work / SET)]

    def student_seconds(self, elapsed: float) -> float | None:
        """Return the fine-tuning's part of the time budget, so many seconds after the command's start; None without a budget."""
        if self.time_budget is None:
            return None
        return max(SET_AND_STUDENT_SHARE * self.time_budget - elapsed, LEAST_STUDENT_SHARE * self.time_budget)

    def is_started(self, work: Path) -> bool:
        """Return whether the work folder holds stages of this plan; False for a new folder.

        Raises:
            ClusterqError: it holds stages of another plan, or other files.
        """
        path = work / PLAN
        if not path.is_file():
            if work.is_file() or (work.is_dir() and any(work.iterdir())):
                raise ClusterqError(
                    f"--work: {work} is not empty and holds no {PLAN}, expected a new folder or one of an interrupted `quantize`; choose "
                    "another one."
                )
            return False
        saved, own = Plan.from_yaml(path).model_dump(mode="json"), self.model_dump(mode="json")
        for name, value in own.items():
            if saved[name] != value:
                serves = name not in {"teacher", "shards"} and (work / SET).is_dir()
                reuse = f" To use its images: {shell_command('--shards', work / SET)} and another --work." if serves else ""
                raise ClusterqError(
                    f"--work: the stages in {work} were made with {name} {saved[name]}, this command has {value}, expected the same; choose "
                    f"another --work, or give the same flags.{reuse}"
                )
        return True


def going_on_with(work: Path) -> list[str]:
    """Return the flag with which `clusterq-gen` goes on with a set that was begun; nothing where none was."""
    return ["--resume"] if (work / SET / CONFIG).is_file() else []


def _flags(values: dict[str, Any]) -> list[str]:
    """Return values of settings as flags of a command line."""
    words = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{name.replace('_', '-')}")
        elif isinstance(value, list | tuple):
            words += [flag, ",".join(str(one) for one in value)]
        else:
            words += [flag, str(value)]
    return words
