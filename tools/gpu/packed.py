"""Reading of a pack made by pack.py: its images, its teachers, and their reference accuracies.

pack = Pack.open(Path(".gpu"))
teacher = load_teacher(pack.teacher("resnet20_cifar10"))
images = open_validation(pack.cifar10, teacher.spec)
pack.reference["resnet20_cifar10"].top1
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from unpack import PackError, check, place_of, read_facts, unpack_images

from clusterq_common.errors import ClusterqError
from clusterq_common.settings import Settings
from clusterq_common.teacher.spec import TeacherConfig, is_factory

CIFAR10, PHOTOGRAPHS = "cifar10", "photographs"


class PackedFile(Settings):
    """Size and SHA-256 (hexadecimal) of one file."""

    bytes: int
    sha256: str


class PackedImages(Settings):
    """A compressed webdataset tar of images with labels, and a description of its making."""

    file: str
    images: int
    made: str


class PackedTeacher(Settings):
    """A teacher's settings, with paths relative to the pack, and the name of the packed images for it, if any."""

    settings: TeacherConfig
    images: str | None


class Reference(Settings):
    """Reference accuracy of a teacher in float32 on a CPU, on its packed images: percent, and the number of images."""

    images: int
    top1: float
    top5: float


class PackFacts(Settings):
    """Contents of pack.json.

    Attributes:
        commit: commit of the checkout that made the pack, with `+` for local changes.
        python, platforms, packages: targets of the wheels; name -> version of each.
        files: all other files in the pack, by relative path.
        images, teachers, reference: entries by name.
    """

    commit: str | None
    python: str
    platforms: list[str]
    packages: dict[str, str]
    files: dict[str, PackedFile]
    images: dict[str, PackedImages]
    teachers: dict[str, PackedTeacher]
    reference: dict[str, Reference]


@dataclass(frozen=True)
class Pack:
    """A pack on disk, checked and with its images unpacked.

    Attributes:
        folder: the pack.
        facts: contents of its pack.json.
        tars: the unpacked tars by name, each for `open_validation` or `--val`.
    """

    folder: Path
    facts: PackFacts
    tars: dict[str, Path]

    @classmethod
    def open(cls, folder: Path, *, unpacked: Path | None = None) -> Self:
        """Check all files, and unpack the images if that has not been done.

        Args:
            folder: folder made by pack.py.
            unpacked: folder for the images; run.sh's default if left out.

        Raises:
            ClusterqError: the folder is no pack, or the pack is damaged or cannot be unpacked.
        """
        folder = folder.resolve()
        try:
            facts = PackFacts.validated(read_facts(folder), source=str(folder / "pack.json"))
            check(folder)
            return cls(folder, facts, unpack_images(folder, unpacked or place_of(folder)))
        except PackError as error:
            raise ClusterqError(f"--pack: {error}") from error

    @property
    def cifar10(self) -> Path:
        """Path of the CIFAR-10 test images, lossless."""
        return self.tars[CIFAR10]

    @property
    def photographs(self) -> Path:
        """Path of photographs with ImageNet's labels, resized so that the usual evaluation (resize 256, crop 224) only crops."""
        return self.tars[PHOTOGRAPHS]

    @property
    def reference(self) -> dict[str, Reference]:
        """Reference accuracy of each teacher on its images; empty where the pack was made without."""
        return self.facts.reference

    def teacher(self, name: str) -> TeacherConfig:
        """Return a teacher's settings for `load_teacher`.

        The teachers are resnet20_cifar10, resnet20_cifar100, mobilenet_v1_x025 and mobilenet_v1_x075.

        Raises:
            ClusterqError: the pack has no teacher of that name.
        """
        if name not in self.facts.teachers:
            raise ClusterqError(
                f"--pack: {self.folder} has no teacher {name!r}, expected one of {', '.join(self.facts.teachers)}."
            )
        settings = self.facts.teachers[name].settings
        arch = str(self.folder / settings.arch) if is_factory(settings.arch) else settings.arch
        return settings.model_copy(update={"arch": arch, "weights": str(self.folder / str(settings.weights))})

    def images_of(self, name: str) -> Path | None:
        """Return the tar of images for a teacher's accuracy; None where the pack has none for it."""
        images = self.facts.teachers[name].images
        return None if images is None else self.tars[images]
