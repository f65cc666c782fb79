"""Refinement: images a generator drew, brought near the stored statistics a batch at a time, for any caller."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterq_common.errors import ClusterqError
from clusterq_common.images.normalise import normalise, to_pixels
from clusterq_common.shards.manifest import SplitName, read_manifest
from clusterq_common.shards.read import ShardSet
from clusterq_common.taps import batchnorm_layers, batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_gen import commands
from clusterq_gen.bank.config import BankConfig
from clusterq_gen.bank.optimise import Optimiser
from clusterq_gen.emission import refined as module
from clusterq_gen.emission.refined import Batches, RefinedCandidates
from clusterq_gen.emission.shard_plan import FIRST_ATTEMPT, ShardPlan, fresh_plan
from tests.conftest import Cli, DigitsTeacher
from tests.gen.bank_settings import settings
from tests.several import in_processes

CPU = torch.device("cpu")
WANTED = ("--per-class", 6, "--heldout-per-class", 1, "--samples-per-shard", 20)
REFINE = ("--refine-steps", 60, "--refine-batch", 40)


@given(st.integers(2, 1200), st.integers(1, 300), st.data())
def test_every_candidate_has_one_batch(classes: int, batch_size: int, data: st.DataObject) -> None:
    batches = Batches(classes, batch_size)
    label = data.draw(st.integers(0, classes - 1))
    attempt = data.draw(st.integers(0, 50) | st.integers(FIRST_ATTEMPT["heldout"], FIRST_ATTEMPT["heldout"] + 50))
    (group, turn), row = batches.find(label, attempt)
    tries = batches.tries(group, turn)
    assert tries[row] == (label, attempt)
    assert len(set(tries)) == len(tries) <= batch_size
    assert [batches.find(*pair) for pair in tries] == [((group, turn), place) for place in range(len(tries))]
    assert {batches.find(number, 0)[0][0] for number in range(classes)} == set(range(batches.groups))
    assert len(tries) > batch_size // 2, "no batch has statistics of a few images alone"
    # All classes where they fit, else each group has as many as fit.
    assert batches.groups == -(-classes // batch_size)


class Pictures:
    """A source of candidates that are a function of class and attempt, and that counts how often it is asked."""

    digest = "sha256:pictures"

    def __init__(self, teacher: Teacher) -> None:
        self.spec, self.asked = teacher.spec, 0

    def plan(self, split: SplitName, number: int, slots: range, num_classes: int) -> ShardPlan:
        return fresh_plan(split, number, slots, num_classes)

    def images(self, tries: list[tuple[int, int]]) -> torch.Tensor:
        self.asked += 1
        spec = self.spec
        seeds = [torch.Generator().manual_seed(1000 * label + attempt) for label, attempt in tries]
        return torch.stack([0.5 * torch.randn(*spec.shape, generator=seed) for seed in seeds])


def source(teacher: Teacher, folder: Path, pictures: Pictures | None = None, **bank: float) -> RefinedCandidates:
    runtime = settings(teacher.config, "zeroq").runtime
    optimiser = Optimiser.start(BankConfig(**{"bank_steps": 40, "bank_class_weight": 0.1, **bank}), runtime, teacher, CPU)
    return RefinedCandidates(pictures or Pictures(teacher), optimiser, 40, folder, {"seed": 0})


def off(teacher: Teacher, images: torch.Tensor) -> float:
    """Mean over layers and channels of |mean - running mean| + |std - running std|, by a loop over layers."""
    total = []
    with torch.no_grad(), batchnorm_taps(teacher.model) as taps:
        teacher.model(images)
    for moments, layer in zip(taps, batchnorm_layers(teacher.model).values(), strict=True):
        seen = moments.own()
        assert layer.running_mean is not None
        assert layer.running_var is not None
        apart = (seen.mean - layer.running_mean).abs() + (seen.var.sqrt() - layer.running_var.sqrt()).abs()
        total.append(float(apart.mean()))
    return sum(total) / len(total)


def test_refined_images_are_nearer_to_the_statistics_and_still_of_their_class(teacher: Teacher, tmp_path: Path) -> None:
    refined, pictures = source(teacher, tmp_path, bank_class_weight=1.0), Pictures(teacher)
    tries = refined._batches.tries(0, 0)
    before = normalise(to_pixels(pictures.images(tries), teacher.spec), teacher.spec)
    after = refined.images(tries)
    assert off(teacher, after) < 0.5 * off(teacher, before)
    with torch.no_grad():
        labels = torch.tensor([label for label, _ in tries])
        agreed = [float((teacher.model(images).argmax(1) == labels).float().mean()) for images in (before, after)]
    assert agreed[1] > 0.9 > agreed[0]
    # Started where the source ends, not from noise: most of a picture stays.
    apart = torch.cdist(after.flatten(1), before.flatten(1))
    assert (apart.argmin(1) == torch.arange(len(tries))).float().mean() > 0.9


def test_an_image_does_not_depend_on_what_else_is_wanted(teacher: Teacher, tmp_path: Path) -> None:
    pictures = Pictures(teacher)
    refined = source(teacher, tmp_path / "a", pictures)
    wanted = [(3, 1), (9, 17), (0, 0), (3, 1), (5, FIRST_ATTEMPT["heldout"])]
    together = refined.images(wanted)
    batches = {refined._batches.find(*candidate)[0] for candidate in wanted}
    assert pictures.asked == len(batches) == len(list((tmp_path / "a").iterdir()))
    one_by_one = [source(teacher, tmp_path / "b").images([candidate])[0] for candidate in reversed(wanted)]
    assert torch.equal(together, torch.stack(one_by_one[::-1]))
    # A batch is made once; one of other settings, or cut short, is made again.
    again = Pictures(teacher)
    assert torch.equal(source(teacher, tmp_path / "a", again).images(wanted), together)
    assert again.asked == 0
    for path in list((tmp_path / "a").iterdir())[:1]:
        path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(source(teacher, tmp_path / "a", again).images(wanted), together)
    assert again.asked == 1
    assert not torch.equal(source(teacher, tmp_path / "a", again, bank_class_weight=0.0).images(wanted), together)
    assert again.asked == 1 + len(batches)


def test_what_is_no_longer_finite_says_so(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr("clusterq_gen.bank.optimise.statistics_loss", lambda *_: nan)
    with pytest.raises(ClusterqError, match="refine_steps: images are no longer finite"):
        source(teacher, tmp_path).images([(0, 0)])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def whole(digits_run: Path, tmp_path_factory: pytest.TempPathFactory, gen: Cli) -> Path:
    folder = tmp_path_factory.mktemp("refined")
    done = gen("emit", "--run", digits_run, *WANTED, *REFINE, "--out", folder)
    assert done.code == 0, done.err
    return folder


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_a_refined_set_says_so_and_is_nearer(whole: Path, digits_run: Path, finetune: Cli, gen: Cli, tmp_path: Path) -> None:
    manifest = read_manifest(whole)
    assert manifest.generation is not None
    refine = {"refine_steps": 60, "refine_lr": 0.05, "refine_class_weight": 0.0, "refine_batch": 40}
    assert manifest.generation.settings["refine"] == refine
    assert manifest.generation.labels == "teacher"
    assert manifest.splits["train"].per_class == [6] * 10
    assert "optimised for 60 steps" in (whole / "README.md").read_text()
    assert not (whole / ".emission").exists(), "batches are needed no more"
    assert gen("emit", "--run", digits_run, *WANTED, "--refine-steps", 0, "--out", tmp_path / "plain").code == 0
    plain = read_manifest(tmp_path / "plain")
    assert plain.generation is not None
    assert "refine" not in plain.generation.settings
    measured = []
    for folder in (tmp_path / "plain", whole):
        done = finetune("shards", "quality", folder, *_teacher_flags(digits_run), "--out", tmp_path / "page.html", "--json")
        assert done.code == 0, done.err
        layers = json.loads(done.out.splitlines()[-1])["sources"]["set"]["batchnorm"]
        measured.append(sum(layer["mean"] for layer in layers))
    assert measured[1] < 0.8 * measured[0]


def _teacher_flags(run: Path) -> list[str]:
    from clusterq_gen.config import GenConfig

    config = GenConfig.from_yaml(run / "config.yaml")
    return ["--arch", config.teacher.arch, "--weights", str(config.teacher.weights)]


def test_an_interrupted_emission_keeps_the_batches_that_are_finished(
    whole: Path, digits_run: Path, gen: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = module.write_batch

    def stop_at_the_third(path: Path, *rest: object) -> None:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(path.name)
        real(path, *rest)

    command = ("emit", "--run", digits_run, *WANTED, *REFINE, "--out", tmp_path)
    monkeypatch.setattr(module, "write_batch", stop_at_the_third)
    assert gen(*command).code == 130
    scratch = tmp_path / ".emission" / "scratch" / "0"
    assert sorted(path.name for path in scratch.iterdir()) == sorted(made)
    monkeypatch.setattr(module, "write_batch", lambda path, *rest: (made.append(path.name), real(path, *rest)))
    assert gen(*command).code == 0
    assert len(set(made)) == len(made), "no batch twice"
    assert tars(tmp_path) == tars(whole)


def emit_in_two(run: Path, folder: Path) -> None:
    updates = {"per_class": 6, "heldout_per_class": 1, "samples_per_shard": 20, "refine_steps": 60, "refine_batch": 30}
    commands.emit(run, updates, {}, folder, overwrite=False)


def test_two_processes_write_the_same_set(digits_run: Path, gen: Cli, tmp_path: Path) -> None:
    """Thirty images a batch, three attempts of each class: shards begin within a batch, and both processes make it."""
    in_processes(2, emit_in_two, digits_run, tmp_path / "two")
    done = gen("emit", "--run", digits_run, *WANTED, *REFINE[:2], "--refine-batch", 30, "--out", tmp_path / "one")
    assert done.code == 0, done.err
    assert tars(tmp_path / "two") == tars(tmp_path / "one")


def test_a_refined_set_grows_by_images_of_its_kind_alone(whole: Path, digits_run: Path, gen: Cli, tmp_path: Path) -> None:
    start = ("emit", "--run", digits_run, "--per-class", 3, *WANTED[2:], "--out", tmp_path)
    assert gen(*start, *REFINE).code == 0
    before = tars(tmp_path)
    for other in ([], ["--refine-steps", 61, *REFINE[2:]], [*REFINE, "--refine-class-weight", 1]):
        refused = gen("emit", "--run", digits_run, *WANTED, *other, "--out", tmp_path)
        assert refused.code == 2
        assert "shards of another --refine-steps, or other refinement" in refused.err
    done = gen("emit", "--run", digits_run, *WANTED, *REFINE, "--out", tmp_path)
    assert done.code == 0, done.err
    after = tars(tmp_path)
    assert {name: after[name] for name in before} == before
    images = [ShardSet.open(folder).split("train") for folder in (tmp_path, whole)]
    held = [{split.read_sample(n).content for n in range(len(split))} for split in images]
    assert len(held[0]) == len(held[1]) == 60
    assert len(held[0] & held[1]) >= 30, "candidates have the same batches in both"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "zeroq", "--refine-steps", "5"], "--refine-steps has no meaning with --method zeroq"),
        (["--refine-steps", "0", "--refine-lr", "1"], "--refine-lr has no meaning without refinement"),
        (["--refine-steps", "-1"], "--refine-steps"),
        (["--method", "zeroq", "--labels", "teacher"], "--labels has no meaning with --method zeroq"),
    ],
)
def test_flags_that_would_change_nothing(
    flags: list[str], words: str, digits_teacher: DigitsTeacher, digits_run: Path, gen: Cli, tmp_path: Path
) -> None:
    done = gen("train", *digits_teacher.flags, "--preset", "quick", *flags, "--out", tmp_path / "out")
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "out").exists()
    if "--method" not in flags:
        assert words in gen("emit", "--run", digits_run, *flags, "--out", tmp_path / "out").err
