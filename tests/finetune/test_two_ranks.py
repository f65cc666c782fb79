"""Two processes fine-tune and evaluate as one does: unequal parts, an empty part, every image counted once."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clusterq_common.device.distributed import Ranks, process_group
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert, quantizers
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import InputSpec, TeacherConfig
from clusterq_finetune.config import FinetuneConfig, resolve
from clusterq_finetune.data.real import open_validation
from clusterq_finetune.data.shard_batches import ShardBatch
from clusterq_finetune.evaluation.evaluate import EvaluationResult, evaluate_models
from clusterq_finetune.recipes.correct import correct_channels
from clusterq_finetune.recipes.distillation import Distillation
from clusterq_finetune.recipes.recalibrate import recalibrate_batchnorm
from tests.several import in_processes

CPU = torch.device("cpu")
SPEC = InputSpec(size=8, channels=1, num_classes=4, mean=(0.5,), std=(0.5,))
# The last batch leaves one of two processes without an image.
SIZES = (8, 7, 5, 2, 1)


class InFloat64(Distillation):
    """Rounding apart, equal is equal."""

    def _inputs_and_logits(self, batch: ShardBatch) -> tuple[Tensor, Tensor]:
        images, logits = super()._inputs_and_logits(batch)
        return images.double(), logits.double()


def small_teacher() -> Teacher:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval().requires_grad_(False)
    return Teacher(model, TeacherConfig(arch="small"), SPEC, "sha256:none")


def pictures(count: int) -> Tensor:
    return torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


def five_steps(config: FinetuneConfig) -> dict[str, Tensor]:
    teacher = small_teacher()
    student = convert(teacher.model, config.quant, torch.zeros(1, 1, 8, 8), lambda _: None)
    # An odd number of batches: one process sees more of them.
    calibration = [torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    calibrate(student, calibration, config.quant)
    if config.recipe.batchnorm == "recalibrated":
        recalibrate_batchnorm(student, calibration, CPU)
    if config.recipe.batchnorm == "corrected":
        correct_channels(student, teacher.model, ((batch, batch) for batch in calibration), Ranks.current())
    student.double()
    for quantizer in quantizers(student).values():
        quantizer.float()  # the kernels' scales
    run = InFloat64(student, teacher, config, CPU, stored_logits=False)
    ranks = Ranks.current()
    for size in SIZES:
        own = ranks.share(size)
        batch = ShardBatch(pictures(size)[own], (torch.arange(size) % 4)[own], None)
        run.take_step(batch, size, config.recipe.lr)
        run.step += 1
    run.ema.finish()
    return {name: value.detach().clone() for name, value in student.state_dict().items()}


def compare_with_file(config: FinetuneConfig, path: Path, tolerance: float) -> None:
    with process_group() as ranks:
        assert ranks.world == 2
        steps = five_steps(config)
    for name, expected in torch.load(path).items():
        torch.testing.assert_close(
            steps[name], expected, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize(
    ("recipe", "ranges", "tolerance"),
    [
        # The teacher answers in float32, batch by batch.
        ({"optimizer": "sgd", "lr": 0.01, "weight_decay": 0.1, "augment": "crop-flip"}, "mse", 1e-7),
        ({"optimizer": "sgd", "lr": 0.01, "feature_weight": 3.0, "ce_weight": 0.0}, "mse", 1e-7),
        # Statistics that are measured, and what follows from them, are float32.
        ({"optimizer": "adam", "lr": 0.01, "batchnorm": "corrected"}, "mse", 1e-4),
        ({"optimizer": "adam", "lr": 0.01, "weight_ema": 0.9, "batchnorm": "recalibrated"}, "lsq", 1e-4),
    ],
)
def test_five_steps(recipe: dict[str, object], ranges: str, tolerance: float, tmp_path: Path) -> None:
    flags = {"recipe": recipe, "quant": QuantConfig(range=ranges).model_dump()}
    config = resolve(flags, "shards", TeacherConfig(arch="small"))
    alone = five_steps(config)
    moved = alone["0.weight"] - small_teacher().model.state_dict()["0.weight"]
    assert moved.abs().max() > 1e-3
    torch.save(alone, tmp_path / "alone.pt")
    in_processes(2, compare_with_file, config, tmp_path / "alone.pt", tolerance)


def evaluate(val: Path) -> EvaluationResult:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    spec = SPEC.model_copy(update={"num_classes": 10})
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    images = open_validation(val, spec)
    assert len(images) % 2 == 1, "an uneven set"
    return evaluate_models({"teacher": model, "student": other}, images, device=CPU, batch_size=16)["student"]


def compare_evaluations(val: Path, expected: EvaluationResult) -> None:
    with process_group():
        result = evaluate(val)
    timing = {"images_per_second", "decode_seconds", "calibration_error"}
    assert result.model_dump(exclude=timing) == expected.model_dump(exclude=timing)
    assert result.calibration_error == pytest.approx(expected.calibration_error)


def test_an_uneven_set_is_counted_once(digits_teacher: object, tmp_path: Path) -> None:
    val = tmp_path / "val"
    for label in range(10):
        (val / f"{label}").mkdir(parents=True)
    source = sorted(digits_teacher.val.rglob("*.png"))[:40]
    for number, path in enumerate(source):
        (val / f"{number % 10}" / f"{number:03}.png").write_bytes(path.read_bytes())
    (val / "3" / "broken.png").write_bytes(b"no image")
    expected = evaluate(val)
    assert expected.images == 40
    assert len(expected.unreadable) == 1
    in_processes(2, compare_evaluations, val, expected)
