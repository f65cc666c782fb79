"""Make a pack: a folder with which a machine without network runs clusterq on real images, such as its proof on a GPU.

    python tools/gpu/pack.py --out .gpu
    bash .gpu/run.sh python3 tools/gpu/prove.py --pack .gpu --out proof     # there

wheels/: clusterq and the packages that the machine lacks, but never torch. images/: CIFAR-10's test images and photographs with
ImageNet's labels, as webdataset tars. models/: trained classifiers. pack.json: size and SHA-256 of every file, and the accuracy
of each classifier on the images, on this machine's CPU. Real data and models are looked for in the folder that CLUSTERQ_DATA
names (default: shared/ beside the checkout).
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from packed import CIFAR10, PHOTOGRAPHS, Pack, PackedFile, PackedImages, PackedTeacher, PackFacts, Reference
from packed_images import even_half, lossless_samples, open_folders, photograph_samples, with_margin, write_tar
from unpack import FACTS
from wheels import MISSING_ON_GPU_IMAGES, ROOT, build_own, download, pinned, run_time_packages

from clusterq_cli.main import run_guarded
from clusterq_common.errors import ClusterqError
from clusterq_common.files import sha256_file
from clusterq_common.progress.console import info
from clusterq_common.run.environment import commit
from clusterq_common.teacher.load import load_teacher
from clusterq_common.teacher.size import sides
from clusterq_common.teacher.spec import InputSpec, TeacherConfig, is_factory
from clusterq_finetune.data.real import open_validation
from clusterq_finetune.evaluation.evaluate import evaluate_models

PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)), "manylinux2014_x86_64", "manylinux1_x86_64"]
LIMIT = 50_000_000
HERE = Path(__file__).resolve().parent

CIFAR = {"input_size": 32, "in_channels": 3}
IMAGENET = {"input_size": 224, "in_channels": 3, "num_classes": 1000, "mean": (0.5,) * 3, "std": (0.5,) * 3}
CIFAR10_SCALE = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
CIFAR100_SCALE = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}
# Name -> architecture, format of its images, and the packed images it is measured on. Its weights are a file of models/.
TEACHERS = {
    "resnet20_cifar10": ("resnet20_cifar10", CIFAR | CIFAR10_SCALE | {"num_classes": 10}, CIFAR10),
    "resnet20_cifar100": ("resnet20_cifar100", CIFAR | CIFAR100_SCALE | {"num_classes": 100}, None),
    "mobilenet_v1_x025": ("models/mobilenet_v1.py:mobilenet_v1_x025", IMAGENET, PHOTOGRAPHS),
    "mobilenet_v1_x075": ("models/mobilenet_v1_x075.py:build", IMAGENET, PHOTOGRAPHS),
}
WEIGHTS = {
    name: f"models/{name}{'_imagenet' if images == PHOTOGRAPHS else ''}.safetensors"
    for name, (_, _, images) in TEACHERS.items()
}


def main(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    python: Annotated[str, typer.Option(help="Python of the other machine, for the wheels.")] = "3.12",
    platform: Annotated[list[str], typer.Option(help="Tags of wheels that it takes; may be given several times.")] = PLATFORMS,
    packages: Annotated[
        str, typer.Option(help="Wheels, with commas between; what an image made for PyTorch lacks, if left out.")
    ] = ",".join(MISSING_ON_GPU_IMAGES),
    all_packages: Annotated[
        bool, typer.Option("--all", help="Wheels of all that clusterq needs to run but torch: 28 MB more, so raise --limit.")
    ] = False,
    no_wheels: Annotated[
        bool, typer.Option("--no-wheels", help="No wheels: the machine has all packages, and a checkout.")
    ] = False,
    photographs: Annotated[int, typer.Option(min=1, help="Their number, at most: of every second one of each class.")] = 500,
    quality: Annotated[int, typer.Option(min=1, max=95, help="Of the photographs' JPEG.")] = 90,
    no_reference: Annotated[bool, typer.Option("--no-reference", help="Do not measure what the classifiers reach.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Bytes of the whole folder; a larger one is not kept.")] = LIMIT,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a pack that is there.")] = False,
) -> None:
    """Make the pack, or nothing."""

    def run() -> None:
        torch.set_num_threads(threads or torch.get_num_threads())
        _refuse_place(out, overwrite=overwrite)
        names = run_time_packages(python) if all_packages else [name for name in packages.split(",") if name]
        versions = {} if no_wheels else pinned(names)
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f"{out.name}.partial-", dir=out.parent))
        try:
            building.chmod(0o755)
            teachers = _add_teachers(building, data_folder())
            if not no_wheels:
                info(f"wheels: clusterq, {', '.join(versions)}")
                _add_wheels(building, versions, python, platform)
            facts = PackFacts(
                commit=commit(),
                python=python,
                platforms=platform,
                packages=versions,
                images=_add_images(building, data_folder(), photographs, quality),
                teachers=teachers,
                files={},
                reference={},
            )
            for name in ("run.sh", "unpack.py"):
                shutil.copy(HERE / name, building / name)
            facts = facts.model_copy(update={"files": _packed_files(building)})
            _write(facts, building)
            _sizes(building, limit)
            if not no_reference:
                facts = facts.model_copy(update={"reference": _references(building)})
                _write(facts, building)
            info(_sizes(building, limit))
            _publish(building, out)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    run_guarded(run, debug=False)


def data_folder() -> Path:
    """Return the folder of real data and models."""
    return Path(os.environ.get("CLUSTERQ_DATA", ROOT.parent / "shared"))


def _refuse_place(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise ClusterqError(
            f"--out: {out} exists, expected a new folder; choose another one, or pass --overwrite to replace the pack."
        )
    if out.exists() and not (out / FACTS).is_file():
        raise ClusterqError(f"--out: {out} is no pack (it has no {FACTS}), so it is not overwritten; choose another folder.")


def _add_wheels(building: Path, versions: dict[str, str], python: str, platforms: list[str]) -> None:
    (building / "wheels").mkdir()
    if versions:
        download(versions, building / "wheels", python, platforms)
    build_own(building / "wheels")


def _add_images(building: Path, data: Path, photographs: int, quality: int) -> dict[str, PackedImages]:
    (building / "images").mkdir()
    cifar = open_folders(data / "data" / "cifar10" / "test", _spec("resnet20_cifar10"))
    real = open_folders(data / "data" / "imagenet-like" / "val", _spec("mobilenet_v1_x025"))
    chosen, size = even_half(real, photographs), with_margin(real.spec.size)
    samples = {
        CIFAR10: (lossless_samples(cifar), "as they are, WebP without loss"),
        PHOTOGRAPHS: (
            photograph_samples(real, chosen, quality),
            f"of every second of each class; resized and cropped to {' x '.join(map(str, sides(size)))}, JPEG of quality {quality}",
        ),
    }
    found = {}
    for name, (of_set, made) in samples.items():
        file = f"images/{name}.tar.xz"
        found[name] = PackedImages(file=file, images=write_tar(building / file, of_set), made=made)
        info(f"{file}: {found[name].images} images, {made}")
    return found


def _add_teachers(building: Path, data: Path) -> dict[str, PackedTeacher]:
    (building / "models").mkdir()
    found = {}
    for name, (arch, flags, images) in TEACHERS.items():
        code = [arch.rpartition(":")[0]] if is_factory(arch) else []
        for file in (WEIGHTS[name], *code):
            if not (data / file).is_file():
                raise ClusterqError(
                    f"CLUSTERQ_DATA: {data / file} does not exist, expected the teacher {name}; set CLUSTERQ_DATA to the folder that holds data/ and models/."
                )
            shutil.copyfile(data / file, building / file)
        found[name] = PackedTeacher(
            settings=TeacherConfig.validated({"arch": arch, "weights": WEIGHTS[name], **flags}), images=images
        )
    return found


def _spec(teacher: str) -> InputSpec:
    _, flags, _ = TEACHERS[teacher]
    words = {"input_size": "size", "in_channels": "channels"}
    return InputSpec.validated({words.get(name, name): value for name, value in flags.items()})


def _references(building: Path) -> dict[str, Reference]:
    found = {}
    with tempfile.TemporaryDirectory(prefix="clusterq-unpacked-") as unpacked:
        pack = Pack.open(building, unpacked=Path(unpacked))
        for name in TEACHERS:
            tar = pack.images_of(name)
            if tar is not None:
                found[name] = measure(pack.teacher(name), tar)
                info(f"{name}: {found[name].top1:.2f} % of {found[name].images} images")
    return found


def measure(config: TeacherConfig, tar: Path) -> Reference:
    """Measure a teacher's accuracy on packed images, on the CPU."""
    teacher = load_teacher(config)
    images = open_validation(tar, teacher.spec)
    result = evaluate_models({"teacher": teacher.model}, images, device=torch.device("cpu"), batch_size=64)["teacher"]
    return Reference(images=result.images, top1=result.top1, top5=result.top5)


def _packed_files(building: Path) -> dict[str, PackedFile]:
    files = {str(path.relative_to(building)): path for path in sorted(building.rglob("*")) if path.is_file()}
    return {name: PackedFile(bytes=path.stat().st_size, sha256=sha256_file(path)) for name, path in files.items()}


def _write(facts: PackFacts, building: Path) -> None:
    (building / FACTS).write_text(facts.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _sizes(building: Path, limit: int) -> str:
    """Return the bytes of each part as text.

    Raises:
        ClusterqError: the sum is above the limit.
    """
    parts: dict[str, int] = {}
    for path in building.rglob("*"):
        if path.is_file():
            part = path.relative_to(building).parts[0]
            parts[part] = parts.get(part, 0) + path.stat().st_size
    total = sum(parts.values())
    shown = ", ".join(f"{part} {size:,}" for part, size in sorted(parts.items()))
    if total > limit:
        raise ClusterqError(
            f"--limit: the pack has {total:,} bytes ({shown}), expected at most {limit:,}; lower --quality or --photographs, take fewer "
            "--packages, or raise --limit."
        )
    return f"{total:,} bytes: {shown}"


def _publish(building: Path, out: Path) -> None:
    """Rename the finished folder to `out`, and delete an earlier one."""
    if not out.exists():
        building.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f"{out.name}.partial-", dir=out.parent))
    out.rename(old / out.name)
    building.rename(out)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
