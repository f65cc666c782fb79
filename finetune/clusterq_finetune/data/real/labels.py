"""Classes by name."""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.real.remarks import Remark

NUMBERS = re.compile(r"(\d+)")
WNID = re.compile(r"n\d{8}")
IMAGENET_CLASSES = 1000
NAMES_SHOWN = 3


def imagenet_wnids(spec: InputSpec | None = None) -> list[str]:
    """Return the 1000 wnids of ImageNet-1k in index order.

    Raises:
        ClusterqError: the teacher of `spec` has another number of classes.
    """
    if spec is not None and spec.num_classes != IMAGENET_CLASSES:
        raise ClusterqError(
            f"these are ImageNet's images of {IMAGENET_CLASSES} classes, the teacher has {spec.num_classes}; pass images of its own.",
            setting="val",
        )
    return (files("clusterq_finetune") / "tables" / "imagenet_wnids.txt").read_text(encoding="ascii").split()


def class_index(names: list[str], having: str, what: str, spec: InputSpec, classes: Path | None) -> dict[str, int]:
    """Class index by name.

    wnids (`n01440764`) get ImageNet's index from the full list of 1000, also when classes are missing. Other names are classes in
    sorted order, and must then all be there. `classes`, a file with one name a line in index order, settles any other case.

    Args:
        names: the names that occur.
        having, what: for the errors, e.g. "data/ has" and "class folders".

    Raises:
        ClusterqError: names that do not fit the teacher.
    """
    if classes is not None:
        known = _read_classes(classes, spec)
    elif spec.num_classes == IMAGENET_CLASSES and any(WNID.fullmatch(name) for name in names):
        known = imagenet_wnids()
    elif len(names) == spec.num_classes:
        known = sorted(names)
    else:
        raise ClusterqError(
            f"{having} {len(names)} {what}, expected the teacher's {spec.num_classes} classes; pass {setting_name('classes', 'FILE')} "
            "with one name a line in index order.",
            setting="val",
        )
    index = {name: number for number, name in enumerate(known)}
    unknown = [name for name in names if name not in index]
    if unknown:
        shown = ", ".join(unknown[:NAMES_SHOWN])
        raise ClusterqError(
            f"{having} {len(unknown)} {what} that are not in the class list ({shown}), expected names such as "
            f"{known[0]}; rename or remove them, or pass {setting_name('classes', 'FILE')}.",
            setting="val",
        )
    return index


def order_remark(names: Sequence[str]) -> Remark | None:
    """Remark on names that sort otherwise by number than letter by letter: 0, 1, 10, 2."""

    def by_numbers(name: str) -> list[int | str]:
        return [int(part) if part.isdecimal() else part for part in NUMBERS.split(name)]

    if list(names) == sorted(names, key=by_numbers):
        return None
    what = f"class folders taken in alphabetical order, as torchvision does, which is not the order of their numbers (see {setting_name('classes')})"
    return Remark.of(what, [f"class {number}: {name}" for number, name in enumerate(names)])


def other_order_remark(names: Sequence[str], known: Sequence[str] | None) -> Remark | None:
    """Remark on class folders that are the classes of a set, in another order than the set's."""
    if not known or list(names) == list(known) or sorted(names) != sorted(known):
        return None
    what = f"classes that the shards' manifest has at other numbers than their folders (see {setting_name('classes')})"
    pairs = zip(names, known, strict=True)
    return Remark.of(what, [f"class {number}: {own}, not {other}" for number, (own, other) in enumerate(pairs) if own != other])


def _read_classes(path: Path, spec: InputSpec) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterqError(
            f"{path} cannot be read ({type(error).__name__}); expected one name a line.", setting="classes"
        ) from error
    if len(names) != spec.num_classes or len(set(names)) != len(names):
        raise ClusterqError(
            f"{path} has {len(set(names))} distinct names on {len(names)} lines, expected {spec.num_classes}; one for "
            "each class of the teacher, in index order.",
            setting="classes",
        )
    return names
