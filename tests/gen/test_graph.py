"""Recorded steps of a generator's training do what plain ones do."""

from typing import Any

import pytest
import torch

from clusterq_common.device.cuda_graph import PLAIN_STEPS, CudaRecorder
from clusterq_common.errors import ClusterqError
from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_gen.config import GenConfig
from clusterq_gen.training.loop import graphed_steps, train_generator, train_step
from clusterq_gen.training.state import Training
from tests.conftest import Cli, DigitsTeacher
from tests.gen.conftest import CPU, small
from tests.tape import TapeRecorder


def trained(config: GenConfig, teacher: Teacher, recorder: TapeRecorder | None) -> tuple[Training, list[dict[str, float]]]:
    """A whole run, replayed where there is a recorder; what it holds at the end and what each step said."""
    run = Training.start(config, teacher, CPU)
    steps = []
    with batchnorm_taps(teacher.model) as taps:
        stored = run.stored_statistics()
        graphs = graphed_steps(run, taps, stored, recorder) if recorder else None
        while run.step < run.total_steps:
            if run.step == run.warmup_steps:
                run.end_warmup(lambda _: None)
            if run.step % config.train.steps_per_epoch == 0:
                run.set_learning_rates(run.step // config.train.steps_per_epoch)
            values = train_step(run, taps, stored, graphs)
            steps.append({name: float(value) for name, value in values.items()})
            run.step += 1
    return run, steps


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
    budget = {"epochs": 4, "warmup_epochs": 1, "steps_per_epoch": 10, "gradient_norm_every": 4}
    sections: dict[str, dict[str, object]] = {"method": method, "quant": {"range": "minmax"}}
    plain, wanted = trained(small(teacher, train=budget, **sections), teacher, None)
    recorder = TapeRecorder()
    replayed, steps = trained(small(teacher, train={**budget, "cuda_graphs": True}, **sections), teacher, recorder)

    assert steps == wanted
    for name in ("generator", "student"):
        ours, theirs = getattr(replayed, name).state_dict(), getattr(plain, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    # 40 steps, each fourth with gradient norms; of both kinds the first of each phase are plain. Rates change without a new recording.
    assert recorder.plain_steps == 4 * PLAIN_STEPS
    assert recorder.recorded == 3, "three steps with norms in warm-up: all of them plain"
    assert recorder.replays == 40 - recorder.plain_steps


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
            own_graphs = graphed_steps(run, taps, stored, CudaRecorder(device)) if graphs else None
            for number in range(2 * PLAIN_STEPS):
                # The first steps make optimizers' state, and recording itself waits.
                torch.cuda.set_sync_debug_mode("error" if not graphs and number else "default")
                values = train_step(run, taps, stored, own_graphs)
                run.step += 1
            torch.cuda.set_sync_debug_mode("default")
        finals.append(float(values["loss/class"]))
    assert finals[1] == pytest.approx(finals[0], rel=0.02)


def test_only_one_process_with_a_gpu_can_replay(teacher: Teacher, tmp_path: Any) -> None:
    with pytest.raises(ClusterqError, match=r"^cuda_graphs: found the device cpu, expected one process on a CUDA device"):
        train_generator(small(teacher, train={"cuda_graphs": True}), teacher, tmp_path, CPU, resume=False)


@pytest.mark.parametrize("method", ["clusterq", "zeroq"])
def test_without_a_gpu_no_folder_is_made(method: str, digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Any) -> None:
    flags = [*digits_teacher.flags, "--method", method, "--device", "cpu", "--cuda-graphs"]
    outcome = gen("train", *flags, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "--cuda-graphs: found the device cpu" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_graphs_serves_a_run_with_them(teacher: Teacher) -> None:
    # A recording needs "capturable", and reads its rate from a tensor: neither may come from the checkpoint.
    plain = Training.start(small(teacher), teacher, CPU)
    plain.end_warmup(lambda _: None)
    plain.set_learning_rates(0)
    graphed = Training.start(small(teacher, train={"cuda_graphs": True}), teacher, CPU)
    (own,) = graphed.optimizer.param_groups
    own["capturable"] = True
    rate = own["lr"]
    graphed.load_state_dict(plain.state_dict())

    (own,) = graphed.optimizer.param_groups
    assert own["capturable"]
    assert own["lr"] is rate
    assert float(rate) == plain.optimizer.param_groups[0]["lr"]
