"""Sets of shards from one's own images, with a teacher's answers to them."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from clusterq_common.errors import ClusterqError
from clusterq_common.images.normalise import normalise, to_array, to_pixels
from clusterq_common.run.environment import commit, device_name, versions
from clusterq_common.shards.digest import encode_samples
from clusterq_common.shards.facts import teacher_facts
from clusterq_common.shards.manifest import GIVEN, Generation, Manifest, Pixels, SplitName, format_for, set_digest
from clusterq_common.shards.sample import Sample
from clusterq_common.shards.verify import verify_set
from clusterq_common.shards.write import Written, samples_per_shard, shard_name, write_manifest, write_shard
from clusterq_common.teacher.load import Teacher

# Images of one batch of the teacher.
CHUNK = 64
# Images of a shard. They wait in memory, encoded, so there are fewer than in a generator's shards.
MOST_WAITING = 128 << 20


class ShardWriter:
    """Writer of a set of shards from your own images, for a `with` block.

    Each image is stored as eight-bit PNG, with the teacher's class, confidence and logits for exactly those pixels. When the block
    ends, the set is verified and its manifest written. If the block fails, the shards are removed. The manifest states that the images
    were given, not made by clusterq.

    Args:
        folder: a new or empty folder. It is made if it is missing.
        teacher: classifier whose answers are stored.
        class_names: by class index.
        license: SPDX identifier or the like.
        note: free text for recipients of the set.
        samples_per_shard: images of a shard. They wait in memory, encoded, until it is full. The default limits that memory.

    Attributes:
        manifest: the manifest of the finished set. It exists once the block has ended.

    Raises:
        ClusterqError: the folder is a file, or not empty.

    Examples:
        >>> import tempfile, torch
        >>> import clusterq as cq
        >>> layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(144, 10)]
        >>> spec = cq.InputSpec(size=8, channels=1, num_classes=10, mean=(0.5,), std=(0.5,))
        >>> teacher = cq.Teacher.of(torch.nn.Sequential(*layers), spec)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with cq.ShardWriter(folder, teacher) as writer:
        ...         writer.add(torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8))
        ...     shards = cq.ShardSet.open(folder)
        ...     len(shards.split("train")), shards.manifest.generation.method
        (20, 'given')
    """

    manifest: Manifest

    def __init__(
        self,
        folder: Path | str,
        teacher: Teacher,
        *,
        class_names: list[str] | None = None,
        license: str | None = None,
        note: str | None = None,
        samples_per_shard: int | None = None,
    ) -> None:
        self.folder, self.teacher = Path(folder), teacher
        self.class_names, self.license, self.note = class_names, license, note
        self.samples_per_shard = samples_per_shard or _samples_per_shard(teacher)
        classes = teacher.spec.num_classes
        if class_names is not None and len(class_names) != classes:
            raise ClusterqError(f"class_names: {len(class_names)} were given, expected {classes}, one for each class.")
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ClusterqError(f"{self.folder} is not empty, expected a new or empty folder; choose another one.")
        self._parts: dict[SplitName, Written] = {}
        self._waiting: dict[SplitName, list[Sample]] = {}
        self._attempts: dict[SplitName, list[int]] = {}
        self._source = hashlib.sha256()
        self._labelled: bool | None = None
        self._agreed = 0
        self._clipped = 0.0
        self._device = next(teacher.model.parameters()).device

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            if not hasattr(self, "manifest"):
                for part in self._parts.values():
                    for shard in part.shards:
                        (self.folder / shard.file).unlink(missing_ok=True)

    def add(self, images: Tensor, labels: Tensor | None = None, *, split: SplitName = "train") -> None:
        """Add some images, in this order.

        Args:
            images: (N, C, H, W), uint8 pixels, or float32 normalised for the teacher, which is rounded to pixels.
            labels: (N,) class indices; the teacher's classes if left out. All images of a set have labels, or none.
            split: `train` for training, or `heldout` for measurement and selection.

        Raises:
            ClusterqError: images or labels have another shape or type, the teacher lacks a class, only some of the set's images have
                labels, or the disk is full.
        """
        spec = self.teacher.spec
        shape = spec.shape
        if images.dim() != 4 or images.shape[1:] != shape or not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise ClusterqError(
                f"images: {tuple(images.shape)} of {images.dtype} were given, expected (N, {', '.join(map(str, shape))}) of pixels in "
                "torch.uint8, or of normalised floats."
            )
        if self._labelled is not None and self._labelled != (labels is not None):
            raise ClusterqError(
                "labels: given for some images and not for others, expected them for all of a set, or for none."
            )
        if labels is not None and (
            labels.shape != images.shape[:1]
            or labels.is_floating_point()
            or not bool(((labels >= 0) & (labels < spec.num_classes)).all())
        ):
            raise ClusterqError(
                f"labels: {tuple(labels.shape)} of {labels.dtype} were given, expected {len(images)} whole numbers below {spec.num_classes}."
            )
        self._labelled = labels is not None
        pixels = images if images.dtype == torch.uint8 else to_pixels(images, spec)
        given = [None] * len(pixels) if labels is None else labels.tolist()
        for start in range(0, len(pixels), CHUNK):
            self._judge(pixels[start : start + CHUNK], given[start : start + CHUNK], split)

    @torch.no_grad()
    def _judge(self, pixels: Tensor, given: list[int] | list[None], split: SplitName) -> None:
        """Ask the teacher about some images; write a shard when it is full."""
        self._clipped += float(((pixels == 0) | (pixels == 255)).float().mean()) * len(pixels)
        images = normalise(pixels.to(self._device), self.teacher.spec).contiguous(memory_format=torch.channels_last)
        logits = self.teacher.model(images).float()
        confidence, top1 = (values.tolist() for values in logits.softmax(1).max(1))
        labels = [seen if label is None else label for seen, label in zip(top1, given, strict=True)]
        encoded = encode_samples(labels, [to_array(image) for image in pixels.cpu()])
        classes = self.teacher.spec.num_classes
        attempts, waiting = self._attempts.setdefault(split, [0] * classes), self._waiting.setdefault(split, [])
        for number, ((png, content), label) in enumerate(zip(encoded, labels, strict=True)):
            answer = logits[number].half().cpu().numpy()
            seen, sure = top1[number], confidence[number]
            waiting.append(Sample(png, content, label, label, 0, attempts[label], seen, sure, answer))
            attempts[label] += 1
            self._agreed += label == seen
            self._source.update(content)
            if len(waiting) == self.samples_per_shard:
                self._write(split)

    def _write(self, split: SplitName) -> None:
        """Write the waiting samples as the split's next shard."""
        classes, waiting = self.teacher.spec.num_classes, self._waiting[split]
        part = self._parts.setdefault(split, Written.nothing(classes))
        name, first = shard_name(split, len(part.shards)), sum(part.per_class)
        part.add(write_shard(self.folder, name, waiting, start_key=first, num_classes=classes))
        waiting.clear()

    def _finish(self) -> None:
        for split, waiting in self._waiting.items():
            if waiting:
                self._write(split)
        manifest = self._described()
        problems = verify_set(self.folder, manifest)
        if problems:
            raise ClusterqError(
                f"{self.folder / problems[0].file}: {problems[0].what}, just after it was written; write the set anew."
            )
        self.manifest = write_manifest(self.folder, manifest)

    def _described(self) -> Manifest:
        splits = {name: part.split() for name, part in self._parts.items()}
        if "train" not in splits:
            raise ClusterqError(f"{self.folder}: no image was added to the split train, expected some to learn from.")
        count = sum(split.samples for split in splits.values())
        # The mean over classes.
        wanted = {name: split.samples // self.teacher.spec.num_classes for name, split in splits.items()}
        generation = Generation(
            method=GIVEN,
            settings={
                "origin": "given to clusterq's ShardWriter; clusterq made none of these images",
                "splits": sorted(splits),
            },
            source=f"sha256:{self._source.hexdigest()}",
            seed=0,
            rounds=[wanted],
            candidates=count,
            rejected=[0] * self.teacher.spec.num_classes,
            teacher_agreement=self._agreed / count,
            labels="asked" if self._labelled else "teacher",
            keep_misclassified=True,
            chunk=CHUNK,
            samples_per_shard=self.samples_per_shard,
            device=device_name(self._device),
            threads=torch.get_num_threads(),
        )
        return Manifest(
            format=format_for(self.teacher.spec),
            digest=set_digest(splits),
            created_by=f"clusterq {version('clusterq')}",
            commit=commit(),
            teacher=teacher_facts(self.teacher),
            class_names=self.class_names,
            license=self.license,
            note=self.note,
            pixels=Pixels(clipped=min(1.0, self._clipped / count)),
            has_logits=True,
            mean_confidence=min(1.0, sum(part.confidence for part in self._parts.values()) / count),
            generation=generation,
            splits=splits,
            versions=versions(),
        )


def _samples_per_shard(teacher: Teacher) -> int:
    spec = teacher.spec
    return max(1, min(samples_per_shard(spec), MOST_WAITING // spec.raw_bytes))
