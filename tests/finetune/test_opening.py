"""Image files whose headers were made to take long, and exported files that name others."""

import io
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from clusterq_common.errors import ClusterqError
from clusterq_common.export.runtime import OnnxModel
from clusterq_finetune.data.real.opening import open_image

PIXELS = bytes(range(12))


@pytest.mark.parametrize(
    "header", [b"P6 2 2 255\n", b"P6\n# made by hand\n2 2\n# and more\n255\n", b"P6\n#" + b"x" * 60_000 + b"\n2 2 255\n"]
)
@pytest.mark.parametrize("from_file", [True, False])
def test_netpbm_files_with_comments(header: bytes, from_file: bool, tmp_path: Path) -> None:
    data = header + PIXELS
    (tmp_path / "a.ppm").write_bytes(data)
    image = open_image(tmp_path / "a.ppm" if from_file else data)
    assert np.array(image).tobytes() == PIXELS


@pytest.mark.parametrize("comment", [b"#" + b"x" * 3_000_000, b"#\n" * 1_500_000, b"#" + b"x" * 3_000_000 + b"\n2 2 255\n"])
@pytest.mark.parametrize("from_file", [True, False])
def test_a_header_without_end_is_refused_at_once(comment: bytes, from_file: bool, tmp_path: Path) -> None:
    data = b"P5\n" + comment + PIXELS
    (tmp_path / "a.pgm").write_bytes(data)
    begin = time.process_time()
    with pytest.raises(ValueError, match="header does not end"):
        open_image(tmp_path / "a.pgm" if from_file else data)
    assert time.process_time() - begin < 0.5


def test_other_files_are_opened_as_they_are(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (3, 2), 7).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    assert open_image(tmp_path / "a.png").size == open_image(buffer.getvalue()).size == (3, 2)
    with pytest.raises(OSError, match="cannot identify"):
        open_image(b"P\x00")


@pytest.mark.parametrize("location", ["../secret", "{folder}/secret"])
def test_an_exported_file_reads_none_outside_its_folder(location: str, tmp_path: Path) -> None:
    """A received ONNX file may say that its weights lie in another file."""
    (tmp_path / "secret").write_bytes(bytes(16))
    (tmp_path / "model").mkdir()
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location.format(folder=tmp_path)), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model" / "m.onnx"
    path.write_bytes(made.SerializeToString())
    assert onnx.load(path, load_external_data=False).graph.initializer[0].external_data
    with pytest.raises(ClusterqError, match=r"escapes|outside|validation failed"):
        OnnxModel(path)
