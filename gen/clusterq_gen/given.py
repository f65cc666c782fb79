"""Settings of `clusterq-gen train`: from the command line, from a saved file, or of the run to go on with. Free of torch."""

from pathlib import Path
from typing import Any, NamedTuple

from clusterq_common.errors import ClusterqError
from clusterq_common.files import sha256_file
from clusterq_common.run.run_folder import CONFIG
from clusterq_common.setting_names import setting_name
from clusterq_common.settings import merged, need_sections, read_yaml
from clusterq_common.teacher.size import SMALL_SIDE, sides
from clusterq_common.teacher.spec import TeacherConfig, is_factory, shown_arch
from clusterq_common.teacher.trust import refuse_foreign_code
from clusterq_gen.bank.config import refuse_meaningless, with_method
from clusterq_gen.config import GenConfig, Preset
from clusterq_gen.presets import lift_limit, resolve

# Settings that a time budget makes smaller.
PLANNED = {
    ("train", "steps_per_epoch"),
    ("emit", "images"),
    ("emit", "per_class"),
    ("emit", "refine_steps"),
    ("bank", "bank_steps"),
}


class Meant(NamedTuple):
    """Meaning of a command line.

    Attributes:
        plans: the configurations that it can mean, without invalid ones.
        by_size: the input's size decides between them, and only the architecture has it.
    """

    plans: list[GenConfig]
    by_size: bool = False


def meant_by(flags: dict[str, dict[str, Any]], preset: Preset) -> Meant:
    """Return what flags and preset mean. `auto` is one preset for small and another one for large inputs.

    Raises:
        ClusterqError: see `resolve`.
    """
    if preset != "auto":
        return Meant([resolve(flags, preset, imagenet_sized=False)])
    plans, errors = [], []
    for large in (False, True):
        try:
            plans.append(resolve(flags, preset, imagenet_sized=large))
        except ClusterqError as error:
            errors.append(error)
    if not plans:
        raise errors[0]
    size = plans[0].teacher.input_size
    if size is None:
        return Meant(plans, by_size=True)
    return Meant([resolve(flags, preset, imagenet_sized=max(sides(size)) > SMALL_SIDE)])


def by_input_size(flags: dict[str, dict[str, Any]], teacher: TeacherConfig) -> GenConfig:
    """Return the configuration that `auto` chooses for the architecture's input. The only function here that imports torch.

    Raises:
        ClusterqError: see `input_of`, `resolve`.
    """
    from clusterq_common.teacher.load import input_of

    return resolve(flags, "auto", imagenet_sized=not input_of(teacher).small)


def on_top(config: Path, flags: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the values of a saved configuration with the flags on top: section -> field -> value, not yet validated.

    Raises:
        ClusterqError: the file is no generator's configuration, it names code that no command line of this user named, or the method
            ignores a flag.
    """
    values = read_yaml(config)
    if "teacher" not in values:
        raise ClusterqError(
            f"{setting_name('config')}: {config} has no section `teacher`, expected the config.yaml of a generator run."
        )
    need_sections(GenConfig, values, config)
    refuse_foreign_code(values, flags, config)
    whole = merged(with_method(values, flags), flags)
    lift_limit(whole, flags.get("emit", {}))
    refuse_meaningless(whole, flags)
    return whole


def saved_config(out: Path, flags: dict[str, dict[str, Any]], *, budget: bool = False) -> GenConfig:
    """The configuration of the run to resume.

    Args:
        out: its folder.
        flags: section -> field -> value.
        budget: whether a time budget was given, which may have made the run's plan smaller than these flags.

    Raises:
        ClusterqError: no run there, one with code that no command line of this user named, or a flag that contradicts what the run was
            started with.
    """
    read = read_yaml(out / CONFIG)
    refuse_foreign_code(read, flags, out / CONFIG)
    config = GenConfig.validated(read, source=str(out / CONFIG))
    saved = config.model_dump()
    for section, values in flags.items():
        for name, value in values.items():
            free = section == "output" or (section == "runtime" and name != "seed") or (section, name) == ("emit", "workers")
            if free:
                saved[section][name] = value
                continue
            before = saved[section][name]
            given = type(config).validated({**saved, section: {**saved[section], name: value}}).model_dump()[section][name]
            moved = (
                (section, name) == ("teacher", "arch")  # the teacher's weights have to fit it
                or ((section, name) == ("teacher", "weights") and not _differ(given, before))
                or ((section, name) == ("method", "method") and is_factory(given) and shown_arch(given) == shown_arch(before))
            )
            if budget and (section, name) in PLANNED and before is not None and (given is None or before <= given):
                continue
            if moved:  # what the command line names, from where this user keeps it, in place of what the folder names
                saved[section][name] = given
                continue
            if given != before:
                raise ClusterqError(
                    f"{setting_name(name)}: {value} contradicts the run in {out}, which was started with {before}; leave "
                    "the flag out, or start a new run in another folder."
                )
    return GenConfig.validated(saved)


def _differ(given: str, before: str | None) -> bool:
    """Return whether two files of weights are known to be different ones."""
    paths = [Path(given), Path(before or "")]
    return all(path.is_file() for path in paths) and sha256_file(paths[0]) != sha256_file(paths[1])
