"""Settings of the figures and their files, free of torch and of matplotlib."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from clusterq_common.settings import Settings
from clusterq_finetune.cli.shards import parse_classes

FORMATS = ("png", "svg", "pdf", "csv")


def _formats(value: Any) -> Any:
    """Convert `"png,svg"` to a tuple of known formats without duplicates."""
    formats = tuple(dict.fromkeys(value.split(","))) if isinstance(value, str) else value
    if not formats or not set(formats) <= set(FORMATS):
        raise ValueError(f"expected some of {', '.join(FORMATS)} with commas between")
    return formats


def _words(value: Any) -> Any:
    """Convert `"a, b"` to a tuple of texts; return anything else unchanged."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _classes(value: Any) -> Any:
    return tuple(parse_classes(value) or ()) if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Classes = Annotated[tuple[int, ...], BeforeValidator(_classes)]


class FileConfig(Settings):
    """Settings of a figure's files."""

    format: Annotated[tuple[str, ...], BeforeValidator(_formats)] = Field(
        ("png", "svg"), description="some of png, svg, pdf and csv, with commas between; csv: the numbers that are drawn"
    )
    dpi: int = Field(200, ge=50, le=1200, description="dots per inch of the png")
    caption: bool = Field(
        True,
        description="write below the figure what it shows; it is printed either way",
        json_schema_extra={"flag": "--caption/--no-caption"},
    )


class ImagesConfig(Settings):
    """Images of a figure: the first stored ones of each class, and the first real ones by name."""

    classes: Classes | None = Field(None, description="e.g. 0,3,7-9; up to ten, evenly spread, if left out")
    per_class: int = Field(50, ge=2, description="images of each class, of each run")
    names: Words | None = Field(
        None, description="names of the runs, in their order, with commas between; their folders' names if left out"
    )


class LayersConfig(Settings):
    """Layers of the teacher that a figure shows."""

    layers: Words | None = Field(
        None,
        description="BatchNorm layers, by name as in the report or by number, counted from 1 in order of execution, with commas "
        "between; three of the deep half if left out",
    )


class FeaturesConfig(LayersConfig):
    """Projection of features to points."""

    projection: Literal["tsne", "pca"] = Field(
        "tsne", description="tsne keeps neighbours and nothing else; pca keeps distances, as far as two axes can"
    )
    perplexity: float = Field(30.0, ge=2, description="of t-SNE: about how many neighbours count for a point")
    seed: int | None = Field(
        None,
        ge=0,
        lt=1 << 32,
        description="of t-SNE: start from places drawn with it, which tells what in the picture is chance; from PCA's if left out",
    )


class DiversityConfig(LayersConfig):
    """Images shown beside the spread in every layer."""

    shown_classes: Classes | None = Field(None, description="classes whose images are shown; the first two if left out")
    shown: int = Field(10, ge=1, le=30, description="images of each that are shown")


class GridConfig(Settings):
    """Images of a grid."""

    classes: Classes | None = Field(None, description="the columns, e.g. 0,3,7-9; up to ten, evenly spread, if left out")
    per_class: int = Field(1, ge=1, le=20, description="images of each class, of each run")
    names: Words | None = Field(
        None, description="names of the runs, in their order, with commas between; their folders' names if left out"
    )
