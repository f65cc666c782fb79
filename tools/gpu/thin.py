"""Selection of a few images from a packed tar, for rehearsals."""

import tarfile
from pathlib import Path


def thinned(tar: Path, count: int, folder: Path) -> Path:
    """Copy about `count` samples, evenly spread, into a tar of the same name in `folder`. Returns its path."""
    target = folder / tar.name
    with tarfile.open(tar, "r:") as source, tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as few:
        members = source.getmembers()
        # An image is followed by its label.
        pairs = list(zip(members[::2], members[1::2], strict=True))
        for pair in pairs[:: max(1, len(pairs) // count)]:
            for member in pair:
                few.addfile(member, source.extractfile(member))
    return target
