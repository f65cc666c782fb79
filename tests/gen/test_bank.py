"""Banks of optimised images: a batch is a function of the seed and its number, shards are stretches of the bank."""

import json
import math
import shutil
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from clusterq_common.images import decode_png, normalise
from clusterq_common.runtime.distributed import Ranks, process_group
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.shards.read import ShardSet
from clusterq_common.taps import batchnorm_layers, batchnorm_taps
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_common.teacher.spec import InputSpec, TeacherConfig
from clusterq_gen.bank import make
from clusterq_gen.bank.config import BANK_METHODS
from clusterq_gen.bank.files import batch_path, write_batch
from clusterq_gen.bank.layout import BankLayout
from clusterq_gen.bank.make import make_bank
from clusterq_gen.bank.optimise import BankBatch, BankRun
from clusterq_gen.bank.source import BankSource
from clusterq_gen.blocks import Block, plan_blocks
from clusterq_gen.config import GenConfig, preset_notes, resolve
from tests.conftest import FACTORY, Cli, DigitsTeacher
from tests.several import in_processes

CPU = torch.device("cpu")
DIGITS = {"input_size": 8, "in_channels": 1, "num_classes": 10, "mean": "0.5", "std": "0.5"}
# Small enough for seconds: three batches of forty images or so.
SMALL = ("--bank-steps", 25, "--batch-size", 40, "--per-class", 8, "--heldout-per-class", 2, "--threads", 1)


@pytest.fixture(scope="module")
def teacher(digits_teacher: DigitsTeacher) -> Teacher:
    return load_teacher(TeacherConfig(arch=FACTORY, weights=str(digits_teacher.weights), **DIGITS))  # type: ignore[arg-type]


def settings(teacher: TeacherConfig, method: str, **sections: dict[str, object]) -> GenConfig:
    emit = {"per_class": 8, "heldout_per_class": 2, **sections.pop("emit", {})}
    train = {"batch_size": 40, **sections.pop("train", {})}
    flags = {"teacher": teacher.model_dump(), "method": {"method": method}, "train": train, "emit": emit, **sections}
    return resolve(flags, "quick", imagenet_sized=False)


@pytest.fixture(scope="module")
def banks(tmp_path_factory: pytest.TempPathFactory, digits_teacher: DigitsTeacher, gen: Cli) -> dict[str, Path]:
    """A finished run of each method: copy it where a test must change it."""
    folder = tmp_path_factory.mktemp("banks")
    for method in BANK_METHODS:
        done = gen("train", *digits_teacher.flags, "--preset", "quick", "--method", method, *SMALL, "--out", folder / method)
        assert done.code == 0, done.err
    return {method: folder / method for method in BANK_METHODS}


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


# ---- what a batch is


@pytest.mark.parametrize("method", list(BANK_METHODS))
def test_statistics_of_optimised_images_come_near_the_running_ones(teacher: Teacher, method: str) -> None:
    run = BankRun.start(settings(teacher.config, method, bank={"bank_steps": 60}), teacher, CPU)
    batch = run.optimise(0)
    names = {name.partition("/")[2] for name in batch.losses}
    assert (
        names
        == {
            "zeroq": {"bns", "input"},
            "dsg": {"bns", "input", "emphasis"},
            "intraq": {"bns", "class", "margin"},
        }[method]
    )
    assert batch.losses["loss/bns"] < 0.5 * batch.losses["first/bns"]
    # On the pixels that were stored, against a loop over layers.
    noise = BankRun.start(settings(teacher.config, method, bank={"bank_steps": 1, "bank_lr": 1e-9}), teacher, CPU).optimise(0)
    found = [apart_from_running(teacher, one.pixels) for one in (batch, noise)]
    assert found[0] < 0.5 * found[1]
    if method == "intraq":
        assert batch.losses["loss/class"] < 0.5 * batch.losses["first/class"]
        assert (batch.top1 == batch.labels).float().mean() > 0.9


def apart_from_running(teacher: Teacher, pixels: torch.Tensor) -> float:
    total = 0.0
    with torch.no_grad(), batchnorm_taps(teacher.model) as taps:
        teacher.model(normalise(pixels, teacher.spec))
    for one, layer in zip(taps, batchnorm_layers(teacher.model).values(), strict=True):
        seen = one.own()
        assert layer.running_mean is not None
        assert layer.running_var is not None
        total += float((seen.mean - layer.running_mean).square().mean())
        total += float((seen.var.sqrt() - layer.running_var.sqrt()).square().mean())
    return total


@pytest.mark.parametrize("method", list(BANK_METHODS))
def test_a_batch_depends_on_the_seed_and_its_number_alone(teacher: Teacher, method: str) -> None:
    def start(seed: int) -> BankRun:
        return BankRun.start(settings(teacher.config, method, bank={"bank_steps": 3}, runtime={"seed": seed}), teacher, CPU)

    run = start(1)
    first, second = run.optimise(0), run.optimise(1)
    again = start(1).optimise(1)
    assert torch.equal(again.pixels, second.pixels)
    assert torch.equal(again.labels, second.labels)
    assert again.losses == second.losses
    assert not torch.equal(first.pixels, second.pixels)
    assert not torch.equal(start(2).optimise(1).pixels, second.pixels)


def test_each_setting_makes_its_term(teacher: Teacher) -> None:
    def losses(**bank: object) -> dict[str, float]:
        config = settings(teacher.config, "zeroq", bank={"bank_steps": 1, **bank})
        return BankRun.start(config, teacher, CPU).optimise(1).losses

    plain = losses()
    assert losses(bank_bns_weight=3.0)["first/bns"] == pytest.approx(3 * plain["first/bns"])
    assert "first/input" not in losses(bank_input_weight=0.0)
    hard, soft = losses(bank_class_weight=1.0, bank_hard_gamma=2.0), losses(bank_class_weight=1.0, bank_class_loss="soft")
    even = losses(bank_class_weight=1.0)
    assert hard["first/class"] < even["first/class"]
    assert soft["first/class"] < 1
    cropped = losses(bank_crop=1.0, bank_crop_least=0.05)
    assert cropped["first/bns"] != pytest.approx(plain["first/bns"])
    assert cropped["first/input"] == plain["first/input"], "of the whole images"


# ---- how large a bank is


@given(
    st.integers(2, 300),
    st.integers(1, 300),
    st.integers(1, 60),
    st.integers(0, 6),
    st.floats(1, 2),
    st.sampled_from(["zeroq", "intraq"]),
)
def test_a_bank_holds_what_is_wanted(
    classes: int, batch_size: int, per_class: int, heldout: int, spare: float, method: str
) -> None:
    config = settings(
        TeacherConfig(arch="any"),
        method,
        train={"batch_size": batch_size},
        emit={"per_class": per_class, "heldout_per_class": heldout},
        bank={"bank_spare": spare},
    )
    layout = BankLayout.of(config, classes)
    if method == "zeroq":
        assert layout.labels(0) is None
        assert layout.batches == math.ceil((per_class + heldout) * classes / batch_size)
    else:
        counts = [0] * classes
        for number in range(layout.batches):
            labels = layout.labels(number)
            assert labels is not None
            assert len(labels) == layout.batch_size <= batch_size
            for label in labels.tolist():
                counts[label] += 1
        assert min(counts) >= math.ceil(spare * (per_class + heldout))
        assert max(counts) - min(counts) <= max(layout.batch_size // (layout.classes or 1), 1)
    for world in (1, 2, 3):
        shares = [list(layout.share(Ranks(rank, world))) for rank in range(world)]
        assert sorted(chain.from_iterable(shares)) == list(range(layout.batches))


# ---- which shard gets what


def bank_of(folder: Path, labels: list[int], top1: list[int], method: str, **emit: int) -> BankSource:
    """A bank on disk whose n-th image is all n."""
    spec = InputSpec(size=2, channels=1, num_classes=3, mean=(0.0,), std=(1.0,))
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    (folder / "bank").mkdir(parents=True, exist_ok=True)
    paths = []
    for number, start in enumerate(range(0, len(labels), 5)):
        rows = slice(start, start + 5)
        batch = BankBatch(pixels[rows].contiguous(), torch.tensor(labels[rows]), torch.tensor(top1[rows]), {})
        paths.append(batch_path(folder, number))
        write_batch(paths[-1], batch, "made")
    config = settings(TeacherConfig(arch="any"), method, emit=dict(emit))
    return BankSource(paths, config, spec, CPU, keep_misclassified=False)


def drawn(source: BankSource, block: Block) -> list[list[int]]:
    """By class, the images of a block's candidates."""
    tries = [[(label, attempt) for attempt in range(block.attempts[label], block.limit[label])] for label in range(3)]
    return [[round(float(value) * 255) for value in source.images(own)[:, 0, 0, 0]] if own else [] for own in tries]


def test_blocks_of_a_labelled_bank(tmp_path: Path) -> None:
    labels = [n % 3 for n in range(18)]
    top1 = list(labels)
    for rejected in (3, 9, 4, 7, 13):
        top1[rejected] = 2  # of class 0: images 3, 9; of class 1: 4, 7, 13
    source = bank_of(tmp_path, labels, top1, "intraq", per_class=3, heldout_per_class=1)
    blocks = plan_blocks([{"train": 3, "heldout": 1}], 3, 4, source.block)
    found = {block.name: drawn(source, block) for block in blocks}
    assert found["synth-heldout-000000.tar"] == [[0], [], [2]], "class 1 is short: its held-out part shrinks with it"
    # The line of slots is 0 1 2 0 | 1 2 0 1 | 2; an image's candidates are those rejected before it, too.
    assert found["synth-train-000000.tar"] == [[3, 6, 9, 12], [1], [5]]
    assert found["synth-train-000001.tar"] == [[15], [4, 7, 10, 13, 16], [8]]
    assert found["synth-train-000002.tar"] == [[], [], [11]]
    assert source.capacity == {"train": 5, "heldout": 1}
    extended = plan_blocks([{"train": 3, "heldout": 1}, {"train": 5, "heldout": 1}], 3, 4, source.block)
    assert [block for block in blocks if block not in extended] == []
    more = [drawn(source, block) for block in extended if block not in blocks]
    assert [list(chain.from_iterable(one[label] for one in more)) for label in range(3)] == [[], [], [14, 17]]


def test_blocks_of_an_unlabelled_bank(tmp_path: Path) -> None:
    labels = [0, 0, 1, 0, 0, 0, 2, 0, 1, 1, 0, 0, 0, 0, 2]
    source = bank_of(tmp_path, labels, labels, "zeroq", per_class=4, heldout_per_class=1)
    blocks = plan_blocks([{"train": 4, "heldout": 1}], 3, 5, source.block)
    found = {block.name: drawn(source, block) for block in blocks}
    assert found["synth-heldout-000000.tar"] == [[0, 1], [2], []]
    assert found["synth-train-000000.tar"] == [[3, 4, 5, 7], [], [6]]
    assert found["synth-train-000001.tar"] == [[10, 11, 12], [8, 9], []]
    assert found["synth-train-000002.tar"] == [[13], [], [14]]
    assert [sum(block.wanted) for block in blocks] == [5, 5, 2, 3]
    assert source.capacity == {"train": 4, "heldout": 1}


# ---- from the command line


@pytest.mark.parametrize("method", list(BANK_METHODS))
def test_what_a_set_from_a_bank_says_of_itself(banks: dict[str, Path], method: str, finetune: Cli, tmp_path: Path) -> None:
    run = banks[method]
    manifest = read_manifest(run / "shards")
    made = manifest.generation
    assert made is not None
    labelled = method == "intraq"
    assert (made.method, made.seed, made.rounds) == (method, 0, [{"train": 8, "heldout": 2}])
    assert set(made.settings) == {"preset", "method", "train", "bank", "labels", "seed"}
    assert made.settings["bank"]["bank_steps"] == 25
    assert ("top-1" in made.settings["labels"]) != labelled
    assert manifest.splits["train"].samples == 80
    assert manifest.splits["heldout"].samples == 20
    if labelled:
        assert manifest.splits["train"].per_class == [8] * 10
    card = (run / "shards" / "README.md").read_text()
    assert "optimised directly" in card
    samples = ShardSet.open(run / "shards").split("train")
    content = [samples.read_sample(number) for number in range(len(samples))]
    assert len({sample.content for sample in content}) == 80
    stored = torch.cat([load_file(path)["pixels"] for path in sorted((run / "bank").iterdir())])
    kept = {decode_png(sample.png, manifest.teacher.spec).numpy().tobytes() for sample in content}
    assert kept <= {image.numpy().tobytes() for image in stored}, "the bank's pixels, unchanged"
    assert (run / "samples" / "bank.png").is_file()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(len(files(run / "bank", "*"))))
    done = finetune("--shards", run, "--epochs", 1, "--out", tmp_path / "student")
    assert done.code == 0, done.err


def test_an_interrupted_bank_goes_on_to_the_same_bytes(
    banks: dict[str, Path], digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", *digits_teacher.flags, "--preset", "quick", "--method", "dsg", *SMALL, "--out", tmp_path / "out")
    made: list[str] = []
    real = make.write_batch

    def stop_at_the_second(path: Path, *rest: object) -> None:
        if made:
            path.with_suffix(".safetensors.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        made.append(path.name)
        real(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(make, "write_batch", stop_at_the_second)
    assert gen(*command).code == 130
    monkeypatch.setattr(make, "write_batch", real)
    refused = gen("emit", "--run", tmp_path / "out")
    assert refused.code == 2
    assert "holds 1 of 3 batches of its bank (000001.safetensors is missing" in refused.err
    first = tmp_path / "out" / "bank" / made[0]
    before = first.stat().st_mtime_ns
    done = gen(*command, "--resume")
    assert done.code == 0, done.err
    assert first.stat().st_mtime_ns == before
    for pattern in ("bank/*.safetensors", "shards/*.tar", "metrics.jsonl"):
        assert files(tmp_path / "out", pattern) == files(banks["dsg"], pattern) != {}
    assert read_manifest(tmp_path / "out" / "shards") == read_manifest(banks["dsg"] / "shards")
    # A batch of other settings, or a damaged one, is made again.
    shutil.copy(banks["zeroq"] / "bank" / "000000.safetensors", first)
    (first.parent / "000001.safetensors").write_bytes(b"cut short")
    assert gen(*command, "--resume").code == 0
    assert files(tmp_path / "out", "bank/*.safetensors") == files(banks["dsg"], "bank/*.safetensors")
    fresh = [word for word in command if word != "dsg"]
    fresh.insert(fresh.index("--method") + 1, "zeroq")
    assert gen(*fresh, "--overwrite").code == 0
    assert files(tmp_path / "out", "bank/*.safetensors") == files(banks["zeroq"], "bank/*.safetensors")


def test_a_bank_gives_what_it_holds_and_no_more(banks: dict[str, Path], gen: Cli, tmp_path: Path) -> None:
    run = banks["intraq"]
    for flags, words in (
        (("--per-class", 50), "--per-class: 50, but the bank"),
        (("--heldout-per-class", 3), "--heldout-per-class: 3, but the bank"),
        (("--seed", 5), "no other seed can draw from"),
    ):
        refused = gen("emit", "--run", run, *flags, "--out", tmp_path / "no")
        assert refused.code == 2
        assert words in refused.err
        assert not (tmp_path / "no").exists()
    less = ("--per-class", 3, "--heldout-per-class", 1, "--samples-per-shard", 15)
    assert gen("emit", "--run", run, *less, "--out", tmp_path / "set").code == 0
    before = files(tmp_path / "set", "*.tar")
    done = gen("emit", "--run", run, "--per-class", 8, "--heldout-per-class", 2, "--out", tmp_path / "set")
    assert done.code == 0, done.err
    after = files(tmp_path / "set", "*.tar")
    assert {name: after[name] for name in before} == before
    both = [ShardSet.open(tmp_path / "set").split(split) for split in ("train", "heldout")]  # type: ignore[arg-type]
    images = [samples.read_sample(number).content for samples in both for number in range(len(samples))]
    assert len(set(images)) == len(images) == 100
    whole = ShardSet.open(run / "shards").split("train")
    assert {whole.read_sample(n).content for n in range(80)} <= set(images)


def test_classes_that_a_bank_cannot_fill_stay_short(
    banks: dict[str, Path], digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path
) -> None:
    """Noise that was hardly optimised: the teacher rejects most, the set says so, and `emit` with the same counts is no mistake."""
    flags = ("--preset", "quick", "--method", "intraq", *SMALL, "--bank-steps", 2, "--out", tmp_path / "out")
    done = gen("train", *digits_teacher.flags, *flags)
    assert done.code == 0, done.err
    assert "got fewer images than wanted" in done.err
    manifest = read_manifest(tmp_path / "out" / "shards")
    assert manifest.generation is not None
    assert min(manifest.splits["train"].per_class) < 8
    bank = [load_file(path) for path in sorted((tmp_path / "out" / "bank").iterdir())]
    wrong = sum(int((one["labels"] != one["top1"]).sum()) for one in bank)
    assert 0 < sum(manifest.generation.rejected) <= wrong
    assert "nothing to do" in gen("emit", "--run", tmp_path / "out").err
    kept = gen("emit", "--run", tmp_path / "out", "--keep-misclassified", "--out", tmp_path / "kept")
    assert kept.code == 0, kept.err
    assert read_manifest(tmp_path / "kept").splits["train"].per_class == [8] * 10


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "zeroq", "--latent-size", "10"], ["--latent-size has no meaning with --method zeroq"]),
        (["--method", "dsg", "--epochs", "10"], ["--epochs has no meaning with --method dsg"]),
        (["--method", "intraq", "--alpha-bns", "1"], ["--alpha-bns has no meaning with --method intraq"]),
        (["--method", "zeroq", "--classes-per-batch", "5"], ["--classes-per-batch", "asks for no classes"]),
        (["--bank-steps", "5"], ["--bank-steps has no meaning with --method clusterq", "zeroq, dsg, intraq"]),
        (["--method", "zeroq", "--bank-hard-gamma", "2"], ["bank_hard_gamma needs classes"]),
        (["--method", "zeroq", "--bank-bns-weight", "0"], ["nothing would be optimised"]),
        (["--method", "intraq", "--bank-margin-least", "0.9"], ["exceeds bank_margin_most"]),
    ],
)
def test_flags_that_do_not_fit_the_method(
    flags: list[str], words: list[str], digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path
) -> None:
    done = gen("train", *digits_teacher.flags, "--preset", "quick", *flags, "--out", tmp_path / "out")
    assert done.code == 2
    for word in words:
        assert word in done.err
    assert not (tmp_path / "out").exists()


def test_defaults_by_method_and_preset(digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path) -> None:
    arch = {"teacher": {"arch": "resnet18"}}
    intraq = resolve({**arch, "method": {"method": "intraq"}}, "auto", imagenet_sized=True)
    assert (intraq.bank.bank_steps, intraq.bank.bank_lr, intraq.train.batch_size, intraq.emit.per_class) == (
        1000,
        0.5,
        256,
        200,
    )
    quick = resolve({**arch, "method": {"method": "dsg"}, "bank": {"bank_slack": 0.5}}, "quick", imagenet_sized=False)
    assert (quick.bank.bank_steps, quick.bank.bank_slack, quick.bank.bank_emphasis, quick.train.batch_size) == (
        200,
        0.5,
        1,
        100,
    )
    assert preset_notes()["bank"]["bank_lr"] == "0.1; intraq: 0.5"
    flags = ("--preset", "quick", "--method", "zeroq", *SMALL, "--dry-run", "--out", tmp_path / "out")
    done = gen("train", *digits_teacher.flags, *flags)
    assert done.code == 0, done.err
    assert "bank: 3 batches of 40 images, labelled by the teacher's own answer" in done.err
    assert not (tmp_path / "out").exists()


def test_a_saved_configuration_and_another_method(banks: dict[str, Path], gen: Cli, tmp_path: Path) -> None:
    """What made the other method that method must not stay behind under this one's name."""
    saved = banks["dsg"] / "config.yaml"
    done = gen("train", "--config", saved, "--method", "zeroq", *SMALL, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert files(tmp_path / "out", "bank/*") == files(banks["zeroq"], "bank/*")
    refused = gen("train", "--config", saved, "--epochs", 3, "--out", tmp_path / "no")
    assert "--epochs has no meaning with --method dsg" in refused.err


def test_a_bank_that_diverges_says_so(
    digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clusterq_gen.bank.optimise.statistics_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    done = gen("train", *digits_teacher.flags, "--preset", "quick", "--method", "zeroq", *SMALL, "--out", tmp_path / "out")
    assert done.code == 2
    assert "batch 0 of the bank is no longer finite" in done.err
    assert "--bank-lr" in done.err
    assert not list((tmp_path / "out").glob("bank/*"))


# ---- several processes


def make_in_two(config: GenConfig, folder: Path) -> None:
    teacher = load_teacher(config.teacher)
    with process_group() as ranks:
        assert ranks.world == 2
        make_bank(config, teacher, folder, CPU)


def test_two_processes_make_the_same_bank(banks: dict[str, Path], tmp_path: Path) -> None:
    """Three batches, so that one process has two and the other one: none may wait for the other within a batch."""
    in_processes(2, make_in_two, GenConfig.from_yaml(banks["dsg"] / "config.yaml"), tmp_path)
    assert files(tmp_path, "bank/*") == files(banks["dsg"], "bank/*")
    assert files(tmp_path, "metrics.jsonl") == files(banks["dsg"], "metrics.jsonl")
