"""The commands `clusterq-gen train` and `emit`, once their settings are known."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from clusterq_common.device.compiled import need_compiler
from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.cuda_graph import need_cuda_graphs, recorder_if
from clusterq_common.device.distributed import process_group
from clusterq_common.device.setup import prepare_device
from clusterq_common.errors import ClusterqError
from clusterq_common.escape import shell_command
from clusterq_common.images.png import MODES
from clusterq_common.progress.console import expecting, followed_by, info, print_result, warn
from clusterq_common.progress.time_budget import Phase, timetable
from clusterq_common.run.child_process import is_part, read_parent_message
from clusterq_common.run.environment import write_environment
from clusterq_common.run.folder_lock import only_program
from clusterq_common.run.run_folder import CONFIG, ENVIRONMENT, GENERATOR, SHARDS, open_run_folder, refuse_links
from clusterq_common.run.tensorboard import need_tensorboard
from clusterq_common.setting_names import setting_name
from clusterq_common.settings import merged, read_yaml
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_common.teacher.spec import shown_arch
from clusterq_common.teacher.trust import ARCH, CLASS_NAMES, WEIGHTS, refuse_foreign_code, remember_code
from clusterq_gen.bank.config import is_bank, refuse_idle_emission
from clusterq_gen.bank.layout import BankLayout
from clusterq_gen.bank.make import make_bank
from clusterq_gen.bank.source import BankSource
from clusterq_gen.budget import plan_within
from clusterq_gen.config import EmitConfig, GenConfig
from clusterq_gen.dry_run import describe_plan
from clusterq_gen.emission.build_manifest import read_class_names
from clusterq_gen.emission.candidate_source import CandidateSource, GeneratorSource
from clusterq_gen.emission.emit import emit_shards
from clusterq_gen.emission.refined import refined
from clusterq_gen.estimate import Speed, measure_speed, phases
from clusterq_gen.methods import build_method
from clusterq_gen.presets import lift_limit
from clusterq_gen.training.loop import train_generator, write_events
from clusterq_report.command import report_at_end

LARGE_INPUT = 128


def train(
    config: GenConfig, out: Path, *, resume: bool, overwrite: bool, dry_run: bool, time_budget: float | None = None
) -> dict[str, Any]:
    """Train a generator for a teacher, or optimise a bank of images, then write shards. Returns what `--json` prints.

    Args:
        config: settings of the run.
        out: its folder.
        resume: go on with the run in that folder.
        overwrite: delete that run first.
        dry_run: print the plan, and write nothing.
        time_budget: seconds that a new run may take; its steps and images are planned to fit. A resumed run keeps its plan. A part of
            `clusterq-finetune quantize` plans with the speed that was measured for the command's own plan, so that both are the same.

    Raises:
        ClusterqError: see `load_teacher`, `build_method`, `open_run_folder`, `train_generator`, `make_bank`, `emit_shards`.
    """
    if config.output.tensorboard:
        need_tensorboard()
    device = prepare_device(config.runtime)
    teacher = load_teacher(config.teacher, device=device)
    config = config.model_copy(update={"teacher": teacher.config})
    _refuse_before_a_folder(config, teacher)
    planned = time_budget if not (resume and (out / CONFIG).is_file()) else None
    if time_budget is not None and planned is None:
        info(f"{setting_name('time_budget')}: the run in {out} keeps the plan that it was started with")
    if dry_run:
        return _print_plan(config, teacher, device, planned)

    message = read_parent_message()
    speed = Speed(**message["speed"]) if "speed" in message else None
    with process_group() as ranks, ExitStack() as held:
        _need_speedups(config, device)
        held.enter_context(followed_by(message.get("afterwards", 0.0)))
        if planned is not None:
            config, speed = _fitting(config, teacher, device, planned, speed)
        resuming, trained = ranks.from_first(
            lambda: _open_folder(config, out, device, held, resume=resume, overwrite=overwrite)
        )
        if not trained:
            held.enter_context(expecting(_announce(config, teacher, device, speed)))
        if is_bank(config.method.method):
            make_bank(config, teacher, out, device)
        elif not trained:
            train_generator(config, teacher, out, device, resume=resuming)
        elif ranks.first and config.output.tensorboard:
            write_events(config, out)
        source = _source(out, config, config.emit, config.runtime.seed, teacher, device)
        ranks.from_first(lambda: _hold(held, out / SHARDS))
        source = refined(
            source, config.emit, config.runtime, teacher, out / SHARDS, recorder_if(config.train.cuda_graphs, device)
        )
        manifest = emit_shards(config, teacher, source, out / SHARDS, seed=config.runtime.seed, ranks=ranks)
    print_result(f"shards: {out / SHARDS} ({manifest.splits['train'].samples} training images)")
    if ranks.first and config.output.report:
        report_at_end(out, shell_command("clusterq-gen", "report", out, "--analyse"), teacher, device)
    if not is_part():
        _name_next_command(out, config.quant.bits)
    images = {name: split.samples for name, split in manifest.splits.items()}
    return {"out": str(out), "shards": str(out / SHARDS), "images": images}


def _need_speedups(config: GenConfig, device: torch.device) -> None:
    if config.train.compile:
        need_compiler(device)
    if config.train.cuda_graphs:
        need_cuda_graphs(device)


def _open_folder(
    config: GenConfig, out: Path, device: torch.device, held: ExitStack, *, resume: bool, overwrite: bool
) -> tuple[bool, bool]:
    """Open the run's folder for this program alone, and write its settings.

    Returns:
        Whether a run in it is continued, and whether that run's generator is trained.
    """
    _hold(held, out)
    resuming = open_run_folder(out, resume=resume, overwrite=overwrite)
    if not resuming:
        config.to_yaml(out / CONFIG)
        remember_code(out, config.teacher, config.method.method, class_names=config.emit.class_names)
    write_environment(out / ENVIRONMENT, device)
    return resuming, resuming and (out / GENERATOR).is_file()


def _name_next_command(out: Path, bits: str) -> None:
    command = shell_command("clusterq-finetune", "--shards", out, "--bits", bits, "--val", "PATH_TO_REAL_IMAGES")
    info(f"next: {command}")


def _refuse_before_a_folder(config: GenConfig, teacher: Teacher) -> None:
    """Find what is wrong with the settings before a folder is made."""
    if not is_bank(config.method.method):
        build_method(config.method, config.runtime.seed)
    read_class_names(config.emit, teacher.spec.num_classes)
    if teacher.spec.channels not in MODES:
        raise ClusterqError(
            f"--in-channels: {shown_arch(config.teacher.arch)} takes images of {teacher.spec.channels} channels, expected 1 or 3: shards hold PNG images, grey or "
            "in colour; choose another classifier."
        )


def _fitting(
    config: GenConfig, teacher: Teacher, device: torch.device, seconds: float, speed: Speed | None
) -> tuple[GenConfig, Speed]:
    """Return the plan that fits into a time, and the speed it is made for, which is measured if None."""

    def measure() -> Speed:
        info("timing a few steps for the plan")
        return measure_speed(config, teacher, device)

    return plan_within(config, seconds, teacher.spec.num_classes, measure if speed is None else lambda: speed)


def _print_plan(config: GenConfig, teacher: Teacher, device: torch.device, time_budget: float | None) -> dict[str, Any]:
    """Print what a run would do, with the time of each phase from a few timed steps.

    Returns:
        Phases (seconds), numbers of images, and the measured speed.
    """
    classes = teacher.spec.num_classes
    speed: Speed | None = None
    if time_budget is not None:
        config, speed = _fitting(config, teacher, device, time_budget, None)
    for line in describe_plan(config, teacher, device):
        print_result(line)
    if speed is None:  # takes seconds, so everything else is said before
        info("timing a few steps for the estimate")
        speed = measure_speed(config, teacher, device)
    expected = phases(config, classes, speed)
    print_result(f"time: {timetable(expected)}")
    images = {name: count * classes for name, count in config.emit.wanted(classes).items()}
    return {"phases": {phase.name: phase.seconds for phase in expected}, "images": images, "speed": asdict(speed)}


def emit(
    run: Path,
    updates: dict[str, object],
    runtime: dict[str, object],
    out: Path | None,
    *,
    teacher: dict[str, str] | None = None,
    overwrite: bool,
    report: bool | None = None,
) -> None:
    """Write shards from a finished run, or add images to those that are there.

    Args:
        run: a run folder of `clusterq-gen train`.
        updates: emission settings that differ from the run's.
        runtime: runtime settings (seed, device, threads) that differ from the run's.
        out: the shard folder; the run's own `shards/` when None.
        teacher: fields of the teacher's settings that the command line gives, instead of the run's.
        overwrite: replace shards that are there instead of adding to them.
        report: whether the run's page is drawn again; as the run has it when None.

    Raises:
        ClusterqError: no run there, no finished generator or bank, more images than a bank holds, another teacher, or shards of
            other settings in the way.
    """
    made = config_of_run(run, teacher or {}, updates)
    values = {**made.model_dump(), "emit": {**made.emit.model_dump(), **updates}}
    lift_limit(values, updates)
    config = GenConfig.validated(values)
    refuse_idle_emission(config.method.method, config.emit.refine_steps, updates)
    # The run's own seed is a fact about its generator; the one given here only draws the candidates.
    drawing = RuntimeConfig.validated({**config.runtime.model_dump(), **runtime})
    device = prepare_device(drawing)
    loaded = load_teacher(config.teacher, device=device)
    source = _source(run, made, config.emit, drawing.seed, loaded, device)
    if out is None:
        refuse_links(run, "run")
    folder = out or run / SHARDS
    with process_group() as ranks, ExitStack() as held:
        ranks.from_first(lambda: _hold(held, folder))
        source = refined(source, config.emit, drawing, loaded, folder, recorder_if(config.train.cuda_graphs, device))
        manifest = emit_shards(config, loaded, source, folder, seed=drawing.seed, overwrite=overwrite, ranks=ranks)
    if ranks.first:
        counts = ", ".join(f"{name}: {split.samples}" for name, split in manifest.splits.items())
        print_result(f"shards: {folder} ({counts})")
        wanted = config.output.report if report is None else report
        if out is None and wanted:  # the run's own shards: its page shows them
            report_at_end(run, shell_command("clusterq-gen", "report", run, "--analyse"), loaded, device)


def _hold(held: ExitStack, folder: Path) -> None:
    """Keep other programs from the folder until `held` ends."""
    held.enter_context(only_program(folder))


def config_of_run(run: Path, teacher: dict[str, str], emit: dict[str, object] | None = None) -> GenConfig:
    """The settings of a finished run.

    Args:
        run: its folder.
        teacher: fields of the teacher's settings that the command line gives instead of the run's.
        emit: fields that it gives for emission; the run's own stay as they are.

    Raises:
        ClusterqError: no run there, or one whose teacher is code that no command line of this user named.
    """
    saved = read_yaml(run / CONFIG)
    refuse_foreign_code(saved, {"teacher": teacher, "emit": emit or {}}, run / CONFIG, looks_at=(ARCH, WEIGHTS, CLASS_NAMES))
    return GenConfig.validated(merged(saved, {"teacher": teacher}), source=str(run / CONFIG))


def _source(run: Path, made: GenConfig, emit: EmitConfig, seed: int, teacher: Teacher, device: torch.device) -> CandidateSource:
    """Source of a run folder's images: a generator or a bank.

    Args:
        made: the run's own settings.
        emit, seed: what is wanted now.

    Raises:
        ClusterqError: it is not finished; or it is a bank, and more or other images are wanted than it holds.
    """
    if not is_bank(made.method.method):
        return GeneratorSource.load(run, made, teacher.spec, seed, device)
    if seed != made.runtime.seed:
        raise ClusterqError(
            f"--seed: {seed}, but {run} holds a bank of images, made with seed {made.runtime.seed}, that no other seed can draw from; leave "
            "the flag out, or make another bank with `clusterq-gen train --seed`."
        )
    source = BankSource.load(run, made, teacher, device, keep_misclassified=emit.keep_misclassified)
    for split, count in emit.wanted(teacher.spec.num_classes).items():
        if count > source.capacity[split]:
            flag = {"train": "--per-class", "heldout": "--heldout-per-class"}[split]
            raise ClusterqError(
                f"{flag}: {count}, but the bank in {run} holds at most {source.capacity[split]} images of a class for the split {split}; "
                f"ask for no more, or make a larger bank with `clusterq-gen train {flag} {count}`."
            )
    return source


def _warn_of_slowness(config: GenConfig, teacher: Teacher, device: torch.device, flags: str) -> None:
    if device.type == "cpu" and teacher.spec.longer_side >= LARGE_INPUT:
        warn(
            f"{teacher.spec.shown_size} images on a CPU are slow; a GPU is what the {config.preset} preset is "
            f"meant for. {flags} make it smaller."
        )


def _announce(config: GenConfig, teacher: Teacher, device: torch.device, speed: Speed | None) -> list[Phase]:
    """Print what will be done, and the time of each phase as estimated from `speed`, which is measured if None. Returns the phases."""
    bank = is_bank(config.method.method)
    _warn_of_slowness(
        config, teacher, device, "--bank-steps and --per-class" if bank else "--epochs, --steps-per-epoch and --batch-size"
    )
    if bank:
        layout = BankLayout.of(config, teacher.spec.num_classes)
        steps = f"a bank of {layout.batches} batches of {layout.batch_size} images, {config.bank.bank_steps} steps each"
    else:
        steps = f"{config.train.epochs * config.train.steps_per_epoch} steps"
    expected = phases(config, teacher.spec.num_classes, speed or measure_speed(config, teacher, device))
    info(f"{config.method.method} on {device}: {steps}; {timetable(expected)}")
    return expected
