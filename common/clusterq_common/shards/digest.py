"""Digests of samples: of the label and the pixels, however they are encoded. Free of torch."""

import hashlib

from clusterq_common.images import png
from clusterq_common.images.png import Array


def sample_digest(label: int, pixels: Array) -> bytes:
    """SHA-256 (32 bytes) of a label and an image (H, W, C) uint8, sizes included."""
    header = f"{label} {' '.join(map(str, pixels.shape))}\n".encode()
    return hashlib.sha256(header + pixels.tobytes()).digest()


class ContentDigest:
    """The digest of a shard's samples, in their order: SHA-256 over their digests."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, sample: bytes) -> None:
        """Take in the next sample's digest."""
        self._hash.update(sample)

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return self._hash.hexdigest()


def encode_samples(labels: list[int], images: list[Array]) -> list[tuple[bytes, bytes]]:
    """PNG bytes and sample digest of each (H, W, C) image: the work of an encoding process."""
    return [(png.encode(image), sample_digest(label, image)) for label, image in zip(labels, images, strict=True)]
