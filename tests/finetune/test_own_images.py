"""Real images from a function of one's own: by index or in order, as files would give them; mistakes in it are a sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from clusterq_common.device.distributed import process_group
from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data.real import open_validation
from clusterq_finetune.evaluation.evaluate import EvaluationResult, evaluate_models
from tests.conftest import Cli, DigitsTeacher
from tests.several import in_processes

CPU = torch.device("cpu")
GREY = InputSpec(size=8, channels=1, num_classes=3, mean=(0.5,), std=(0.5,))
HEAD = """
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

IMAGES = [np.random.default_rng(n).integers(0, 256, (8, 8), dtype=np.uint8) for n in range(11)]
LABELS = [n % 3 for n in range(11)]
"""
KINDS = {
    "generator": "    for image, label in zip(IMAGES, LABELS):\n        yield image, label",
    "list": "    return list(zip(IMAGES, LABELS))",
    "pil": "    return [(Image.fromarray(i), l) for i, l in zip(IMAGES, LABELS)]",
    "tensors": "    return [(torch.from_numpy(i)[:, :, None], torch.tensor(l)) for i, l in zip(IMAGES, LABELS)]",
    "colour": "    return [(np.stack([i] * 3, 2), np.int64(l)) for i, l in zip(IMAGES, LABELS)]",
    "iterable": """
    class Rows:
        def __len__(self):
            return len(IMAGES)
        def __iter__(self):
            return iter(zip(IMAGES, LABELS))
    return Rows()""",
    "dataset": """
    class Rows(Dataset):
        def __len__(self):
            return len(IMAGES)
        def __getitem__(self, index):
            return IMAGES[index], LABELS[index]
    return Rows()""",
}


def written(folder: Path, body: str) -> Path:
    (folder / "mine.py").write_text(f"{HEAD}\n\ndef dataset():\n{body}\n")
    return folder / "mine.py:dataset"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()


def evaluated(path: Path, workers: int = 0, **settings: object) -> EvaluationResult:
    images = open_validation(path, GREY, own=True, **settings)
    return evaluate_models({"m": network()}, images, device=CPU, batch_size=4, workers=workers)["m"]


def as_files(folder: Path) -> EvaluationResult:
    names: dict[str, object] = {}
    exec(HEAD, names)
    for number, (image, label) in enumerate(zip(names["IMAGES"], names["LABELS"], strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{number:02}.png")
    return evaluated(folder)


SAME = {"images", "top1", "top5", "balanced_accuracy", "per_class", "worst_pairs"}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_gives_what_files_give(tmp_path: Path, kind: str) -> None:
    expected = as_files(tmp_path / "val").model_dump(include=SAME)
    path = written(tmp_path, KINDS[kind])
    images = open_validation(path, GREY, own=True)
    assert (len(images), images.layout) == (0 if kind == "generator" else 11, "mine.py:dataset")
    for workers in (0, 2) if kind == "dataset" else (0,):
        assert evaluated(path, workers).model_dump(include=SAME) == expected
    # A second pass sees all of them again.
    for _ in range(2):
        result = evaluate_models({"m": network()}, images, device=CPU, batch_size=4)["m"]
        assert result.model_dump(include=SAME) == expected


READY = {
    "list": "dataset = list(zip(IMAGES, LABELS))",
    "generator": "dataset = (pair for pair in zip(IMAGES, LABELS))",
    "class with items": """
class Rows:
    def __len__(self):
        return len(IMAGES)
    def __getitem__(self, index):
        return IMAGES[index], LABELS[index]
    def __call__(self):
        raise RuntimeError("a dataset is not called")
dataset = Rows()""",
    "dataset": """
class Rows(Dataset):
    def __len__(self):
        return len(IMAGES)
    def __getitem__(self, index):
        return IMAGES[index], LABELS[index]
dataset = Rows()""",
    "iterable dataset": """
class Rows(IterableDataset):
    def __len__(self):
        return len(IMAGES)
    def __iter__(self):
        return iter(zip(IMAGES, LABELS))
dataset = Rows()""",
    "class that makes one": """
class dataset:
    def __iter__(self):
        return iter(zip(IMAGES, LABELS))""",
}


@pytest.mark.parametrize("kind", list(READY))
def test_a_ready_dataset_needs_no_function(tmp_path: Path, kind: str) -> None:
    expected = as_files(tmp_path / "val").model_dump(include=SAME)
    (tmp_path / "mine.py").write_text(f"{HEAD}\nfrom torch.utils.data import IterableDataset\n{READY[kind]}\n")
    images = open_validation(tmp_path / "mine.py:dataset", GREY, own=True)
    for _ in range(2):
        result = evaluate_models({"m": network()}, images, device=CPU, batch_size=4)["m"]
        assert result.model_dump(include=SAME) == expected


@pytest.mark.parametrize("kind", list(READY))
def test_some_images_are_read_by_number_and_label(tmp_path: Path, kind: str) -> None:
    (tmp_path / "mine.py").write_text(f"{HEAD}\nfrom torch.utils.data import IterableDataset\n{READY[kind]}\n")
    images = open_validation(tmp_path / "mine.py:dataset", GREY, own=True)
    assert images.numbered_labels() == {number: number % 3 for number in range(11)}
    names = [sample.name for sample in images.chosen(lambda number, label: label == 1 and number > 1)]
    assert names == [f"mine.py:dataset #{number:06}" for number in (4, 7, 10)]


def compare(path: Path, expected: EvaluationResult) -> None:
    with process_group():
        result = evaluated(path)
    assert result.model_dump(include=SAME | {"unreadable"}) == expected.model_dump(include=SAME | {"unreadable"})


@pytest.mark.parametrize("kind", ["generator", "dataset"])
def test_two_processes_share_them_out(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, KINDS[kind])
    in_processes(2, compare, path, evaluated(path))


@pytest.mark.parametrize("dtype", ["np.uint16", "np.int32", "np.float32", "np.float64"])
def test_other_numbers_need_a_range(tmp_path: Path, dtype: str) -> None:
    """An array does not say how many of its bits are used."""
    path = written(tmp_path, f"    return [(i.astype({dtype}) * 16, l) for i, l in zip(IMAGES, LABELS)]")
    with pytest.raises(ClusterqError, match=r"^pixel_range is missing: mine\.py:dataset #000000 has pixels"):
        open_validation(path, GREY, own=True)
    expected = as_files(tmp_path / "val").model_dump(include=SAME)
    assert evaluated(path, pixel_range=(0, 255 * 16)).model_dump(include=SAME) == expected


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("    return 3", r"mine.py:dataset returned int; expected path/to/file.py:function"),
        ("    raise KeyError('x')", "failed with KeyError"),
        ("    return [3]", "item 0 of mine.py:dataset is int, expected a pair of image and label"),
        ("    return [('a.png', 0)]", "has an image that is str; expected a PIL image"),
        ("    return [(torch.zeros(3, 8, 8, dtype=torch.uint8), 0)]", r"image that is uint8 \(3, 8, 8\)"),
        ("    return [(IMAGES[0], 3)]", "has the label 3, expected a number from 0 to 2"),
        ("    return [(IMAGES[0], 0.5)]", "has the label 0.5"),
        ("    return {'a': 1}", "failed at item 0 with KeyError"),
        ("    yield IMAGES[0], 'cat'", "has the label 'cat'"),
    ],
)
def test_mistakes_are_a_sentence_before_any_work(tmp_path: Path, body: str, sentence: str) -> None:
    with pytest.raises(ClusterqError, match=sentence):
        open_validation(written(tmp_path, body), GREY, own=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_later_mistakes_are_a_sentence_too(tmp_path: Path, workers: int) -> None:
    with pytest.raises(ClusterqError, match=r"^val: item 5 of mine.py:dataset has the label 9"):
        evaluated(written(tmp_path, "    return [(i, 9 if n == 5 else 0) for n, i in enumerate(IMAGES)]"), workers)
    with pytest.raises(ClusterqError, match=r"^val: mine.py:dataset failed at item 1 with ZeroDivisionError"):
        evaluated(written(tmp_path, "    yield IMAGES[0], 0\n    1 / 0"), workers)


def test_nothing_at_all_is_refused(tmp_path: Path) -> None:
    for body in ("    return []", "    return iter(())"):
        with pytest.raises(ClusterqError, match=r"none of the 0 images in .*mine.py:dataset can be read, expected"):
            evaluated(written(tmp_path, body))


def test_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    body = """
    class Rows(list):
        def __getitem__(self, index):
            if index == 4:
                raise OSError("gone")
            return super().__getitem__(index)
    return Rows(zip(IMAGES, LABELS))"""
    result = evaluated(written(tmp_path, body))
    assert (result.images, result.unreadable) == (10, ["mine.py:dataset #000004"])


def test_code_runs_where_a_person_named_it_alone(tmp_path: Path) -> None:
    """Not where a file did: places that do not say so read it as a path, and no config has a key for it."""
    path = written(tmp_path, f"    open({str(tmp_path / 'ran')!r}, 'w')\n    return []")
    with pytest.raises(ClusterqError, match="is no folder, expected class folders"):
        open_validation(path, GREY)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ClusterqError, match="val"):
        FinetuneConfig.validated({"shards": "s", "teacher": {"arch": "resnet20_cifar10"}, "val": str(path)})
    with pytest.raises(ClusterqError, match=r"^classes: mine.py:dataset gives labels itself"):
        open_validation(path, GREY, own=True, classes=tmp_path / "names")


def test_the_commands_take_it(finetune: Cli, digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path) -> None:
    code = "from pathlib import Path\nfrom PIL import Image\n\ndef dataset():\n"
    code += f"    for path in sorted(Path({str(digits_teacher.val)!r}).glob('*/*.png')):\n"
    code += "        yield Image.open(path), int(path.parent.name)\n"
    (tmp_path / "digits.py").write_text(code)
    student = ("--student", digits_run, "--json")
    files = finetune("evaluate", *student, "--val", digits_teacher.val)
    table, arrays = tmp_path / "p.csv", tmp_path / "p.npz"
    out = ("--predictions-csv", table, "--predictions", arrays, "--probabilities")
    own = finetune("evaluate", *student, "--val", f"{tmp_path / 'digits.py'}:dataset", *out)
    assert (files.code, own.code) == (0, 0), files.err + own.err
    files_said, own_said = (json.loads(done.out.splitlines()[-1]) for done in (files, own))
    assert own_said["student"]["top1"] == files_said["student"]["top1"]
    assert own_said["evaluated_on"] == {**files_said["evaluated_on"], "layout": "digits.py:dataset"}
    count = own_said["student"]["images"]
    assert len(table.read_text().splitlines()) == count + 1
    with np.load(arrays) as stored:
        assert stored["student_probabilities"].shape == (count, 10)
    plan = finetune("--shards", digits_run, "--val", f"{tmp_path / 'digits.py'}:dataset", "--dry-run", "--out", tmp_path / "no")
    assert "evaluation: the real images of digits.py:dataset" in plan.out
    refused = finetune("evaluate", *student, "--val", digits_teacher.val, "--probabilities")
    assert refused.code == 2
    assert "--probabilities: there is no --predictions" in refused.err


def test_figures_and_quality_take_it(finetune: Cli, digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path) -> None:
    """Deep pixels, too: they need a range."""
    code = "from pathlib import Path\nimport numpy as np\nfrom PIL import Image\n\ndataset = [\n"
    code += "    (np.asarray(Image.open(path)).astype(np.uint16) * 16, int(path.parent.name))\n"
    code += f"    for path in sorted(Path({str(digits_teacher.val)!r}).glob('*/*.png'))\n]\n"
    (tmp_path / "digits.py").write_text(code)
    own, deep = f"{tmp_path / 'digits.py'}:dataset", ("--pixel-range", "0,4080")
    quality = ("shards", "quality", digits_run, "--images", 40, "--json", "--out", tmp_path / "q.html")
    files, code_said = (
        json.loads(finetune(*quality, "--real", *more).out.splitlines()[-1]) for more in ((digits_teacher.val,), (own, *deep))
    )
    assert code_said["sources"]["real"] == files["sources"]["real"]
    assert code_said["real"]["name"] == "digits.py:dataset"
    assert "--pixel-range is missing" in finetune(*quality, "--real", own).err
    assert "there is no --real" in finetune(*quality, *deep).err
    grid = ("figures", "grid", digits_run, "--per-class", 2, "--format", "png")
    assert finetune(*grid, "--val", digits_teacher.val, "--out", tmp_path / "files").code == 0
    assert finetune(*grid, "--val", own, *deep, "--out", tmp_path / "own").code == 0
    assert (tmp_path / "own.png").read_bytes()
