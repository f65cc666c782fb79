"""manifest.json, the description of a set that its folder holds. Free of torch.

It comes from strangers: everything in it is checked, and nothing in it is ever run or opened as a path outside the folder.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from clusterq_common.documents import LARGEST_JSON, read_json
from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import info
from clusterq_common.quantities import count
from clusterq_common.settings import Settings
from clusterq_common.teacher.spec import InputSpec

FORMAT_NAME: Final = "clusterq-shards"
Format = Literal["clusterq-shards/1", "clusterq-shards/2"]
# Formats by version. Version 2 is written only for images that are not square, since any clusterq reads version 1.
FORMATS: Final[tuple[Format, ...]] = ("clusterq-shards/1", "clusterq-shards/2")
MANIFEST = "manifest.json"
MEANING: Final = "meaning"
# Name of the method for images that clusterq did not make.
GIVEN: Final = "given"
LARGEST_MANIFEST = LARGEST_JSON
# Manifests without a digest of their own that this process has warned of.
_said_of: set[str] = set()
SHOWN_CLASSES = 8
SHARD_NAME = re.compile(r"synth-(train|heldout)-[0-9]{6}\.tar")

SplitName = Literal["train", "heldout"]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


def _shard_name(name: str) -> str:
    if not SHARD_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no shard name, expected synth-train-000000.tar or the like")
    return name


class Shard(Settings):
    """One tar file."""

    file: Annotated[str, AfterValidator(_shard_name)] = Field(description="synth-SPLIT-NUMBER.tar, beside the manifest")
    bytes: Count = Field(description="size of the file")
    samples: int = Field(ge=1, description="samples in it")
    sha256: Sha256 = Field(description="SHA-256 of the file")
    content: Sha256 = Field(description="SHA-256 over labels and decoded pixels: the same for every encoding of the images")


class Split(Settings):
    """Split of a set: `train` for training, `heldout` for measurement and selection."""

    samples: Count = Field(description="samples in all its shards")
    per_class: list[Count] = Field(description="samples by class index")
    shards: list[Shard] = Field(description="its tar files, in order")

    @model_validator(mode="after")
    def _sums(self) -> "Split":
        if self.samples != sum(self.per_class) or self.samples != sum(shard.samples for shard in self.shards):
            raise ValueError("the counts of a split, of its classes and of its shards do not add up")
        return self


class TeacherFacts(Settings):
    """The classifier the images were made for."""

    arch: str = Field(description="pytorchcv name; of a factory file.py:function, for information: no code is loaded by it")
    is_factory: bool = Field(description="true if arch names someone's own factory")
    digest: Digest = Field(description="SHA-256 over names, shapes, dtypes and bytes of all weights and buffers")
    parameters: Count = Field(description="number of weights")
    batchnorm_layers: Count = Field(description="BatchNorm layers that the generator was matched to")
    spec: InputSpec = Field(description="image size, channels, classes and normalisation")


class Pixels(Settings):
    """Storage of the images."""

    encoding: Literal["png"] = Field("png", description="lossless, one channel (L) or three (RGB)")
    bits: Literal[8] = Field(8, description="bits of each channel")
    clipped: Share = Field(description="share of pixel values at an end of the range, where the generator may have wanted more")


class Generation(Settings):
    """Origin of the images: a generator, or another source."""

    method: str = Field(description=f"name of the method; {GIVEN} where someone gave the images and clusterq drew none")
    settings: dict[str, Any] = Field(description="every hyperparameter of the run")
    source: Digest = Field(
        description="of what the images came from: the generator's weights, the files of a bank of images, or images that were given"
    )
    seed: Count = Field(
        description="seed of the candidates: noise is a function of (seed, class, attempt); of a bank, the seed it was made with; 0 for "
        "given images"
    )
    rounds: list[dict[SplitName, Count]] = Field(
        min_length=1,
        description="images asked for of each class, by split: at first, and after each extension; on average over classes where the "
        "labels of a bank are the teacher's own",
    )
    candidates: Count = Field(description="images drawn in all, or taken from a bank")
    rejected: list[Count] = Field(
        description="by class, candidates dropped because the teacher took them for another class, or for one that had enough"
    )
    teacher_agreement: Share = Field(description="share of the candidates in which the teacher saw the class asked for")
    labels: Literal["asked", "teacher"] = Field(
        "asked", description="asked: the classes that images were made for; teacher: its own top-1, whatever was asked for"
    )
    keep_misclassified: bool = Field(description="true if disagreeing images were kept")
    chunk: int = Field(ge=1, description="candidates that went through the networks together")
    samples_per_shard: int = Field(ge=1, description="slots of a shard")
    device: str = Field(description="device of the networks")
    threads: int = Field(ge=1, description="CPU threads of the networks")


class Derivation(Settings):
    """Origin of a set made from others: `merge`, `subset` or `repair`."""

    operation: Literal["merge", "subset", "repair"] = Field(description="operation")
    inputs: list[Digest] = Field(description="digests of the sets it was done to")
    settings: dict[str, Any] = Field(description="and how")


class Parent(Settings):
    """A set that images of this one come from, directly or through others."""

    digest: Digest
    created_by: str
    samples: Count
    generation: Generation | None
    derivation: Derivation | None


class Manifest(Settings):
    """Content of manifest.json."""

    format: Format = Field(description="name and version of the format; 1: images are square")
    digest: Digest = Field(description="of the whole set: every split's labels and pixels, whatever the order of files on disk")
    created_by: str = Field(description="program and version")
    commit: str | None = Field(description="git commit of the program, where it ran from a checkout")
    teacher: TeacherFacts
    class_names: list[str] | None = Field(None, description="names by class index")
    pixels: Pixels
    has_logits: bool = Field(description="true if samples hold the teacher's logits")
    mean_confidence: Share = Field(description="of the teacher in its top-1, over all samples")
    generation: Generation | None = Field(None, description="for a set that a source made")
    derivation: Derivation | None = Field(None, description="for a set that was made from others")
    parents: list[Parent] = Field(default_factory=list, description="sets that a derived set's images come from")
    splits: dict[SplitName, Split]
    license: str | None = Field(None, description="SPDX identifier or the like, as its makers say")
    note: str | None = Field(None, description="free text")
    versions: dict[str, str] = Field(description="of Python and of the packages that results depend on")
    meaning: Digest | None = Field(
        None,
        description="SHA-256 over everything else in this file, as JSON with sorted keys and without spaces; earlier versions wrote none",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if self.format == FORMATS[0] and not self.teacher.spec.square:
            raise ValueError(f"{self.format} holds square images alone, but these have {self.teacher.spec.shown_size} pixels")
        classes = self.teacher.spec.num_classes
        lists = [split.per_class for split in self.splits.values()]
        lists += [self.generation.rejected] if self.generation else []
        if any(len(counts) != classes for counts in lists):
            raise ValueError(f"a list of counts does not have one entry for each of the {classes} classes")
        if self.class_names is not None and len(self.class_names) != classes:
            raise ValueError(f"there are {len(self.class_names)} class names for {classes} classes")
        names = [shard.file for split in self.splits.values() for shard in split.shards]
        if len(set(names)) != len(names):
            raise ValueError("a shard is listed twice")
        for name, split in self.splits.items():
            if any(not shard.file.startswith(f"synth-{name}-") for shard in split.shards):
                raise ValueError(f"a shard of another split is listed in {name}")
        if "train" not in self.splits:
            raise ValueError("there is no train split")
        if (self.generation is None) == (self.derivation is None):
            raise ValueError("a set has either a generation or a derivation")
        if self.digest != set_digest(self.splits):
            raise ValueError("the digest is not that of the listed shards")
        return self

    def missing(self, split: SplitName) -> list[int]:
        """Return how many of the requested images were not made, by class.

        Zeros where no number was asked for of each class: in derived and given sets, and where the labels are the teacher's own.
        """
        present, made = self.splits[split].per_class, self.generation
        if made is None or made.method == GIVEN or made.labels == "teacher":
            return [0] * len(present)
        return [max(0, made.rounds[-1].get(split, 0) - images) for images in present]


def short_classes(missing: list[int]) -> str | None:
    """Describe the classes that lack images: `2 classes got fewer images than wanted: 0 (1 missing), 7 (3 missing)`.

    Args:
        missing: number of missing images by class; None is returned where all are zero.
    """
    short = [f"{label} ({images} missing)" for label, images in enumerate(missing) if images]
    if not short:
        return None
    more = ", ..." if len(short) > SHOWN_CLASSES else ""
    return f"{count(len(short), 'class', 'classes')} got fewer images than wanted: {', '.join(short[:SHOWN_CLASSES])}{more}"


def format_for(spec: InputSpec) -> Format:
    """Return the oldest version of the format that can hold such images."""
    return FORMATS[0] if spec.square else FORMATS[1]


def set_digest(splits: dict[SplitName, Split]) -> str:
    """Compute `sha256:` over each split's name and its shards' sorted content digests. Names of files do not count."""
    lines = sorted(f"{name} {shard.samples} {shard.content}" for name, split in splits.items() for shard in split.shards)
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def meaning_of(values: dict[str, Any]) -> str:
    """Compute `sha256:` over a manifest's values but this digest, whatever the order and layout of its JSON.

    Over the values as they stand in the file: fields that later versions add with a default do not change it.
    """
    stated = {name: value for name, value in values.items() if name != MEANING}
    text = json.dumps(stated, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and check a folder's manifest.

    Raises:
        ClusterqError: there is none, or it is too large, no JSON, of another format, inconsistent, or not as it was written.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ClusterqError(
            f"{folder} holds no {MANIFEST}, expected a finished set of shards (it is written last); run `clusterq-gen emit`.",
            setting="shards",
        )
    try:
        values = read_json(path, what=f"a {MANIFEST}", largest=LARGEST_MANIFEST)
    except ClusterqError as error:
        raise ClusterqError(f"{error}", setting="shards") from error
    return parse_manifest(values, str(path))


def parse_manifest(values: Any, path: str) -> Manifest:
    """Check the values of a manifest that lies, or lay, at `path` (a file or an address, for errors).

    Raises:
        ClusterqError: of another format, inconsistent, or not as it was written.
    """
    _check_format(path, values.get("format") if isinstance(values, dict) else None)
    manifest = Manifest.validated(values, source=path)
    if manifest.meaning is None:
        if path not in _said_of:
            _said_of.add(path)
            info(
                f"Note: {path} has no digest of its own, as earlier versions wrote it: changes in what it says cannot be seen."
            )
    elif manifest.meaning != meaning_of(values):
        raise ClusterqError(
            f"{path} was changed after it was written: its digest of itself is {manifest.meaning[:19]}..., expected "
            f"{meaning_of(values)[:19]}...; get the set again.",
            setting="shards",
        )
    return manifest


def _check_format(path: str, declared: object) -> None:
    if declared in FORMATS:
        return
    version = re.fullmatch(rf"{FORMAT_NAME}/([0-9]{{1,6}})", declared) if isinstance(declared, str) else None
    if version and int(version[1]) > len(FORMATS):
        raise ClusterqError(
            f"{path} has format {declared!r}, this clusterq reads up to {FORMATS[-1]!r}; update clusterq, or ask for the set in "
            "that format.",
            setting="shards",
        )
    shown = repr(declared)[:60]
    raise ClusterqError(
        f"{path} has format {shown}, expected {FORMATS[0]!r} or {FORMATS[1]!r}; it is no manifest of clusterq's shards.",
        setting="shards",
    )
