"""TensorBoard's event files of a run: the records of metrics.jsonl, and grids of images. Needs the extra `tensorboard`."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from clusterq_common.files import make_folder
from clusterq_common.run.extras import need
from clusterq_common.setting_names import setting_name

EXTRA = "tensorboard"
# Beginning of the names of TensorBoard's files.
EVENT_FILES = "events.out.tfevents.*"
# Parts of a record that are no figures.
PLACES = {"step", "epoch"}


def need_tensorboard() -> None:
    """Make sure that events can be written.

    Raises:
        ClusterqError: the package is not installed.
    """
    need("tensorboard", setting_name("tensorboard"), EXTRA)


class EventFiles:
    """Writer of events into a folder, in place of those that are there.

    A resumed run repeats the steps after its checkpoint, and TensorBoard would show both versions. So a resumed run writes the
    earlier records anew, from metrics.jsonl.

    Args:
        folder: made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import FileWriter

        make_folder(folder)
        for path in folder.glob(EVENT_FILES):
            path.unlink()
        self._writer: Any = FileWriter(str(folder))

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write records, each with a `step`. Values that are not finite are left out, because TensorBoard cannot plot them."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for record in records:
            figures = {
                name: float(value)
                for name, value in record.items()
                if name not in PLACES and isinstance(value, int | float) and math.isfinite(value)
            }
            values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
            self._writer.add_summary(Summary(value=values), record["step"])
        self._writer.flush()

    def add_picture(self, name: str, path: Path, step: int) -> None:
        """Write a PNG unchanged."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as picture:
            (width, height), channels = picture.size, len(picture.getbands())
        image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=path.read_bytes())
        self._writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._writer.close()
