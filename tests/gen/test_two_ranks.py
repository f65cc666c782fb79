"""Two processes with half a batch each take the steps that one takes with the whole batch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clusterq_common.device.distributed import Ranks, process_group
from clusterq_common.device.reduce import average_gradients, mean_across, min_across, sum_across
from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import InputSpec, TeacherConfig
from clusterq_gen.config import GenConfig
from clusterq_gen.methods import build_method
from clusterq_gen.networks.synced_norm import SyncedBatchNorm2d
from clusterq_gen.presets import resolve
from clusterq_gen.training.loop import train_step
from clusterq_gen.training.state import Training
from tests.several import in_processes

CPU = torch.device("cpu")
STEPS = 5


def teacher_in_float64() -> Teacher:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    spec = InputSpec(size=8, channels=2, num_classes=5, mean=(0.5, 0.4), std=(0.5, 0.3))
    return Teacher(model.double().eval().requires_grad_(False), TeacherConfig(arch="small"), spec, "sha256:none")


def settings(conditioning: str, ranges: str, norms_every: int, **method: object) -> GenConfig:
    train = {
        "epochs": 4,
        "warmup_epochs": 1,
        "steps_per_epoch": 2,
        "classes_per_batch": 5,
        "batch_size": 20,
        "gradient_norm_every": norms_every,
    }
    sections = {"teacher": {"arch": "small"}, "train": train, "generator": {"width": 6, "conditioning": conditioning}}
    # Sums, and large weights: every term must move the generator.
    weights = {
        "fda_reduction": "sum",
        "alpha_bns": 1.0,
        "alpha_fda": 5.0,
        "alpha_spread": 3.0,
        "spread_images": 1.0,
        "spread_layers": 1.0,
    }
    return resolve({**sections, "method": {**weights, **method}, "quant": {"range": ranges}}, "quick", imagenet_sized=False)


def five_steps(config: GenConfig) -> dict[str, Tensor]:
    """State of a run after five steps, two of them in warm-up, with the metrics."""
    run = Training.start(config, teacher_in_float64(), CPU)
    run.generator.double()
    state: dict[str, Tensor] = {}
    with batchnorm_taps(run.teacher.model) as taps:
        for step in range(STEPS):
            run.step = step
            if step == 2:
                run.end_warmup(log=lambda _: None)
            metrics = train_step(run, taps, run.stored_statistics())
            values = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in metrics.items()}
            # Norms are whole already; means over equal parts are the mean.
            state |= {f"metric {step} {name}": mean_across(value.clone()) for name, value in values.items()}
    assert run.student is not None
    for name, module in (("generator", run.generator), ("student", run.student)):
        state |= {f"{name} {key}": value.detach().clone() for key, value in module.state_dict().items()}
    centroids = {} if run.centroids is None else run.centroids.state_dict()
    return state | {f"centroids {key}": value for key, value in centroids.items()}


EXTRAS = {"hard_gamma": 2.0, "soft_target": 0.9, "bns_units": "std", "fda_units": "std"}
# Name -> settings, and how close the results must be: learned steps, recorded norms and accuracies are float32, and Adam makes steps of the
# same size from gradients that nearly cancel.
CASES = {
    "clusterq": (settings("product", "mse", 10_000), 1e-9),
    "clusterq, learned steps": (settings("batchnorm", "lsq", 1), 2e-5),
    "adadfq": (settings("product", "mse", 10_000, method="adadfq"), 1e-7),
    "qimera": (settings("concat", "mse", 10_000, method="qimera"), 1e-7),
    "clusterq, mixed": (settings("batchnorm", "mse", 10_000, mix_probability=0.4, mix_classes=3, **EXTRAS), 1e-7),
}


def compare_with_files(folder: Path) -> None:
    with process_group() as ranks:
        assert ranks.world == 2
        steps = {case: five_steps(config) for case, (config, _) in CASES.items()}
    for case, (_, tolerance) in CASES.items():
        for name, expected in torch.load(folder / f"{case}.pt").items():
            torch.testing.assert_close(
                steps[case][name],
                expected,
                rtol=tolerance,
                atol=tolerance,
                msg=lambda text, n=f"{case}, {name}": f"{n}: {text}",
            )


def test_five_steps(tmp_path: Path) -> None:
    """All cases in the same two processes: starting them takes longer than the steps."""
    for case, (config, _) in CASES.items():
        alone = five_steps(config)
        losses = {name.split("/")[1] for name in alone if name.startswith("metric 4 loss/")}
        assert losses == {term.name for term in build_method(config.method, 0).terms}, "every term takes part"
        start = Training.start(config, teacher_in_float64(), CPU).generator.state_dict()
        moved = [(alone[f"generator {name}"] - value).abs().max() for name, value in start.items() if value.is_floating_point()]
        assert min(moved) > 0, "every parameter and every running statistic of the generator has moved"
        torch.save(alone, tmp_path / f"{case}.pt")
    in_processes(2, compare_with_files, tmp_path)


def check_reductions() -> None:
    with process_group() as ranks:
        own = torch.tensor([1.0 + ranks.rank, 2.0], dtype=torch.float64, requires_grad=True)
        # L_r = (r + 1) * S[0]^2 with S = sum over ranks: d(sum of L) / d own[0] = 3 * 2 * S[0], S[0] = 3.
        ((ranks.rank + 1) * sum_across(own)[0] ** 2).backward()
        assert own.grad is not None
        assert own.grad.tolist() == [18.0, 0.0]
        assert mean_across(torch.tensor(float(ranks.rank))).item() == 0.5
        assert min_across(torch.tensor([1.0 + ranks.rank, -ranks.rank], requires_grad=True)).tolist() == [1.0, -1.0]

        parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
        parameters[0].grad = torch.full((2,), float(ranks.rank))
        if ranks.first:
            parameters[1].grad = torch.ones(2)
        average_gradients(parameters)
        assert parameters[0].grad.tolist() == [0.5, 0.5]
        assert parameters[1].grad is not None, "a process without images takes the same step"
        assert parameters[1].grad.tolist() == [0.5, 0.5]
        assert parameters[2].grad is None

        norm = SyncedBatchNorm2d(3).double()
        plain = nn.BatchNorm2d(3).double()
        whole = torch.randn(6, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5 + 100
        share = ranks.share(6)
        wanted = plain(whole)[share]
        torch.testing.assert_close(norm(whole[share]), wanted)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(norm.state_dict()[name], value)
        assert ranks.gather(ranks.rank) == [0, 1]
        assert ranks.from_first(lambda: "said by the first") == "said by the first"


def test_reductions_and_their_gradients() -> None:
    in_processes(2, check_reductions)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 1000])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_cover_a_batch_once(count: int, world: int) -> None:
    parts = [list(range(count))[Ranks(rank, world).share(count)] for rank in range(world)]
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
