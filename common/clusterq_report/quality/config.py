"""Settings of a quality report, free of torch."""

from pydantic import Field

from clusterq_common.settings import Settings
from clusterq_common.shards.manifest import SplitName


class QualityConfig(Settings):
    """Selection of the measured images. The same settings, set and networks give the same figures."""

    split: SplitName = Field("train", description="the split to measure")
    images: int = Field(
        10_000,
        ge=2,
        description="images that are measured, of each class its share; of a larger set these many are drawn. Time and memory go with "
        "them, not with the set",
    )
    seed: int = Field(0, ge=0, description="seed of every random draw")
