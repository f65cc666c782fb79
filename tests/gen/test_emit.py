"""Emission: shards are a function of (seed, class, attempt), for any number of processes and interruptions."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from clusterq_common.images.normalise import to_pixels
from clusterq_common.shards.manifest import Split, SplitName, meaning_of, read_manifest, set_digest
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import load_teacher
from clusterq_gen.bank.files import NOTE, is_finished
from clusterq_gen.config import GenConfig
from clusterq_gen.emission import emit as emission
from clusterq_gen.emission.candidate_source import GeneratorSource
from clusterq_gen.emission.candidates import CHUNK, CandidateScheduler
from clusterq_gen.emission.journal import JOURNAL, Journal
from clusterq_gen.emission.shard_plan import CANDIDATES_PER_IMAGE, ShardPlan, plan_shards
from clusterq_gen.networks.generator import build_generator
from tests import preloaded
from tests.conftest import FACTORY, Cli
from tests.png_tensors import decode_png

# Ten classes, seven images of each, sixteen slots in a shard: five training shards and one of held-out images.
WANTED = ("--per-class", 7, "--heldout-per-class", 1, "--samples-per-shard", 16)


@pytest.fixture(scope="module")
def whole(digits_run: Path, tmp_path_factory: pytest.TempPathFactory, gen: Cli) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = gen("emit", "--run", digits_run, *WANTED, "--out", folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def unsure(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with a generator whose classes lie nearly half-way to the next ones: the teacher often sees another one."""
    folder = tmp_path_factory.mktemp("unsure") / "run"
    shutil.copytree(digits_run, folder, ignore=shutil.ignore_patterns("shards"))
    weights = load_file(folder / "generator.safetensors")
    table = weights["embedding.weight"]
    weights["embedding.weight"] = 0.6 * table + 0.4 * table.roll(1, 0)
    save_file(weights, folder / "generator.safetensors")
    return folder


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def contents(folder: Path, split: SplitName = "train") -> list[bytes]:
    samples = ShardSet.open(folder).split(split)
    return [samples.read_sample(number).content for number in range(len(samples))]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(1, 12), st.integers(1, 40))
def test_blocks_cover_every_wanted_image_once(counts: list[int], classes: int, per_shard: int) -> None:
    rounds: list[dict[SplitName, int]] = [{"train": sum(counts[: n + 1]), "heldout": n} for n in range(len(counts))]
    plans = plan_shards(rounds, classes, per_shard)
    for split in ("train", "heldout"):
        own = [plan for plan in plans if plan.split == split]
        assert [plan.number for plan in own] == list(range(len(own)))
        assert [sum(column) for column in zip(*(plan.wanted for plan in own), strict=True)] == (
            [rounds[-1][split]] * classes if own else []
        )
        tried = [
            (label, attempt)
            for plan in own
            for label in range(classes)
            for attempt in range(plan.attempts[label], plan.limit[label])
        ]
        assert len(tried) == len(set(tried)) == rounds[-1][split] * classes * CANDIDATES_PER_IMAGE
        keys = [plan.first_slot + n for plan in own for n in range(sum(plan.wanted))]
        assert keys == list(range(rounds[-1][split] * classes))
        assert all(sum(plan.wanted) <= per_shard for plan in own)
    before = plan_shards(rounds[:-1], classes, per_shard)
    assert [plan for plan in before if plan not in plans] == [], "an extension leaves earlier shards as they are"


def test_classes_take_turns_also_when_there_are_more_than_fit_into_a_chunk() -> None:
    classes = 3 * CHUNK
    turns = CandidateScheduler(plan_shards([{"train": 2}], classes, 10_000)[0])
    first = [label for _ in range(3) for label, _ in turns.next_tries()]
    assert sorted(first) == list(range(classes))


def test_what_the_set_says_of_itself(whole: Path) -> None:
    manifest = read_manifest(whole)
    assert manifest.splits["train"].per_class == [7] * 10
    assert [shard.samples for shard in manifest.splits["train"].shards] == [16, 16, 16, 16, 6]
    assert manifest.splits["heldout"].samples == 10
    assert manifest.generation is not None
    assert manifest.generation.rounds == [{"train": 7, "heldout": 1}]
    assert manifest.generation.candidates == 80 + sum(manifest.generation.rejected)
    assert manifest.teacher.batchnorm_layers == 5
    assert not (whole / ".emission").exists()
    assert not set(contents(whole)) & set(contents(whole, "heldout"))


def test_labels_may_be_the_teachers_own(unsure: Path, tmp_path: Path, gen: Cli) -> None:
    """No candidate is lost for having another class than was asked for, and classes are still even."""
    for labels, name in (("asked", "plain"), ("teacher", "set")):
        done = gen("emit", "--run", unsure, "--arch", FACTORY, *WANTED, "--labels", labels, "--out", tmp_path / name)
        assert done.code == 0, done.err
    manifest, plain = read_manifest(tmp_path / "set"), read_manifest(tmp_path / "plain")
    assert manifest.splits["train"].per_class == [7] * 10
    assert manifest.generation is not None
    assert plain.generation is not None
    assert (manifest.generation.labels, plain.generation.labels) == ("teacher", "asked")
    assert manifest.generation.candidates < plain.generation.candidates
    assert 0 < manifest.generation.teacher_agreement < 1
    config = GenConfig.from_yaml(unsure / "config.yaml")
    teacher = load_teacher(config.teacher)
    source = GeneratorSource.load(unsure, config, teacher.spec, 0, torch.device("cpu"))
    reader = ShardSet.open(tmp_path / "set").split("train")
    samples = [reader.read_sample(number) for number in range(len(reader))]
    assert all(sample.label == sample.teacher_top1 for sample in samples)
    moved = [sample for sample in samples if sample.label != sample.asked]
    assert moved
    for sample in moved[:3]:  # the class asked for and the attempt say where the image comes from
        again = to_pixels(source.images([(sample.asked, sample.attempt)]), teacher.spec)[0]
        assert (again.int() - decode_png(sample.png, teacher.spec).int()).abs().max() <= 1
    refused = gen("emit", "--run", unsure, "--arch", FACTORY, *WANTED, "--out", tmp_path / "set")
    assert "shards of another --labels" in refused.err
    refused = gen(
        "emit", "--run", unsure, "--arch", FACTORY, "--labels", "teacher", "--keep-misclassified", "--out", tmp_path / "no"
    )
    assert refused.code == 2
    assert "keep_misclassified has no meaning" in refused.err
    assert not (tmp_path / "no").exists()


def test_any_number_of_encoding_processes_gives_the_same_bytes(digits_run: Path, whole: Path, tmp_path: Path, gen: Cli) -> None:
    done = gen("emit", "--run", digits_run, *WANTED, "--workers", 2, "--out", tmp_path / "two")
    assert done.code == 0, done.err
    assert tars(tmp_path / "two") == tars(whole)
    assert read_manifest(tmp_path / "two") == read_manifest(whole)


def test_several_processes_under_torchrun_give_the_same_bytes(digits_run: Path, whole: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "clusterq_gen"]
    # Without -- torchrun takes --run for one of its own options.
    command = [*launcher, "--", "emit", "--run", digits_run, *WANTED, "--threads", 1, "--out", tmp_path / "two"]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=preloaded.environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert tars(tmp_path / "two") == tars(whole)
    assert read_manifest(tmp_path / "two").digest == read_manifest(whole).digest


def test_after_an_interruption_finished_shards_are_kept_and_the_rest_is_the_same(
    digits_run: Path, whole: Path, tmp_path: Path, gen: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = emission.write_shard

    def stop_at_the_third(folder: Path, name: str, *rest: object, **more: object) -> object:
        if len(made) == 2:
            (folder / f"{name}.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        made.append(name)
        return real(folder, name, *rest, **more)

    monkeypatch.setattr(emission, "write_shard", stop_at_the_third)
    stopped = gen("emit", "--run", digits_run, *WANTED, "--out", tmp_path / "out")
    assert stopped.code == 130
    assert not (tmp_path / "out" / "manifest.json").exists()
    first = tmp_path / "out" / made[0]
    (tmp_path / "out" / made[1]).write_bytes(b"cut short")
    before = first.stat().st_mtime_ns
    monkeypatch.setattr(emission, "write_shard", real)
    done = gen("emit", "--run", digits_run, *WANTED, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert first.stat().st_mtime_ns == before, "a finished shard that verifies is not made again"
    assert tars(tmp_path / "out") == tars(whole)
    assert read_manifest(tmp_path / "out") == read_manifest(whole)
    assert not list((tmp_path / "out").glob("*.partial"))


def test_notes_of_other_settings_are_not_trusted(
    digits_run: Path, tmp_path: Path, gen: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(emission, "gather", never)
    assert gen("emit", "--run", digits_run, *WANTED, "--seed", 5, "--out", tmp_path / "out").code == 130
    notes = sorted((tmp_path / "out" / ".emission").iterdir())
    notes[0].write_text("junk")
    monkeypatch.undo()
    monkeypatch.setenv("CLUSTERQ_CACHE", str(tmp_path / "cache"))
    for out in ("out", "fresh"):
        assert gen("emit", "--run", digits_run, *WANTED, "--seed", 6, "--out", tmp_path / out).code == 0
    assert tars(tmp_path / "out") == tars(tmp_path / "fresh")


def test_an_extension_adds_other_images_and_leaves_shards_as_they_are(
    digits_run: Path, whole: Path, tmp_path: Path, gen: Cli
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole, folder)
    before = contents(folder)
    done = gen("emit", "--run", digits_run, "--per-class", 12, "--heldout-per-class", 1, "--out", folder)
    assert done.code == 0, done.err
    old, new = tars(whole), tars(folder)
    assert {name: new[name] for name in old} == old
    after = contents(folder)
    assert after[: len(before)] == before
    assert len(set(after)) == len(after) == 120
    manifest = read_manifest(folder)
    assert manifest.splits["train"].per_class == [12] * 10
    assert manifest.generation is not None
    assert [wanted["train"] for wanted in manifest.generation.rounds] == [7, 12]
    again = gen("emit", "--run", digits_run, "--per-class", 12, "--heldout-per-class", 1, "--out", folder)
    assert "nothing to do" in again.err
    assert read_manifest(folder) == manifest


def test_a_damaged_shard_is_made_again(digits_run: Path, whole: Path, tmp_path: Path, gen: Cli) -> None:
    folder = tmp_path / "set"
    shutil.copytree(whole, folder)
    (folder / "synth-train-000001.tar").write_bytes(b"damaged")
    (folder / "synth-heldout-000000.tar").unlink()
    done = gen("emit", "--run", digits_run, *WANTED, "--out", folder)
    assert done.code == 0, done.err
    assert tars(folder) == tars(whole)
    assert read_manifest(folder).model_dump(exclude={"versions", "commit"}) == read_manifest(whole).model_dump(
        exclude={"versions", "commit"}
    )


def test_a_shard_that_cannot_be_made_again_is_said(digits_run: Path, whole: Path, tmp_path: Path, gen: Cli) -> None:
    """Here the manifest says that the damaged shard held something else, as it would from a machine that rounds otherwise."""
    folder = tmp_path / "set"
    shutil.copytree(whole, folder)
    values = json.loads((folder / "manifest.json").read_text())
    values["splits"]["train"]["shards"][1]["content"] = "0" * 64
    splits = {name: Split.model_validate(split) for name, split in values["splits"].items()}
    values["digest"] = set_digest(splits)
    (folder / "manifest.json").write_text(json.dumps({**values, "meaning": meaning_of(values)}))
    (folder / "synth-train-000001.tar").write_bytes(b"damaged")
    done = gen("emit", "--run", digits_run, *WANTED, "--out", folder)
    assert done.code == 2
    assert "was damaged, and made anew it holds other images" in done.err


def test_other_seeds_give_other_images_and_are_not_mixed(digits_run: Path, whole: Path, tmp_path: Path, gen: Cli) -> None:
    assert gen("emit", "--run", digits_run, *WANTED, "--seed", 5, "--out", tmp_path / "five").code == 0
    assert not set(contents(tmp_path / "five")) & set(contents(whole))
    refused = gen("emit", "--run", digits_run, *WANTED, "--seed", 9, "--out", tmp_path / "five")
    assert refused.code == 2
    assert "--seed" in refused.err
    other_size = gen(
        "emit", "--run", digits_run, "--per-class", 9, "--seed", 5, "--samples-per-shard", 20, "--out", tmp_path / "five"
    )
    assert other_size.code == 2
    assert "--samples-per-shard" in other_size.err
    replaced = gen("emit", "--run", digits_run, *WANTED, "--out", tmp_path / "five", "--overwrite")
    assert replaced.code == 0, replaced.err
    assert tars(tmp_path / "five") == tars(whole)


def test_what_people_add_to_the_manifest(digits_run: Path, tmp_path: Path, gen: Cli) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"digit {n}" for n in range(10)) + "\n")
    words = ("--class-names", names, "--license", "CC-BY-4.0", "--note", "For the others.")
    assert gen("emit", "--run", digits_run, "--per-class", 1, *words, "--out", tmp_path / "set").code == 0
    manifest = read_manifest(tmp_path / "set")
    assert manifest.class_names is not None
    assert (manifest.class_names[3], manifest.license, manifest.note) == ("digit 3", "CC-BY-4.0", "For the others.")
    card = (tmp_path / "set" / "README.md").read_text()
    assert "license: cc-by-4.0" in card
    assert "For the others." in card
    assert gen("emit", "--run", digits_run, "--per-class", 2, "--out", tmp_path / "set").code == 0
    assert (read_manifest(tmp_path / "set").license, read_manifest(tmp_path / "set").class_names) == (
        "CC-BY-4.0",
        manifest.class_names,
    )
    names.write_text("one\n")
    refused = gen("emit", "--run", digits_run, "--class-names", names, "--out", tmp_path / "other")
    assert refused.code == 2
    assert "holds 1 names, expected 10" in refused.err


def test_classes_the_teacher_never_agrees_with(digits_run: Path, tmp_path: Path, gen: Cli) -> None:
    """A generator that was never trained: few candidates are accepted, the budget of tries is kept, the rest is said."""
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    config = GenConfig.from_yaml(run / "config.yaml")
    teacher = load_teacher(config.teacher)
    save_file(build_generator(config.generator, teacher.spec).state_dict(), run / "generator.safetensors")
    done = gen("emit", "--run", run, "--arch", FACTORY, "--per-class", 4, "--heldout-per-class", 0, "--out", tmp_path / "few")
    if done.code == 0:
        values = json.loads((tmp_path / "few" / "manifest.json").read_text())
        counts = values["splits"]["train"]["per_class"]
        assert sum(counts) < 40
        assert min(counts) < 4
        worst = counts.index(min(counts))
        assert values["generation"]["rejected"][worst] == 4 * CANDIDATES_PER_IMAGE - counts[worst]
        assert "got fewer images than wanted" in done.err
    else:
        assert "agreed with none" in done.err
    kept = gen("emit", "--run", run, "--arch", FACTORY, "--per-class", 4, "--keep-misclassified", "--out", tmp_path / "kept")
    assert kept.code == 0
    values = json.loads((tmp_path / "kept" / "manifest.json").read_text())
    assert values["splits"]["train"]["per_class"] == [4] * 10


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{}", "null"])
def test_notes_that_no_emission_wrote_mean_that_a_shard_is_made_again(text: str, tmp_path: Path) -> None:
    """They may have come with a folder, as the bank's batches."""
    block = ShardPlan("train", 0, 0, (1,), (0,), (20,))
    (tmp_path / JOURNAL).mkdir()
    (tmp_path / JOURNAL / f"{block.name}.json").write_text(text)
    assert Journal(tmp_path, {}).finished(block) is None
    save_file({"pixels": torch.zeros(1)}, tmp_path / "batch", {NOTE: text})
    assert not is_finished(tmp_path / "batch", "sha256:0")
