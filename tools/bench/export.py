"""Exported models against their students: bytes, agreement on real images, latency; and a zoo of architectures.

    python tools/bench/export.py measure --val cifar10/test out/finetune-w8a8 out/finetune-w4a4
    python tools/bench/export.py zoo --bits w4a4
    python tools/bench/export.py speed resnet18 mobilenetv2_w1 --threads 1

measure: for each student a float ONNX file of its weights, and each way of storing integers that makes a difference. Bytes on disk against the float
file and against bits / 8 + scales. ONNX Runtime with and without graph optimisations against the student on all images: same class,
largest difference of a logit, beside that of the student in integer arithmetic; for each image that changes class, the first
activation that rounds the other way, and how near to the boundary it lies; with optimisations, the same file with biases rounded as the
optimiser rounds them. Latencies as medians of the ratios to the float file within
interleaved repeats. One thread. zoo: random weights and random BatchNorm; where logits differ, the same analysis. speed: the same networks made for a target, by
`clusterq-finetune benchmark` beside their float export. Random gammas are around 1, some of them negative; times depend on shapes and types alone.
"""

import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import onnx
import onnxruntime
import torch
import typer
from flips import first_flips
from rounded_biases import with_rounded_biases
from torch import Tensor, nn

from clusterq_cli.main import run_guarded
from clusterq_common.errors import ClusterqError
from clusterq_common.export.config import Integers, OnnxConfig
from clusterq_common.export.for_target import file_for, quant_for
from clusterq_common.export.onnx_file import add_description, onnx_bytes, onnx_model
from clusterq_common.export.onnx_types import stored_bits
from clusterq_common.export.qdq import size_of
from clusterq_common.export.runtime import OnnxModel
from clusterq_common.export.targets import TargetName
from clusterq_common.export.trace import replaced_quantizers
from clusterq_common.images.normalise import normalise
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert
from clusterq_common.quant.integer import integer_arithmetic
from clusterq_common.teacher.families import build_pytorchcv
from clusterq_common.teacher.spec import InputSpec, TeacherConfig
from clusterq_finetune.benchmark.command import benchmark
from clusterq_finetune.benchmark.request import FloatSource, Timing
from clusterq_finetune.benchmark.summary import summary_lines
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data.real import open_validation
from clusterq_finetune.export import describe_student
from clusterq_finetune.student import load_student

BATCH = 250
# Every STEP-th image is also compared in other arithmetic, which is slow.
STEP = 20
ZOO = [
    "resnet20_cifar10",
    "preresnet20_cifar10",
    "densenet40_k12_cifar10",
    "seresnet20_cifar10",
    "mobilenetv2_wd4",
    "mobilenet_wd4",
    "mobilenetv3_small_wd2",
    "resnext14_32x2d",
    "shufflenet_g3_wd4",
    "shufflenetv2_wd2",
    "squeezenet_v1_1",
    "efficientnet_b0",
]
INTEGER_OPS = {"QLinearConv", "ConvInteger", "QGemm", "MatMulInteger", "QLinearMatMul"}

app = typer.Typer(help=__doc__, add_completion=False)


@app.command()
def measure(
    students: Annotated[list[Path], typer.Argument(help="Folders of students of one architecture.")],
    val: Annotated[Path, typer.Option(help="Real images.")],
    count: Annotated[int | None, typer.Option(min=1, help="Only so many of them, evenly spread.")] = None,
    batches: Annotated[list[int], typer.Option(help="Batch sizes whose latency is measured.")] = [1, 32],  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1)] = 15,
) -> None:
    """Bytes, agreement and latency of exported students."""

    def run() -> None:
        torch.set_num_threads(1)
        _machine()
        for folder in students:
            _measure(folder, val, count, batches, repeats)

    run_guarded(run, debug=False)


@app.command()
def zoo(
    names: Annotated[list[str] | None, typer.Argument(help="pytorchcv names; a selection of families if left out.")] = None,
    bits: Annotated[str, typer.Option()] = "w4a4",
    images: Annotated[int, typer.Option(min=1)] = 4,
    branch_outputs: Annotated[bool, typer.Option("--branch-outputs")] = False,
    batchnorm: Annotated[str, typer.Option(help="As for export.")] = "fold",
    repeats: Annotated[int, typer.Option(min=0, help="Of latencies against float; 0: none.")] = 0,
) -> None:
    """Families of pytorchcv with random weights: does the file compute what the student does, and how fast?"""

    def run() -> None:
        torch.set_num_threads(1)
        _machine()
        for name in names or ZOO:
            quant = QuantConfig(bits=bits, branch_outputs=branch_outputs)
            _zoo(name, quant, OnnxConfig.validated({"batchnorm": batchnorm}), images, repeats)

    run_guarded(run, debug=False)


@app.command()
def speed(
    names: Annotated[list[str], typer.Argument(help="pytorchcv names.")],
    bits: Annotated[str, typer.Option()] = "w8a8",
    target: Annotated[TargetName, typer.Option()] = "ort-cpu",
    batchnorm: Annotated[str | None, typer.Option(help="As for export; the target's if left out.")] = None,
    turns: Annotated[int, typer.Option(min=6)] = 15,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    residual_sums: Annotated[bool | None, typer.Option(help="The target's choice if left out.")] = None,
) -> None:
    """Latency of families with random weights, made for a target, beside float."""

    def run() -> None:
        torch.set_num_threads(1)
        given = {} if residual_sums is None else {"residual_sums": residual_sums}
        quant = QuantConfig.validated(quant_for(target, {"bits": bits, **given}))
        for name in names:
            student, spec, _ = _random_student(name, quant, 4)
            saved = FinetuneConfig(shards="", teacher=TeacherConfig(arch=name), quant=quant)
            about = describe_student(saved, spec, teacher="", student="")
            with TemporaryDirectory() as folder:
                path, plain = Path(folder) / f"{name}.onnx", Path(folder) / "float.onnx"
                config = OnnxConfig.validated(file_for(target, {} if batchnorm is None else {"batchnorm": batchnorm}))
                data, about = onnx_bytes(student, spec, about, config)
                path.write_bytes(data)
                floats = replaced_quantizers(student, lambda _name, _quantizer: nn.Identity())
                plain.write_bytes(onnx_bytes(floats, spec, about, OnnxConfig())[0])
                print(f"\n{name}, random weights; BatchNorm kept in {len(about.batchnorm_kept)} layers")
                measured = benchmark(path, FloatSource(plain), Timing(turns=turns, threads=threads))
                print("\n".join(summary_lines(measured)), flush=True)

    run_guarded(run, debug=False)


def _machine() -> None:
    print(f"torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, one thread", flush=True)


@torch.no_grad()
def _measure(folder: Path, val: Path, count: int | None, batches: list[int], repeats: int) -> None:
    student, spec, saved = load_student(folder, torch.device("cpu"))
    about = describe_student(saved, spec, teacher="0" * 71, student="0" * 64)
    plain, *_ = onnx_model(replaced_quantizers(student, lambda _name, _quantizer: nn.Identity()), spec, OnnxConfig())
    add_description(plain, about)
    ways: list[Integers] = ["packed"] if stored_bits(saved.quant.parsed_bits.weights, "packed") == 8 else ["packed", "int8"]
    models = {way: onnx_model(student, spec, OnnxConfig(integers=way))[0] for way in ways}
    print(f"\n## {folder.name}: {saved.quant.bits} {saved.quant.quantizer}")
    floats, sizes = plain.ByteSize(), size_of(student)
    for way, model in models.items():
        add_description(model, about)
        needed = sizes["integers"] + sizes["scales"]
        print(
            f"{way}: {model.ByteSize():,} bytes; float ONNX {floats:,} ({model.ByteSize() / floats:.3f} of it); bits / 8 + scales {needed:,} "
            f"({model.ByteSize() / needed:.3f} of it)"
        )
    images, labels = _images(val, spec, count)
    expected = torch.cat([student(batch) for batch in images.split(BATCH)])
    simulated = images[::STEP]
    with integer_arithmetic(student):
        integer = torch.cat([student(batch) for batch in simulated.split(BATCH)])
    tolerance = float((integer - expected[::STEP]).abs().max())
    print(
        f"student: top-1 {_top1(expected, labels):.2f} on {len(images)}; integer arithmetic: logits at most {tolerance:.2g} apart"
    )
    for way, model in models.items():
        # Without optimisations, both ways compute the same.
        for optimise in (False, True) if way == "packed" else (True,):
            _agreement(way, model, student, images, labels, expected, optimise=optimise)
    _latency({"float": plain, **models}, images, batches, repeats)


def _agreement(
    way: str, model: onnx.ModelProto, student: nn.Module, images: Tensor, labels: Tensor, expected: Tensor, *, optimise: bool
) -> None:
    session = OnnxModel(model.SerializeToString(), optimise=optimise, threads=1)
    logits = torch.cat([session(batch) for batch in images.split(BATCH)])
    differs = (logits.argmax(1) != expected.argmax(1)).nonzero().flatten()
    apart = (logits - expected).abs().amax(1)
    top = expected.topk(2).values
    print(
        f"{way}, optimisations {'on' if optimise else 'off'}: top-1 {_top1(logits, labels):.2f}, same class on "
        f"{100 * (1 - len(differs) / len(images)):.2f} % ({len(differs)} differ), logits at most {float(apart.max()):.2g} apart, median "
        f"{float(apart.median()):.1g}, images with logits more than 1e-3 apart {100 * float((apart > 1e-3).float().mean()):.2f} %",
        flush=True,
    )
    if not len(differs):
        return
    margins = (top[:, 0] - top[:, 1])[differs]
    print(f"  where the class differs the student's first two logits are at most {float(margins.max()):.2g} apart")
    if optimise:
        _bias_rounding(model, logits[::STEP], images[::STEP])
        return
    flips = [flip for part in differs.split(50) for flip in first_flips(student, model, images[part])[0]]
    known = [flip for flip in flips if flip is not None]
    print(
        f"  of these {len(known)} of {len(flips)} have an activation that rounds the other way; the first one does by "
        f"{max(flip.steps for flip in known)} step, from {max(flip.distance for flip in known):.1g} of a step beside the boundary, at most"
    )


def _bias_rounding(model: onnx.ModelProto, found: Tensor, images: Tensor) -> None:
    """Print whether rounded biases explain all of the optimiser's changes."""
    session = OnnxModel(with_rounded_biases(model).SerializeToString(), optimise=False, threads=1)
    rounded = torch.cat([session(batch) for batch in images.split(BATCH)])
    same, apart = (rounded.argmax(1) == found.argmax(1)).float(), (rounded - found).abs().amax(1)
    print(
        f"  against the same file with rounded biases, not optimised, on {len(images)} images: same class on {100 * float(same.mean()):.2f} %, "
        f"logits at most {float(apart.max()):.2g} apart, median {float(apart.median()):.1g}"
    )


def _latency(models: dict[str, onnx.ModelProto], images: Tensor, batches: list[int], repeats: int) -> None:
    sessions = {name: OnnxModel(model.SerializeToString(), threads=1) for name, model in models.items()}
    for name, model in models.items():
        print(f"  {name}: after optimisation {_kernels(model)}")
    for batch in batches:
        inputs, calls = images[:batch], max(1, 16 // batch)
        seconds: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(repeats + 1):
            for name, session in sessions.items():
                begin = time.perf_counter()
                for _ in range(calls):
                    session(inputs)
                seconds[name].append((time.perf_counter() - begin) / calls)
        for name, values in seconds.items():
            ratios = [own / other for own, other in zip(values[1:], seconds["float"][1:], strict=True)]
            print(
                f"  batch {batch}, {name}: {1000 * median(values[1:]):.2f} ms, {median(ratios):.2f} of float "
                f"({sorted(ratios)[len(ratios) // 4]:.2f} to {sorted(ratios)[-1 - len(ratios) // 4]:.2f})",
                flush=True,
            )


def _kernels(model: onnx.ModelProto) -> str:
    """Return the convolutions and matrix products in the graph that ONNX Runtime executes."""
    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = f"{folder}/optimised.onnx"
        options.log_severity_level = 3
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        counts = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    return ", ".join(
        f"{number} {name}" for name, number in sorted(counts.items()) if name in INTEGER_OPS or "Conv" in name or "Gemm" in name
    )


def _images(val: Path, spec: InputSpec, count: int | None) -> tuple[Tensor, Tensor]:
    source = open_validation(val, spec)
    chosen = range(0, len(source), max(1, len(source) // (count or len(source))))
    loaded = [(pixels, label) for pixels, label, _ in (source[index] for index in chosen) if pixels is not None]
    return normalise(torch.stack([pixels for pixels, _ in loaded]), spec), torch.tensor([label for _, label in loaded])


def _top1(logits: Tensor, labels: Tensor) -> float:
    return 100 * float((logits.argmax(1) == labels).float().mean())


@torch.no_grad()
def _random_student(name: str, config: QuantConfig, count: int) -> tuple[nn.Module, InputSpec, Tensor]:
    """Return a calibrated student of a network with random weights and BatchNorm, and the images of noise that it saw."""
    torch.manual_seed(0)
    net, known = build_pytorchcv(TeacherConfig(arch=name))
    size = known["input_size"]
    spec = InputSpec(size=size, channels=3, num_classes=known["num_classes"], mean=(0.5,) * 3, std=(0.5,) * 3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                module.weight.data.normal_(1, 0.4)
                module.bias.data.normal_(0, 0.2)
    images = torch.randn(count, *spec.shape)
    student = convert(net.eval(), config, images[:1], lambda _: None).eval()
    calibrate(student, [images], config)
    return student, spec, images


@torch.no_grad()
def _zoo(name: str, config: QuantConfig, onnx_config: OnnxConfig, count: int, repeats: int) -> None:
    student, spec, images = _random_student(name, config, count)
    size = spec.shown_size
    begin = time.monotonic()
    try:
        model, kept, _ = onnx_model(student, spec, onnx_config)
    except ClusterqError as error:
        print(f"{name}: {error}", flush=True)
        return
    seconds = time.monotonic() - begin
    flips, expected, logits = first_flips(student, model, images)
    apart, of = (logits - expected).abs().amax(1), float(expected.abs().max())
    same = [float(one) for one, flip in zip(apart, flips, strict=True) if flip is None]
    words: list[Any] = [f"{flip.steps} step from {flip.distance:.1g}" for flip in flips if flip is not None]
    layers = sum(isinstance(module, nn.BatchNorm2d) for module in student.modules())
    print(
        f"{name} ({size}): {seconds:.0f} s, {layers - len(kept)} of {layers} BatchNorm folded, {len(same)} of {count} images with the "
        f"same integers throughout, there logits {max(same, default=0) / of:.1g} of the largest apart"
        + (f"; elsewhere first flip {', '.join(words)}, logits at most {float(apart.max()) / of:.1g} apart" if words else ""),
        flush=True,
    )
    if repeats:
        plain, *_ = onnx_model(replaced_quantizers(student, lambda _name, _quantizer: nn.Identity()), spec, OnnxConfig())
        saved = FinetuneConfig(shards="", teacher=TeacherConfig(arch=name), quant=config)
        for one in (plain, model):
            add_description(one, describe_student(saved, spec, teacher="", student=""))
        _latency({"float": plain, "quantized": model}, images, [1], repeats)


if __name__ == "__main__":
    sys.exit(app())
