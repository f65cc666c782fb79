"""Real images as compressed webdataset tars: CIFAR-10's test set unchanged, photographs at the size from which evaluation crops."""

import io
import lzma
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from PIL import Image

from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.size import Size, parse_size
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.preprocess import covered, preprocess
from clusterq_finetune.data.real import ValidationImages, open_validation

# Lossless WebP is a fifth smaller than PNG. More effort takes thirty times as long and gains nothing at 32 x 32.
LOSSLESS = {"format": "WEBP", "lossless": True, "quality": 100, "method": 4}
# JPEG with colours at half the resolution would be a fifth smaller, but costs classifiers two points more.
FULL_COLOUR = {"format": "JPEG", "subsampling": 0, "optimize": True}
# One image and its label: name without suffix, suffix, bytes, class.
Sample = tuple[str, str, bytes, int]


def open_folders(path: Path, spec: InputSpec) -> ValidationImages:
    """Open class folders of the data folder.

    Raises:
        ClusterqError: the folders are missing, or have no images for this many classes.
    """
    if not path.is_dir():
        raise ClusterqError(
            f"CLUSTERQ_DATA: {path} does not exist, expected class folders of images; set CLUSTERQ_DATA to the folder that holds data/ and models/."
        )
    return open_validation(path, spec)


def lossless_samples(images: ValidationImages) -> Iterator[Sample]:
    """Yield every image as lossless WebP."""
    for index, label in enumerate(images.labels):
        with images.open(index) as image:
            pixels = image.convert("RGB")
        buffer = io.BytesIO()
        pixels.save(buffer, **LOSSLESS)
        if Image.open(buffer).convert("RGB").tobytes() != pixels.tobytes():
            raise AssertionError(f"{images.name(index)} changed on its way into WebP")
        yield _key(images.name(index)), "webp", buffer.getvalue(), label


def even_half(images: ValidationImages, count: int) -> list[int]:
    """Return every second image of each class in sorted order, from the first; at most `count` of these, evenly spread."""
    seen: dict[int, int] = {}
    even = []
    for index, label in enumerate(images.labels):
        if seen.get(label, 0) % 2 == 0:
            even.append(index)
        seen[label] = seen.get(label, 0) + 1
    count = min(count, len(even))
    return [even[number * len(even) // count] for number in range(count)]


def photograph_samples(images: ValidationImages, chosen: Iterable[int], quality: int) -> Iterator[Sample]:
    """Yield photographs as JPEG, resized as in evaluation, with the margin that evaluation crops away.

    Evaluation does not resize them again: the network sees the same crop of the same resized photograph, except for the JPEG.
    """
    margin, geometry = with_margin(images.spec.size), known_geometry(images.spec.size).model_copy(update={"crop_pct": 1.0})
    spec = images.spec.model_copy(update={"size": margin})
    for index in chosen:
        with images.open(index) as image:
            pixels = preprocess(image, spec, geometry)
        buffer = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, **FULL_COLOUR, quality=quality)
        yield _key(images.name(index)), "jpg", buffer.getvalue(), images.labels[index]


def with_margin(size: Size) -> Size:
    """Return the size from whose centre evaluation crops images of `size`: 256 for 224."""
    share = known_geometry(size).crop_pct
    return size if share is None else parse_size(covered(size, share))


def write_tar(path: Path, samples: Iterable[Sample]) -> int:
    """Write a webdataset tar compressed as .xz, with the same bytes for the same samples. Returns the number of samples.

    Headers and padding make up most of a tar of small images, and compress to almost nothing.
    """
    count = 0
    with lzma.open(path, "wb", preset=6) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, suffix, data, label in samples:
            for name, content in ((f"{key}.{suffix}", data), (f"{key}.cls", str(label).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            count += 1
    return count


def _key(name: str) -> str:
    """Return class/name without dots in the name, because readers end the key at the first dot."""
    path = PurePosixPath(name)
    return f"{path.parent}/{path.stem.replace('.', '-')}"
