"""The offline demo, from its own data handling to a whole run on a budget of seconds."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import preloaded

pytest.importorskip("sklearn", reason="the demo's digits come with scikit-learn, the extra `demo`")

DEMO = Path(__file__).resolve().parents[2] / "tools" / "demo"
SCRIPT = DEMO / "digits.py"


@pytest.fixture(scope="module")
def demo() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DEMO)
        spec = importlib.util.spec_from_file_location("digits_demo", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def run_demo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = preloaded.environment()
    return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def test_held_out_digits_are_a_fixed_stratified_share_never_trained_on(demo: ModuleType) -> None:
    digits, again, other = demo.load(0), demo.load(0), demo.load(1)
    total = len(digits.train_labels) + len(digits.test_labels)
    assert total == 1797
    assert len(digits.test_labels) / total == pytest.approx(0.3, abs=0.001)
    share = np.bincount(digits.test_labels) / (np.bincount(digits.test_labels) + np.bincount(digits.train_labels))
    np.testing.assert_allclose(share, 0.3, atol=0.01)
    assert digits.train_pixels.dtype == np.uint8
    assert digits.train_pixels.max() == 255
    np.testing.assert_array_equal(digits.test_pixels, again.test_pixels)
    assert not np.array_equal(digits.test_pixels, other.test_pixels)
    trained_on = {image.tobytes() for image in digits.train_pixels}
    assert not [image for image in digits.test_pixels if image.tobytes() in trained_on]


def test_classifier_learns_and_repeats(demo: ModuleType) -> None:
    digits = demo.load(0)
    model, again = (demo.train_classifier(digits, epochs=6, seed=0) for _ in range(2))
    assert demo.accuracy(model, digits.test_pixels, digits.test_labels) > 95
    for name, value in model.state_dict().items():
        assert value.equal(again.state_dict()[name]), name
    assert not model.training


def test_class_folders_hold_the_same_pixels_and_no_leftovers(demo: ModuleType, tmp_path: Path) -> None:
    digits = demo.load(0)
    (tmp_path / "val" / "7").mkdir(parents=True)
    (tmp_path / "val" / "7" / "9999.png").write_bytes(b"from another split")
    demo.write_class_folders(tmp_path / "val", digits.test_pixels, digits.test_labels)
    assert len(list((tmp_path / "val").rglob("*.png"))) == len(digits.test_labels)
    sevens = sorted((tmp_path / "val" / "7").iterdir())
    read_back = np.stack([np.asarray(Image.open(path)) for path in sevens])
    np.testing.assert_array_equal(read_back, digits.test_pixels[digits.test_labels == 7])


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = run_demo("--out", tmp_path)
    assert done.returncode == 2
    assert "not an earlier demo" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failing_program_ends_the_demo_with_its_code(tmp_path: Path) -> None:
    done = run_demo("--out", tmp_path / "out", "--teacher-epochs", "1", "--bits", "w1a4")
    assert done.returncode == 2
    assert "w1a4" in done.stderr
    assert "the demo stopped" in done.stderr
    assert not (tmp_path / "out" / "run" / "shards").exists()


def test_whole_demo_goes_through_both_programs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = ["--teacher-epochs", "6", "--epochs", "2", "--steps-per-epoch", "8", "--per-class", "4", "--finetune-epochs", "1"]
    small += ["--reconstruct-steps", "5"]
    done = run_demo("--out", out, *small, "--bits", "w8a8")
    assert done.returncode == 0, done.stderr
    assert "its report is not" not in done.stdout + done.stderr
    assert (out / "run" / "report.html").is_file()
    summary = json.loads((out / "demo.json").read_text())
    result = summary["result"]
    # Both programs' own reading of the PNG files must agree with the demo's on its arrays.
    assert result["teacher"]["top1"] == pytest.approx(summary["classifier_top1"], abs=0.01)
    for name in ("teacher", "calibrated", "student"):
        assert f"{result[name]['top1']:6.2f} %" in done.stdout
    shards = out / "run" / "shards"
    assert f"synthetic digits as shards: {shards}" in done.stdout
    assert (shards / "manifest.json").is_file()
    assert Path(done.stdout.rsplit("what they look like:", 1)[1].strip()).is_file()
