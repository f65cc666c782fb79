"""Digests of samples: of the label and the pixels, however they are encoded. Free of torch."""

import hashlib

from clusterq_common.images import png
from clusterq_common.images.png import Array


def sample_digest(label: int, pixels: Array) -> bytes:
    """Compute the SHA-256 (32 bytes) of a label and an image (H, W, C) uint8, sizes included."""
    header = f"{label} {' '.join(map(str, pixels.shape))}\n".encode()
    return hashlib.sha256(header + pixels.tobytes()).digest()


class ContentDigest:
    """Digest of a shard's samples in their order: the SHA-256 over their digests."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, sample: bytes) -> None:
        """Add the next sample's digest."""
        self._hash.update(sample)

    def hexdigest(self) -> str:
        """Return the digest as 64 hexadecimal digits."""
        return self._hash.hexdigest()


def encode_samples(labels: list[int], images: list[Array]) -> list[tuple[bytes, bytes]]:
    """Return PNG bytes and sample digest of each (H, W, C) image. Encoding processes run this."""
    return [(png.encode(image), sample_digest(label, image)) for label, image in zip(labels, images, strict=True)]
