"""Images inside tars: ImageNet's original archive with the devkit's ground truth, and webdataset shards of anyone's."""

import gzip
import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from clusterq_common.errors import ClusterqError
from clusterq_common.tar import BLOCK, Member, TarFormatError, TarHeaders, member_bytes, shortened
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.real.base import ValidationImages
from clusterq_finetune.data.real.labels import imagenet_wnids
from clusterq_finetune.data.real.remarks import Remark

IMAGE_SUFFIXES = {"png", "jpg", "jpeg", "webp"}
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
# An image in a tar is refused above this before it is read.
LARGEST_MEMBER = 256 << 20
# Ten times the devkit, unpacked.
LARGEST_DEVKIT = 64 << 20


@dataclass(frozen=True)
class Span:
    """Place of an image: `size` bytes from `offset` of a tar."""

    tar: Path
    name: str
    offset: int
    size: int


class ImagesInTars(ValidationImages):
    """Images read from where they lie in their tars; nothing is unpacked to disk."""

    def __init__(self, root: Path, layout: str, spans: list[Span], labels: list[int], spec: InputSpec) -> None:
        super().__init__(root, layout, labels, spec)
        self.spans = spans

    def name(self, index: int) -> str:
        span = self.spans[index]
        return f"{span.tar.name}/{span.name}"

    def open(self, index: int) -> Image.Image:
        span = self.spans[index]
        with span.tar.open("rb") as file:
            return Image.open(io.BytesIO(os.pread(file.fileno(), span.size, span.offset)))


def open_imagenet_tar(path: Path, spec: InputSpec) -> ImagesInTars:
    """`ILSVRC2012_img_val.tar`, with the devkit beside it: `ILSVRC2012_devkit_t12.tar.gz`, or unpacked.

    The devkit numbers classes in its own way; its `meta.mat` says which wnid a number means (scipy reads it).

    Raises:
        ClusterqError: no devkit, no scipy, or a devkit that does not fit the images.
    """
    wnids = imagenet_wnids(spec)
    members = {}
    for member in _members(path):
        if member.name.lower().endswith((".jpeg", ".jpg")):
            members[Path(member.name).name] = member
    truth_text, meta = _devkit(path.parent)
    try:
        truth = [int(line) for line in truth_text.split()]
    except ValueError as error:
        raise ClusterqError(
            f"{GROUND_TRUTH} beside {path} does not hold numbers; get the devkit again.", setting="val"
        ) from error
    if len(truth) != len(members) or not members:
        raise ClusterqError(
            f"{path} holds {len(members)} images, the devkit's ground truth {len(truth)} lines; expected one for each, get "
            "both again.",
            setting="val",
        )
    names = _wnid_of_number(meta)
    index = {wnid: label for label, wnid in enumerate(wnids)}
    unknown = next((number for number in truth if names.get(number) not in index), None)
    if unknown is not None:
        raise ClusterqError(f"the devkit's class {unknown} is none of ImageNet's 1000; get the devkit again.", setting="val")
    ordered = sorted(members)
    spans = [Span(path, name, members[name].offset, members[name].size) for name in ordered]
    return ImagesInTars(path, "ImageNet's tar with the devkit", spans, [index[names[number]] for number in truth], spec)


def open_webdataset(path: Path, tars: list[Path], spec: InputSpec) -> ImagesInTars:
    """webdataset tars with an image (`.jpg`, `.png`, `.webp`) and a class index (`.cls`) for each key. Nothing else is looked at.

    Raises:
        ClusterqError: an image without a label, a label without an image or out of range, or no sample at all.
    """
    spans: list[Span] = []
    labels: list[int] = []
    skipped: list[str] = []
    for tar in tars:
        images: dict[str, Span] = {}
        classes: dict[str, Span] = {}
        for member in _members(tar):
            folder, _, file = member.name.rpartition("/")
            key, _, suffix = file.partition(".")
            span = Span(tar, member.name, member.offset, member.size)
            if suffix.lower() in IMAGE_SUFFIXES:
                images[f"{folder}/{key}"] = span
            elif suffix == "cls":
                classes[f"{folder}/{key}"] = span
            elif member.plain and suffix.rpartition(".")[2].lower() in {*IMAGE_SUFFIXES, "cls"}:
                skipped.append(f"{tar.name}/{member.name}")
        lonely = next(iter(images.keys() ^ classes.keys()), None)
        if lonely is not None:
            missing = "image" if lonely in classes else "label (.cls)"
            raise ClusterqError(
                f"sample {lonely.lstrip('/')} of {tar} has no {missing}, expected both; mend the tar.", setting="val"
            )
        with tar.open("rb") as file_handle:
            for key, span in images.items():
                text = os.pread(file_handle.fileno(), min(classes[key].size, 20), classes[key].offset).strip()
                if not text.isdigit() or int(text) >= spec.num_classes:
                    raise ClusterqError(
                        f"sample {key.lstrip('/')} of {tar} has label {text!r}, expected a number below {spec.num_classes}; mend it.",
                        setting="val",
                    )
                spans.append(span)
                labels.append(int(text))
    if not spans:
        raise ClusterqError(
            f"the {len(tars)} tars of {path} hold no sample with an image and a .cls; check the path.", setting="val"
        )
    images_in_tars = ImagesInTars(path, "webdataset tars", spans, labels, spec)
    if skipped:
        what = "members with dots in their keys, skipped (webdataset ends a key at its first dot)"
        images_in_tars.remarks.append(Remark.of(what, skipped))
    return images_in_tars


def _members(path: Path) -> list[Member]:
    """All files in a tar, found by their headers alone.

    Raises:
        ClusterqError: it is no plain tar, or one of its members is absurdly large.
    """
    try:
        with path.open("rb", buffering=BLOCK) as file:
            members = [member for member in TarHeaders(file, extended=True) if member.plain]
    except TarFormatError as error:
        raise ClusterqError(
            f"{path} is no readable tar ({error}), expected an uncompressed one; get it again.", setting="val"
        ) from error
    large = next((member for member in members if member.size > LARGEST_MEMBER), None)
    if large is not None:
        raise ClusterqError(
            f"{shortened(large.name)} in {path} has {large.size} bytes, expected an image; do not use it.", setting="val"
        )
    return members


def _devkit(folder: Path) -> tuple[str, bytes]:
    """The ground truth and meta.mat, from the devkit's archive or from its unpacked folder."""
    archives = sorted(folder.glob("ILSVRC2012_devkit*.tar.gz"))
    if archives:
        truth, meta = _devkit_files(archives[0])
        if truth is not None and meta is not None:
            return truth.decode("ascii", "replace"), meta
    for truth_path in sorted(folder.glob(f"**/{GROUND_TRUTH}")):
        meta_path = truth_path.parent / "meta.mat"
        if meta_path.is_file():
            return truth_path.read_text(encoding="ascii", errors="replace"), meta_path.read_bytes()
    raise ClusterqError(
        f"there is no devkit in {folder}, expected ILSVRC2012_devkit_t12.tar.gz beside the images; get it, or sort the images "
        "into class folders.",
        setting="val",
    )


def _devkit_files(archive: Path) -> list[bytes | None]:
    """The ground truth and meta.mat in the devkit's archive."""
    try:
        with gzip.open(archive) as file:
            data = file.read(LARGEST_DEVKIT + 1)
        if len(data) > LARGEST_DEVKIT:
            raise TarFormatError(f"it unpacks to more than {LARGEST_DEVKIT} bytes")
        return member_bytes(data, GROUND_TRUTH, "meta.mat")
    except (TarFormatError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ClusterqError(f"{archive} is no readable devkit ({error}); get the devkit again.", setting="val") from error


def _wnid_of_number(meta: bytes) -> dict[int, str]:
    """The devkit's class numbers, by its table of synsets."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ClusterqError(
            "the devkit's meta.mat is read with scipy, which is not installed; pip install scipy.", setting="val"
        ) from error
    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        return {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets}
    except Exception as error:  # loadmat raises anything on a broken file
        raise ClusterqError(
            f"the devkit's meta.mat cannot be read ({type(error).__name__}); get the devkit again.", setting="val"
        ) from error
