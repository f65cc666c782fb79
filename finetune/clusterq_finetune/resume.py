"""Opening of a fine-tuning's folder, new or to be continued."""

from contextlib import ExitStack
from pathlib import Path

from clusterq_common.errors import ClusterqError
from clusterq_common.run.environment import write_environment
from clusterq_common.run.folder_lock import only_program
from clusterq_common.run.run_folder import CONFIG, ENVIRONMENT, open_run_folder
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.trust import remember_code
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.prepare import Job


def open_folder(job: Job, held: ExitStack) -> bool:
    """Open the folder of the run for this program alone, and write its settings. Returns whether a run in it is continued.

    Args:
        job: the fine-tuning.
        held: keeps the folder's lock.

    Raises:
        ClusterqError: another program uses the folder, it holds something else, or the run in it has other settings.
    """
    folder, config = job.folder, job.config
    held.enter_context(only_program(folder))
    resuming = open_run_folder(folder, resume=job.request.resume, overwrite=job.request.overwrite)
    if resuming:
        _refuse_other_settings(folder, config)
    else:
        config.to_yaml(folder / CONFIG)
        remember_code(folder, config.teacher)
    write_environment(folder / ENVIRONMENT, job.device)
    return resuming


def _refuse_other_settings(folder: Path, config: FinetuneConfig) -> None:
    """Raise an error where a continued run would have other settings. Device, threads, workers and locations may differ.

    The paths of the teacher's file and weights are not compared: the set's digest covers the teacher's own digest.
    """
    saved = FinetuneConfig.from_yaml(folder / CONFIG).model_dump(mode="json")
    wanted = config.model_dump(mode="json")
    if saved["shards_digest"] not in {None, wanted["shards_digest"]}:
        raise ClusterqError(
            f"{config.shards} has digest {wanted['shards_digest'][:19]}, but the run in {folder} was started with "
            f"{saved['shards_digest'][:19]}, expected the same set; name it, or start anew with {setting_name('overwrite')}.",
            setting="shards",
        )
    moved = {"arch", "weights"} if saved["shards_digest"] is not None else set()
    if config.choice.active:
        # Chosen bits stand before the given ones.
        given = wanted["quant"]["layer_bits"]
        saved["quant"]["layer_bits"] = saved["quant"]["layer_bits"][-len(given) :] if given else given
    for section in ("teacher", "quant", "choice", "recipe", "runtime"):
        for name, value in wanted[section].items():
            if name not in {"device", "threads", "workers", "checkpoint_seconds", *moved} and saved[section][name] != value:
                raise ClusterqError(
                    f"{name} is {value}, but the run in {folder} was started with {saved[section][name]}; give the same "
                    f"flags, or start anew with {setting_name('overwrite')}.",
                    setting="resume",
                )
