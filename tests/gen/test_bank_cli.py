"""Banks through the command line: sets, interruptions, limits, flags, two processes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clusterq_common.device.distributed import process_group
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import load_teacher
from clusterq_gen.bank import make
from clusterq_gen.bank.config import BANK_METHODS
from clusterq_gen.bank.make import make_bank
from clusterq_gen.config import GenConfig
from clusterq_gen.estimate import Speed
from clusterq_gen.presets import preset_notes, resolve
from tests.conftest import Cli, DigitsTeacher
from tests.gen.bank_settings import SMALL
from tests.png_tensors import decode_png
from tests.several import in_processes

CPU = torch.device("cpu")


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
        real(path, *rest)

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
    both = [ShardSet.open(tmp_path / "set").split(split) for split in ("train", "heldout")]
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
    wrong = sum(int((batch["labels"] != batch["top1"]).sum()) for batch in bank)
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
    assert "bank: 3 batches of 40 images, labelled by the teacher's own answer" in done.out
    assert not (tmp_path / "out").exists()


def test_a_saved_configuration_and_another_method(banks: dict[str, Path], gen: Cli, tmp_path: Path) -> None:
    """Settings that belong to the other method must not stay behind under this one's name."""
    saved = banks["dsg"] / "config.yaml"
    done = gen("train", "--config", saved, "--method", "zeroq", *SMALL, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert files(tmp_path / "out", "bank/*") == files(banks["zeroq"], "bank/*")
    refused = gen("train", "--config", saved, "--epochs", 3, "--out", tmp_path / "no")
    assert "--epochs has no meaning with --method dsg" in refused.err


def test_a_bank_that_diverges_says_so(
    digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The estimate before a run takes steps, too; it says nothing of the images.
    monkeypatch.setattr("clusterq_gen.commands.measure_speed", lambda *_: Speed(0.0, 0.0, 0.0))
    monkeypatch.setattr("clusterq_gen.bank.optimise.statistics_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    done = gen("train", *digits_teacher.flags, "--preset", "quick", "--method", "zeroq", *SMALL, "--out", tmp_path / "out")
    assert done.code == 2
    assert "batch 0 of the bank: images are no longer finite" in done.err
    assert "--bank-lr" in done.err
    assert not list((tmp_path / "out").glob("bank/*"))


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
