"""Writing of a set of class-labelled shards."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from clusterq_common.device.distributed import Ranks
from clusterq_common.progress.console import info, progress
from clusterq_common.progress.ticker import Ticker
from clusterq_common.run.child_process import end_with_parent
from clusterq_common.run.environment import versions
from clusterq_common.shards.manifest import Manifest, read_manifest
from clusterq_common.shards.write import Written, write_manifest, write_shard
from clusterq_common.teacher.load import Teacher
from clusterq_gen.config import GenConfig
from clusterq_gen.emission.build_manifest import describe_set, gather, how_made, read_class_names, rounds_of
from clusterq_gen.emission.candidate_source import CandidateSource
from clusterq_gen.emission.candidates import EmissionCounts, Emitter
from clusterq_gen.emission.journal import Journal
from clusterq_gen.emission.shard_plan import ShardPlan, plan_shards
from clusterq_gen.resume import plans_to_make, set_to_extend


def emit_shards(
    config: GenConfig,
    teacher: Teacher,
    source: CandidateSource,
    folder: Path,
    *,
    seed: int,
    overwrite: bool = False,
    ranks: Ranks | None = None,
) -> Manifest:
    """Write a set of shards, add to the one that is there, or mend it: finished shards that verify are kept.

    Under torchrun every process calls this; each writes its share of the shards, the first one the manifest.

    Raises:
        ClusterqError: the folder holds something else, or a set of other settings; none of the candidates was accepted; the
            disk is full.
    """
    ranks = ranks or Ranks()
    classes = teacher.spec.num_classes
    class_names = read_class_names(config.emit, classes)
    before = set_to_extend(config, teacher, source, folder, seed, overwrite=overwrite, ranks=ranks)
    generation = how_made(config, teacher, source, seed, before)
    generation["rounds"] = rounds_of(config.emit, teacher.spec.num_classes, before)
    plans = plan_shards(generation["rounds"], classes, generation["samples_per_shard"], source.plan)
    todo = plans_to_make(folder, plans, before)
    if before is not None and not todo:
        if ranks.first:  # the emission that wrote the manifest may have died before it tidied up
            Journal(folder, {}).close()
        info(f"{folder} holds that many images already, and its shards are whole; nothing to do")
        return before

    made_of = {name: value for name, value in generation.items() if name != "rounds"}
    journal = Journal(
        folder, {**made_of, "teacher": teacher.digest, "logits": config.emit.store_logits, "versions": versions()}
    )
    with _encoders(config.emit.workers) as pool:
        emitter = Emitter(
            source,
            teacher,
            seed=seed,
            labels=config.emit.labelling,
            keep_misclassified=config.emit.keep_misclassified,
            store_logits=config.emit.store_logits,
            pool=pool,
        )
        _write_shards(folder, todo[ranks.rank :: ranks.world], emitter, journal, classes)
    ranks.wait()
    if ranks.first:
        parts, tally = gather(folder, classes, [_made(journal, plan) for plan in todo], before)
        write_manifest(folder, describe_set(config, teacher, generation, class_names, parts, tally, before))
        journal.close()
    ranks.wait()
    return read_manifest(folder)


def _write_shards(folder: Path, plans: list[ShardPlan], emitter: Emitter, journal: Journal, classes: int) -> None:
    """Write the shards that the journal does not list as finished."""
    with progress("writing images", sum(sum(plan.wanted) for plan in plans), images=1, phase="shards") as ticker:
        for plan in plans:
            kept = journal.finished(plan)
            if kept is not None:
                ticker.advance(sum(kept[0].per_class))
                continue
            tally = EmissionCounts.nothing(classes)
            samples = emitter.samples(plan, tally, partial(_count, ticker, tally))
            written = write_shard(folder, plan.name, samples, start_key=plan.first_slot, num_classes=classes)
            journal.note(plan, written, tally)


def _count(ticker: Ticker, tally: EmissionCounts, samples: int) -> None:
    ticker.advance(samples, f"teacher agrees on {100 * tally.agreed / max(1, tally.candidates):.0f} % of candidates")


def _made(journal: Journal, plan: ShardPlan) -> tuple[ShardPlan, Written, EmissionCounts]:
    recorded = journal.finished(plan)
    if recorded is None:
        raise RuntimeError(f"{journal.folder / plan.name} was written and is not there")
    return plan, *recorded


@contextmanager
def _encoders(workers: int) -> Iterator[Executor | None]:
    """Processes that encode images; none for 0, when this one does it."""
    if not workers:
        yield None
        return
    # Not forked: this process has threads, and perhaps a GPU.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=end_with_parent,
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
