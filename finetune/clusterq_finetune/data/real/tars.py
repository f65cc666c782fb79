"""Images inside tars: ImageNet's original archive with the devkit's ground truth, and webdataset shards of anyone's."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from clusterq_common.archives.tar import BLOCK, Member, TarFormatError, TarHeaders, shortened
from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.real.base import ValidationImages
from clusterq_finetune.data.real.devkit import GROUND_TRUTH, read_devkit, wnid_of_number
from clusterq_finetune.data.real.files import EXTENSIONS
from clusterq_finetune.data.real.labels import imagenet_wnids
from clusterq_finetune.data.real.opening import open_image
from clusterq_finetune.data.real.remarks import Remark

IMAGE_SUFFIXES = {extension.removeprefix(".") for extension in EXTENSIONS}
# A number with room for spaces around it.
LARGEST_LABEL = 20
# An image in a tar is refused above this before it is read.
LARGEST_MEMBER = 256 << 20


@dataclass(frozen=True)
class Span:
    """Place of an image: `size` bytes from `offset` of a tar."""

    tar: Path
    name: str
    offset: int
    size: int


class ImagesInTars(ValidationImages):
    """Images read directly from their tars, without unpacking to disk."""

    def __init__(self, root: Path, layout: str, spans: list[Span], labels: list[int], spec: InputSpec) -> None:
        super().__init__(root, layout, labels, spec)
        self.spans = spans

    def name(self, index: int) -> str:
        span = self.spans[index]
        return f"{span.tar.name}/{span.name}"

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        span = self.spans[index]
        with span.tar.open("rb") as file:
            file.seek(span.offset)
            return open_image(file.read(span.size))


def open_imagenet_tar(path: Path, spec: InputSpec) -> ImagesInTars:
    """Open `ILSVRC2012_img_val.tar`, with the devkit beside it: `ILSVRC2012_devkit_t12.tar.gz`, or unpacked.

    The devkit numbers classes in its own way; its `meta.mat` says which wnid a number means (scipy reads it).

    Raises:
        ClusterqError: no devkit, no scipy, or a devkit that does not fit the images.
    """
    wnids = imagenet_wnids(spec)
    members = {}
    for member in _members(path):
        if member.name.lower().endswith((".jpeg", ".jpg")):
            members[Path(member.name).name] = member
    truth_text, meta = read_devkit(path.parent)
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
    names = wnid_of_number(meta)
    index = {wnid: label for label, wnid in enumerate(wnids)}
    unknown = next((number for number in truth if names.get(number) not in index), None)
    if unknown is not None:
        raise ClusterqError(f"the devkit's class {unknown} is none of ImageNet's 1000; get the devkit again.", setting="val")
    ordered = sorted(members)
    spans = [Span(path, name, members[name].offset, members[name].size) for name in ordered]
    return ImagesInTars(path, "ImageNet's tar with the devkit", spans, [index[names[number]] for number in truth], spec)


def open_webdataset(path: Path, tars: list[Path], spec: InputSpec) -> ImagesInTars:
    """Open webdataset tars with an image (`.jpg`, `.png`, ...) and a class index (`.cls`) for each key. Other members are ignored.

    Raises:
        ClusterqError: an image without a label, a label without an image or out of range, two of either for one key, or no sample at all.
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
            kind = images if suffix.lower() in IMAGE_SUFFIXES else classes if suffix == "cls" else None
            if kind is not None:
                if (first := kind.setdefault(f"{folder}/{key}", span)) is not span:
                    raise ClusterqError(
                        f"{tar} has two members for one key, {shortened(first.name)} and {shortened(span.name)}, expected an image and a "
                        ".cls for each key; mend the tar.",
                        setting="val",
                    )
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
                file_handle.seek(classes[key].offset)
                text = file_handle.read(min(classes[key].size, LARGEST_LABEL)).strip()
                if not text.isdigit() or int(text) >= spec.num_classes or classes[key].size > LARGEST_LABEL:
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
    beside = sorted({entry.name for entry in path.iterdir()} - {tar.name for tar in tars}) if path.is_dir() else []
    if beside:
        images_in_tars.remarks.append(Remark.of("files and folders beside the tars, skipped", beside))
    return images_in_tars


def _members(path: Path) -> list[Member]:
    """Return all files in a tar, from the headers alone.

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
