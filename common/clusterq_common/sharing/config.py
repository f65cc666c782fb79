"""Rules for a set that comes from elsewhere. They come from the command line alone, never from a saved configuration."""

from pathlib import Path

from pydantic import Field, field_validator

from clusterq_common.quantities import parse_bytes
from clusterq_common.settings import Settings


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
        if parse_bytes(text) is None:
            raise ValueError("it must be a size, as 500MB, 20GB or 2TiB")
        return text

    @property
    def largest(self) -> int:
        """`max_bytes` as a number."""
        largest = parse_bytes(self.max_bytes)
        assert largest is not None
        return largest
