"""Quantize a classifier without data by Sony's Model Compression Toolkit, for a comparison with clusterq.

    python tools/compare_mct.py --arch resnet20_cifar10 --weights resnet20.safetensors --val cifar10/test --out mct/ \\
        --images 1280 --iterations 250

It needs an environment of its own with `model-compression-toolkit` 2.6, torch, torchvision and clusterq. The toolkit generates images from the
classifier (`data_generation`), then quantizes it with them: `ptq` without gradients, and `gptq` with learned rounding. The classifier, the number of images,
the reading of the real images and the predictions' file are clusterq's, so `tools/compare/paired.py` can pair both. The toolkit's own target is taken as it is: weights
symmetric and per channel, activations at 8 bits with steps that are powers of two. `table.json` in --out has top-1 and CPU minutes.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import model_compression_toolkit as mct
import torch
import typer
from torch import Tensor, nn

from clusterq_cli.main import run_guarded
from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_write
from clusterq_common.progress.console import info
from clusterq_common.quant.bits import Bits
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_finetune.data.real import open_validation
from clusterq_finetune.evaluation.evaluate import evaluate_models
from clusterq_finetune.evaluation.predictions import Predictions

BATCH = 32
WEIGHTS_ATTRIBUTE = "weight"


def main(
    arch: Annotated[str, typer.Option(help="Classifier, as for clusterq-gen.")],
    weights: Annotated[str, typer.Option(help="Its weights.")],
    val: Annotated[Path, typer.Option(help="Real images to evaluate on.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    teacher_json: Annotated[str, typer.Option(help="More fields of the classifier's settings, as JSON.")] = "{}",
    bits: Annotated[str, typer.Option(help="Of ptq, with commas between; activations at 8 bits.")] = "w8a8,w4a8",
    learned_bits: Annotated[str, typer.Option(help="Of gptq, which takes minutes for each, likewise.")] = "w4a8",
    images: Annotated[int, typer.Option(help="Generated images.")] = 1280,
    iterations: Annotated[int, typer.Option(help="Steps of each batch of images; the toolkit's default is 500.")] = 500,
    epochs: Annotated[int, typer.Option(help="Passes over the images in gptq.")] = 5,
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Generate images, quantize, evaluate, and write the table."""

    def run() -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        out.mkdir(parents=True)
        teacher = load_teacher(TeacherConfig.validated({"arch": arch, "weights": weights, **json.loads(teacher_json)}))
        begin = time.process_time()
        generated = generate(teacher, images, iterations)
        minutes = (time.process_time() - begin) / 60
        torch.save(generated, out / "images.pt")
        rows = []
        for how, names in (("ptq", bits), ("gptq", learned_bits)):
            for name in names.split(","):
                begin = time.process_time()
                student = quantize(teacher, generated, Bits.parse(name), epochs if how == "gptq" else 0)
                own = (time.process_time() - begin) / 60
                found = evaluate(teacher, student, val, out / f"{name}-{how}.npz")
                row = {"bits": name, "how": how, **found, "set_cpu_minutes": minutes, "student_cpu_minutes": own}
                rows.append(row)
                info(json.dumps(row))
                atomic_write(out / "table.json", json.dumps(rows, indent=1) + "\n")

    run_guarded(run)


def of_pixels(teacher: Teacher) -> nn.Module:
    """Return the classifier of images from 0 to 1, because the toolkit knows no mean and std but torchvision's."""
    spec = teacher.spec
    std = torch.tensor(spec.std)
    normalise = nn.Conv2d(spec.channels, spec.channels, 1, groups=spec.channels)
    with torch.no_grad():
        normalise.weight.copy_((1 / std).view(-1, 1, 1, 1))
        normalise.bias.copy_(-torch.tensor(spec.mean) / std)
    return nn.Sequential(normalise, teacher.model).eval()


def generate(teacher: Teacher, count: int, iterations: int) -> Tensor:
    """Return images (N, C, H, W), normalised for the classifier, from the toolkit's generation with its defaults."""
    generation = mct.data_generation
    config = generation.get_pytorch_data_generation_config(
        n_iter=iterations,
        data_gen_batch_size=BATCH,
        image_normalization_type=generation.ImageNormalizationType.NO_NORMALIZATION,
        # Its 32 extra pixels are for images of 224 pixels.
        extra_pixels=max(1, round(32 * teacher.spec.shape[-1] / 224)),
    )
    made = generation.pytorch_data_generation_experimental(of_pixels(teacher), count, tuple(teacher.spec.shape[1:]), config)
    pixels = torch.cat([one if one.dim() == 4 else one[None] for one in made])[:count].detach().float().cpu()
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (teacher.spec.mean, teacher.spec.std))
    return (pixels - mean) / std


def quantize(teacher: Teacher, images: Tensor, bits: Bits, epochs: int) -> nn.Module:
    """Return the classifier quantized with these images; `epochs` 0: without gradients."""
    if bits.activations != 8:
        raise ClusterqError(
            f"--bits: {bits} has activations at {bits.activations} bits, expected 8: the toolkit's target has no others."
        )

    def represent() -> Iterator[list[Tensor]]:
        for batch in images.split(BATCH):
            yield [batch]

    # The toolkit takes a layer called `output`, as pytorchcv's classifiers have, for the end of the graph. In a container it has another name.
    model = nn.Sequential(teacher.model).eval()
    core = mct.core.CoreConfig()
    if bits.weights != 8:
        layers = [mct.core.common.network_editors.NodeTypeFilter(kind) for kind in (nn.Conv2d, nn.Linear)]
        core.bit_width_config.set_manual_weights_bit_width(layers, bits.weights, WEIGHTS_ATTRIBUTE)
    capabilities = mct.get_target_platform_capabilities()
    arguments: dict[str, Any] = {"core_config": core, "target_platform_capabilities": capabilities}
    if not epochs:
        student, _ = mct.ptq.pytorch_post_training_quantization(model, represent, **arguments)
        return student
    learned = mct.gptq.get_pytorch_gptq_config(n_epochs=epochs)
    student, _ = mct.gptq.pytorch_gradient_post_training_quantization(model, represent, gptq_config=learned, **arguments)
    return student


def evaluate(teacher: Teacher, student: nn.Module, val: Path, predictions_file: Path) -> dict[str, float]:
    """Return top-1 of classifier and student on the same real images, read as clusterq reads them."""
    images = open_validation(val, teacher.spec)
    predictions = Predictions()
    found = evaluate_models(
        {"teacher": teacher.model, "student": student}, images, device=torch.device("cpu"), predictions=predictions
    )
    predictions.save(predictions_file)
    return {"teacher": found["teacher"].top1, "student": found["student"].top1, "agreement": found["student"].agreement}


if __name__ == "__main__":
    typer.run(main)
