"""Readers of a sample's members. A stranger may have written the bytes: bounds are checked first, nothing is unpickled."""

import io
import json
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError

from clusterq_common.errors import ClusterqError
from clusterq_common.images import png
from clusterq_common.images.png import Array
from clusterq_common.settings import Settings
from clusterq_common.shards.index import ADVICE
from clusterq_common.shards.sample import Logits
from clusterq_common.teacher.spec import InputSpec

LONGEST_LABEL = 9


class SampleFacts(Settings):
    """The `.json` member of a sample."""

    label: Annotated[int, Field(ge=0)]
    asked: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=0)]
    attempt: Annotated[int, Field(ge=0)]
    teacher_top1: Annotated[int, Field(ge=0)]
    teacher_confidence: Annotated[float, Field(ge=0, le=1)]


def read_pixels(data: bytes, spec: InputSpec, where: str) -> Array:
    """Decode `.png` to (H, W, C) uint8. In all readers, `where` names the sample in errors.

    Raises:
        ClusterqError: see `png.decode`.
    """
    try:
        return png.decode(data, (spec.height, spec.width), spec.channels)
    except ClusterqError as error:
        raise ClusterqError(f"{where}: {error}") from error


def read_label(data: bytes, spec: InputSpec, where: str) -> int:
    """Parse `.cls` to a class index.

    Raises:
        ClusterqError: it is none.
    """
    if not data.isdigit() or len(data) > LONGEST_LABEL or int(data) >= spec.num_classes:
        raise ClusterqError(f"{where}: label {data[:20]!r}, expected a number below {spec.num_classes}; {ADVICE}.")
    return int(data)


def read_facts(data: bytes, label: int, spec: InputSpec, where: str) -> SampleFacts:
    """Parse the `.json` of a sample with that label.

    Raises:
        ClusterqError: it is no JSON, holds other things, or another label.
    """
    try:
        facts = SampleFacts.model_validate(json.loads(data))
    except (ValidationError, ValueError, RecursionError) as error:
        raise ClusterqError(f"{where}: its .json cannot be used ({type(error).__name__}); {ADVICE}.") from error
    if facts.label != label or facts.teacher_top1 >= spec.num_classes:
        raise ClusterqError(f"{where}: its .json says label {facts.label}, its .cls {label}; {ADVICE}.")
    return facts


def read_logits(data: bytes, spec: InputSpec, where: str) -> Logits:
    """Read `.logits.npy` as (classes,) float16.

    Raises:
        ClusterqError: another type or shape, or values that are not finite.
    """
    classes = spec.num_classes
    stream = io.BytesIO(data)
    try:
        # The header is checked first, because a hostile one could make numpy reserve any amount of memory.
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # numpy's header parser lets tokenizer and recursion errors through
        raise ClusterqError(f"{where}: its logits cannot be read ({error}); {ADVICE}.") from error
    values = data[stream.tell() :]
    if dtype != np.float16 or shape != (classes,) or len(values) != 2 * classes:
        raise ClusterqError(f"{where}: its logits are {dtype} {shape}, expected float16 ({classes},); {ADVICE}.")
    logits = np.frombuffer(values, dtype=np.float16).copy()
    if not np.isfinite(logits).all():
        raise ClusterqError(f"{where}: its logits are not finite; {ADVICE}.")
    return logits
