"""Settings of a leakage report, free of torch."""

from pydantic import Field

from clusterq_common.settings import Settings
from clusterq_common.shards.manifest import SplitName


class LeakageConfig(Settings):
    """Selection of the compared images, and the tests' settings. The same settings, images and networks give the same figures."""

    split: SplitName = Field("train", description="which split")
    images: int = Field(2000, ge=2, description="synthetic images that are compared, of each class its share")
    real_images: int = Field(
        20_000, ge=8, description="training images that are compared, of each class its share, and held-out images likewise"
    )
    calibration: int = Field(
        1000,
        ge=4,
        description="held-out images that take the set's place as a control: at most so many, and at most half of all",
    )
    false_alarms: float = Field(
        0.001, gt=0, le=0.1, description="share of control images that may count as near-copies; never less than one image's"
    )
    permutations: int = Field(999, ge=499, description="random exchanges of training and held-out images in each test")
    subsamples: int = Field(
        10, ge=1, description="draws of equally many training and held-out images, where there are more of one"
    )
    seed: int = Field(0, ge=0, description="seed of every random draw")
