"""Rules for a set that comes from elsewhere. They come from the command line alone, never from a saved configuration."""

import re
from pathlib import Path

from pydantic import Field, field_validator

from clusterq_common.settings import Settings

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([kMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class SharingConfig(Settings):
    """Limits of a transfer, and whose sets are taken."""

    max_bytes: str = Field("50GB", description="largest set that is fetched from an address, as 500MB or 2TB")
    parallel: int = Field(4, ge=1, le=32, description="files that are fetched or sent at the same time")
    allow_http: bool = Field(
        False, description="fetch over http:// from other machines too, where anyone on the way can read the set"
    )
    trust: Path | None = Field(
        None,
        description="file of makers' public keys, a line each (`shards keygen` writes one; lines of authorized_keys without options are others)",
    )
    require_signed: bool = Field(False, description="refuse sets that no maker in `trust` has signed")

    @field_validator("max_bytes")
    @classmethod
    def _is_size(cls, text: str) -> str:
        bytes_of(text)
        return text

    @property
    def largest(self) -> int:
        """`max_bytes` as a number."""
        return bytes_of(self.max_bytes)


def bytes_of(text: str) -> int:
    """Parse a size to a number of bytes.

    >>> bytes_of("500MB"), bytes_of("1.5 GiB"), bytes_of("7")
    (500000000, 1610612736, 7)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("it must be a size, as 500MB, 20GB or 2TiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2].lower()])


def size_text(count: int) -> str:
    """Return a number of bytes as text.

    >>> size_text(999), size_text(1_500_000), size_text(50_000_000_000)
    ('999 B', '1.5 MB', '50.0 GB')
    """
    if count < 1000:
        return f"{count} B"
    power = next(power for power in (1, 2, 3, 4) if count < 1000 ** (power + 1) or power == 4)
    tenths = (count * 10 + 1000**power // 2) // 1000**power  # a manifest may name numbers that no float holds
    return f"{tenths // 10}.{tenths % 10} {'kMGT'[power - 1]}B"
