"""Recorded steps do what plain ones do: with torch's operations recorded and repeated in the same memory, as a CUDA graph repeats kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_gen.config import GenConfig
from clusterq_gen.graph import PLAIN_STEPS, Body, CudaRecorder, GraphedStep
from clusterq_gen.loop import device_step, train_generator, train_step
from clusterq_gen.training import Training
from tests.conftest import Cli, DigitsTeacher
from tests.gen.conftest import CPU, small

Operation = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]


class Tape(TorchDispatchMode):
    """Every operation that runs, with its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def repeat(self) -> None:
        """All of it again, results where they were. Numbers that Python had in its hands stay what they were, as in a graph."""
        for func, args, kwargs, results in self.operations:
            schema = func._schema
            if any(out.alias_info is not None and not out.alias_info.is_write for out in schema.returns):
                continue  # a view of memory that is the same
            again = func(*args, **kwargs)
            if not schema.is_mutable:
                for held, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                    if isinstance(held, Tensor):
                        held.copy_(new)


class TapeRecorder:
    """A stand-in for CUDA graphs. Recording runs the step, so the first replay has nothing left to do."""

    def __init__(self) -> None:
        self.plain_steps, self.recorded, self.replays = 0, 0, 0

    def plain(self, body: Body) -> dict[str, Tensor]:
        self.plain_steps += 1
        return body()

    def record(self, body: Body) -> Body:
        self.recorded += 1
        ran = True
        with Tape() as tape:
            values = body()

        def replay() -> dict[str, Tensor]:
            nonlocal ran
            if not ran:
                tape.repeat()
            ran, self.replays = False, self.replays + 1
            return {name: value.clone() for name, value in values.items()}

        return replay


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
    [{"method": "clusterq"}, {"method": "adadfq"}, {"method": "qimera", "alpha_fda": 9.0, "soft_target": 0.9}],
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
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


def test_banks_have_no_steps_to_record(gen: Cli, tmp_path: Any) -> None:
    outcome = gen("train", "--arch", "resnet20_cifar10", "--method", "zeroq", "--cuda-graphs", "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "--cuda-graphs" in outcome.err
