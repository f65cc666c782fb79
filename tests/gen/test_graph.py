"""Recorded steps of a generator's training do what plain ones do."""

from typing import Any

import pytest
import torch

from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.runtime.graph import PLAIN_STEPS, CudaRecorder, GraphedStep
from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_gen.config import GenConfig
from clusterq_gen.loop import device_step, train_generator, train_step
from clusterq_gen.training import Training
from tests.conftest import Cli, DigitsTeacher
from tests.gen.conftest import CPU, small
from tests.tape import TapeRecorder


def trained(config: GenConfig, teacher: Teacher, recorder: TapeRecorder | None) -> tuple[Training, list[dict[str, float]]]:
    """A whole run, replayed where there is a recorder; what it holds at the end and what each step said."""
    run = Training.start(config, teacher, CPU)
    found = []
    with batchnorm_taps(teacher.model) as taps:
        stored = run.stored_statistics()
        graph = None if recorder is None else GraphedStep(lambda: device_step(run, taps, stored), recorder)
        while run.step < run.total_steps:
            if run.step == run.warmup_steps:
                run.end_warmup(lambda _: None)
            if run.step % config.train.steps_per_epoch == 0:
                run.set_learning_rates(run.step // config.train.steps_per_epoch)
            values = train_step(run, taps, stored, graph)
            found.append({name: float(value) for name, value in values.items()})
            run.step += 1
    return run, found


@pytest.mark.parametrize(
    "method",
    [
        {"method": "clusterq"},
        {"method": "adadfq"},
        {"method": "qimera", "alpha_spread": 5.0, "alpha_fda": 9.0, "soft_target": 0.9},
    ],
    ids=["clusterq", "adadfq", "qimera"],
)
def test_a_replayed_run_is_the_plain_run(teacher: Teacher, method: dict[str, object]) -> None:
    budget = {"epochs": 4, "warmup_epochs": 1, "steps_per_epoch": 7, "gradient_norm_every": 6}
    sections: dict[str, dict[str, object]] = {"method": method, "quant": {"range": "minmax"}}
    plain, wanted = trained(small(teacher, train=budget, **sections), teacher, None)
    recorder = TapeRecorder()
    replayed, found = trained(small(teacher, train={**budget, "cuda_graphs": True}, **sections), teacher, recorder)

    assert found == wanted
    for name in ("generator", "student"):
        ours, theirs = getattr(replayed, name).state_dict(), getattr(plain, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    # 28 steps, 5 of them with gradient norms; the first of each phase are plain; each epoch has a rate of its own.
    assert recorder.plain_steps == 5 + 2 * PLAIN_STEPS
    assert recorder.recorded == 4
    assert recorder.replays == 28 - recorder.plain_steps


@pytest.mark.gpu
def test_on_a_gpu_steps_wait_for_nothing_and_replays_train_alike(digits_teacher: DigitsTeacher, teacher: Teacher) -> None:
    device = torch.device("cuda")
    finals = []
    for graphs in (False, True):
        own = load_teacher(teacher.config, device=device)
        run = Training.start(small(own, train={"cuda_graphs": graphs, "gradient_norm_every": 100}), own, device)
        run.end_warmup(lambda _: None)
        run.step = run.warmup_steps + 1
        with batchnorm_taps(own.model) as taps:
            stored = run.stored_statistics()
            graph = GraphedStep(lambda run=run, taps=taps, stored=stored: device_step(run, taps, stored), CudaRecorder(device))
            for number in range(2 * PLAIN_STEPS):
                # The first steps make optimizers' state, and recording itself waits.
                torch.cuda.set_sync_debug_mode("error" if not graphs and number else "default")
                values = train_step(run, taps, stored, graph if graphs else None)
                run.step += 1
            torch.cuda.set_sync_debug_mode("default")
        finals.append(float(values["loss/class"]))
    assert finals[1] == pytest.approx(finals[0], rel=0.02)


def test_only_one_process_with_a_gpu_can_replay(teacher: Teacher, tmp_path: Any) -> None:
    with pytest.raises(ClusterqError, match=r"--cuda-graphs: found the device cpu, expected one process on a CUDA device"):
        train_generator(small(teacher, train={"cuda_graphs": True}), teacher, tmp_path, CPU, resume=False)


@pytest.mark.parametrize("method", ["clusterq", "zeroq"])
def test_without_a_gpu_no_folder_is_made(method: str, digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Any) -> None:
    flags = [*digits_teacher.flags, "--method", method, "--device", "cpu", "--cuda-graphs"]
    outcome = gen("train", *flags, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "--cuda-graphs: found the device cpu" in outcome.err
    assert not (tmp_path / "run").exists()
