"""`clusterq-finetune shards ...` on a real small set."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from clusterq_finetune.cli.shards import parse_classes
from tests.conftest import Cli, DigitsTeacher


def test_info(digits_run: Path, finetune: Cli) -> None:
    done = finetune("shards", "info", digits_run, "--json")
    assert done.code == 0, done.err
    assert "digits_net.py:digits_net" in done.out
    assert json.loads(done.out.splitlines()[-1])["format"] == "clusterq-shards/1"


def test_verify_with_and_without_the_teacher(
    digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    done = finetune("shards", "verify", digits_run)
    assert (done.code, done.out) == (0, "maker: unsigned: who made it cannot be told\nnothing is wrong\n")
    teacher = digits_teacher.flags[:4]
    with_teacher = finetune("shards", "verify", digits_run, *teacher, "--json")
    assert with_teacher.code == 0, with_teacher.out
    assert json.loads(with_teacher.out.splitlines()[-1])["ok"] is True
    shutil.copytree(digits_run / "shards", tmp_path / "bad")
    shard = tmp_path / "bad" / "synth-train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    broken = finetune("shards", "verify", tmp_path / "bad", "--json")
    assert broken.code == 2
    assert "cut short" in broken.out
    assert json.loads(broken.out.splitlines()[-1])["problems"][0]["file"] == "synth-train-000000.tar"


def test_verify_finds_labels_and_logits_that_are_not_the_teachers(
    digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    """A set that is consistent in itself but lies about the teacher: only the teacher can tell."""
    from dataclasses import replace

    from clusterq_common.images import png
    from clusterq_common.shards.digest import sample_digest
    from clusterq_common.shards.manifest import read_manifest, set_digest
    from clusterq_common.shards.read import ShardSet
    from clusterq_common.shards.write import Written, shard_name, write_manifest, write_shard

    manifest = read_manifest(digits_run / "shards")
    source = ShardSet.open(digits_run).split("train")
    made = [source.read_sample(number) for number in range(len(source))]
    swapped = [(sample.label + 1) % 10 for sample in made]
    lies = [
        replace(
            sample,
            label=label,
            teacher_top1=label,
            content=sample_digest(label, png.decode(sample.png, (8, 8), 1)),
            logits=sample.logits + 1,
        )
        for sample, label in zip(made, swapped, strict=True)
    ]
    written = Written.nothing(10)
    written.add(write_shard(tmp_path, shard_name("train", 0), lies, start_key=0, num_classes=10))
    splits = {"train": written.split()}
    write_manifest(tmp_path, manifest.model_copy(update={"splits": splits, "digest": set_digest(splits)}))
    assert finetune("shards", "verify", tmp_path).code == 0
    verified = finetune("shards", "verify", tmp_path, *digits_teacher.flags[:4])
    assert verified.code == 2
    assert "the teacher says" in verified.out
    assert "off the teacher's" in verified.out


def test_preview(digits_run: Path, finetune: Cli, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    done = finetune("shards", "preview", digits_run, "--classes", "0,3-5", "--per-class", 6, "--out", out)
    assert done.code == 0, done.err
    assert "24 images" in done.out
    picture = Image.open(out)
    assert picture.size == (120 + 6 * 50 + 2, 4 * 50 + 2)
    assert len(set(picture.crop((122, 2, 170, 50)).get_flattened_data())) > 3, "the first image is on it"
    refused = finetune("shards", "preview", digits_run, "--classes", "10", "--out", out)
    assert refused.code == 2


def test_merge_subset_and_repair_then_fine_tune(
    digits_run: Path, digits_teacher: DigitsTeacher, gen: Cli, finetune: Cli, tmp_path: Path
) -> None:
    assert gen("emit", "--run", digits_run, "--per-class", 4, "--seed", 3, "--out", tmp_path / "more").code == 0
    merged = finetune("shards", "merge", digits_run, tmp_path / "more", "--out", tmp_path / "both")
    assert merged.code == 0, merged.err
    cut = finetune("shards", "subset", tmp_path / "both", "--classes", "0-8", "--per-class", 3, "--out", tmp_path / "cut")
    assert cut.code == 0, cut.err
    (tmp_path / "cut" / "synth-heldout-000000.tar").unlink()
    assert finetune("shards", "verify", tmp_path / "cut").code == 2
    mended = finetune("shards", "repair", tmp_path / "cut", "--out", tmp_path / "mended")
    assert mended.code == 0, mended.err
    assert finetune("shards", "verify", tmp_path / "mended").code == 0
    refused = gen("emit", "--run", digits_run, "--per-class", 9, "--out", tmp_path / "both")
    assert "merged or cut" in refused.err
    # Nine classes of three images, no held-out split: still something to learn from.
    flags = [*digits_teacher.flags[:4], "--epochs", 1, "--steps-per-epoch", 0, "--out", tmp_path / "student"]
    done = finetune("--shards", tmp_path / "mended", *flags)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("merge", "RUN"), "found one set, expected two"),
        (("merge", "RUN", "RUN", "--out", "RUN"), "is not empty"),
        (("subset", "RUN", "--classes", "a-b"), "expected class numbers"),
        (("info", "absent"), "absent is no folder"),
        (("verify", "RUN", "--arch", "resnet20_cifar10", "--weights", "random"), "made for a teacher with digest"),
        (("verify", "RUN", "--weights", "x.pth"), "--arch is missing"),
    ],
)
def test_refusals(words: tuple[str, ...], sentence: str, digits_run: Path, finetune: Cli, tmp_path: Path) -> None:
    arguments = [str(digits_run) if word == "RUN" else word for word in words]
    if words[0] in {"merge", "subset"} and "--out" not in words:
        arguments += ["--out", str(tmp_path / "out")]
    done = finetune("shards", *arguments)
    assert done.code == 2
    assert sentence in done.err
    assert not (tmp_path / "out").exists()


def test_classes_in_ranges() -> None:
    assert parse_classes("3,0,10-12") == [0, 3, 10, 11, 12]
    assert parse_classes(None) is None
