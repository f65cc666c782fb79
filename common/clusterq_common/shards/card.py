"""Files beside the manifest for people and for other tools."""

from typing import Any

import yaml

from clusterq_common.escape import markdown, markdown_code, markdown_paragraphs, one_line, shell_command
from clusterq_common.shards.manifest import GIVEN, Generation, Manifest, SplitName


def dataset_card(manifest: Manifest) -> str:
    """Return README.md: front matter for the Hugging Face Hub, then a description of the set, its limits and its use."""
    spec, teacher = manifest.teacher.spec, manifest.teacher
    front = yaml.safe_dump(_front_matter(manifest), sort_keys=False, allow_unicode=True)
    counts = "\n".join(f"| {name} | {split.samples} | {len(split.shards)} |" for name, split in manifest.splits.items())
    arch = "path/to/file.py:factory --weights FILE" if teacher.is_factory else shell_command(teacher.arch)
    note = f"\n{markdown_paragraphs(manifest.note)}\n" if manifest.note else ""
    commit = f" (commit {markdown_code(manifest.commit)})" if manifest.commit else ""
    return f"""---
{front}---

# {markdown(_title(manifest))}

{_introduction(manifest)}
{note}
| split | images | shards |
|---|---|---|
{counts}

- teacher: {markdown_code(teacher.arch)}, {teacher.parameters:,} parameters, {teacher.batchnorm_layers} BatchNorm layers, weights `{teacher.digest}`
- images: {spec.channels} x {spec.height} x {spec.width}, 8-bit PNG, {spec.num_classes} classes; normalised with mean {_list(spec.mean)}, std {_list(spec.std)}
- {100 * manifest.pixels.clipped:.2f} % of the pixel values lie at an end of their range
- the teacher's mean confidence in its top-1 is {100 * manifest.mean_confidence:.1f} %
- the whole set: `{manifest.digest}`, version {set_version(manifest)}

## How it was made
{_making(manifest)}

Every setting and seed stands in `manifest.json`. Made by {markdown(manifest.created_by)}{commit}.

## What it is for, and what it is not
It is for calibrating, fine-tuning and comparing low-bit versions of that very classifier. {_limits(manifest)}

## Members of a sample
`.png` (pixels), `.cls` (class index), `.json` (label, class asked for, seed, attempt, the teacher's top-1 and
confidence){", `.logits.npy` (the teacher's logits, float16)" if manifest.has_logits else ""}. Labels and logits are the teacher's on the pixels of the PNG.

## Use it
```
clusterq-finetune shards verify THIS_FOLDER
clusterq-finetune --shards THIS_FOLDER --bits w4a4 --arch {arch}
```
`manifest.json` holds the SHA-256 of every shard; clusterq checks them before it uses the set. Any reader of webdataset tars reads
it too: `datasets.load_dataset("THIS_FOLDER")`, `webdataset`, `wids` (`wids-train.json`), timm (`_info.json`).
"""


def set_version(manifest: Manifest) -> str:
    """Return the version of a set, its number of emissions and the beginning of its digest: `2+1f0c55aa`."""
    rounds = len(manifest.generation.rounds) if manifest.generation else 1
    return f"{rounds}+{manifest.digest.removeprefix('sha256:')[:8]}"


def holds_given(manifest: Manifest) -> bool:
    """Return whether images of the set were given to clusterq instead of made by it, or come from a set of such."""
    made = [manifest.generation, *(parent.generation for parent in manifest.parents)]
    return any(generation is not None and generation.method == GIVEN for generation in made)


def _title(manifest: Manifest) -> str:
    return f"{'Images' if holds_given(manifest) else 'Synthetic images'} for {manifest.teacher.arch}"


def _introduction(manifest: Manifest) -> str:
    if holds_given(manifest):
        return "Class-labelled images with a trained classifier's answers to them, to quantize that classifier."
    return """Class-labelled images made from a trained classifier alone, to quantize that classifier where its training data may not be
used."""


def _limits(manifest: Manifest) -> str:
    if holds_given(manifest):
        return """clusterq does not know
where the images come from: they may be real ones. Labels may be the teacher's own, so they measure no accuracy."""
    return """It holds no real image, and none was
looked at; the images are not samples of the real classes, train no classifier from nothing, and measure no accuracy. Statistics of
the teacher's training data do show in them, as they show in the teacher's weights."""


def _front_matter(manifest: Manifest) -> dict[str, Any]:
    classes = manifest.teacher.spec.num_classes
    names = [one_line(name) for name in manifest.class_names or range(classes)]
    features: list[dict[str, Any]] = [
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
        {"name": "png", "dtype": "image"},
        {"name": "cls", "dtype": {"class_label": {"names": dict(enumerate(names))}}},
        {
            "name": "json",
            "struct": [
                {"name": "label", "dtype": "int64"},
                {"name": "asked", "dtype": "int64"},
                {"name": "seed", "dtype": "int64"},
                {"name": "attempt", "dtype": "int64"},
                {"name": "teacher_top1", "dtype": "int64"},
                {"name": "teacher_confidence", "dtype": "float64"},
            ],
        },
    ]
    if manifest.has_logits:
        features.append({"name": "logits.npy", "list": "float16"})
    size = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    return {
        **({"license": one_line(manifest.license.lower())} if manifest.license else {}),
        "pretty_name": one_line(_title(manifest)),
        "version": set_version(manifest),
        "task_categories": ["image-classification"],
        "size_categories": [_size_category(sum(split.samples for split in manifest.splits.values()))],
        "tags": [*([] if holds_given(manifest) else ["synthetic", "data-free-quantization"]), "webdataset", "clusterq"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"synth-{name}-*.tar"} for name in manifest.splits],
            }
        ],
        "dataset_info": {
            "features": features,
            "splits": [
                {"name": name, "num_examples": split.samples, "num_bytes": sum(shard.bytes for shard in split.shards)}
                for name, split in manifest.splits.items()
            ],
            "download_size": size,
            "dataset_size": size,
        },
    }


def _making(manifest: Manifest) -> str:
    made = manifest.generation
    if made is not None and made.method == GIVEN:
        return _given(made)
    if made is not None:
        return _images_by(made) + (
            f"Method {markdown(made.method)}, seed {made.seed}. The teacher saw the class asked for in {100 * made.teacher_agreement:.1f} % of "
            f"{made.candidates} images drawn; those it takes for another class {_others(made)}."
        )
    assert manifest.derivation is not None
    lines = [f"By `{manifest.derivation.operation}` from other sets ({markdown_code(manifest.derivation.settings)}):", ""]
    for parent in manifest.parents:
        how = (
            f"method {markdown(parent.generation.method)}, seed {parent.generation.seed}"
            if parent.generation
            else "itself derived"
        )
        lines.append(f"- `{parent.digest}`, {parent.samples} images, {how}")
    return "\n".join(lines)


def _given(made: Generation) -> str:
    """Describe images that clusterq did not make."""
    labels = "Labels are what the teacher takes them for."
    if made.labels == "asked":
        labels = f"Labels were given, too; the teacher names them for {100 * made.teacher_agreement:.1f} % of the images."
    return f"Not by clusterq: {made.candidates} images were given to it, and it asked the teacher about them. {labels}"


def _others(made: Generation) -> str:
    """Describe the treatment of images that the teacher takes for another class than was asked for."""
    if made.labels == "teacher":
        return "were given to that class"
    return "were kept" if made.keep_misclassified else "were dropped and replaced"


def _images_by(made: Generation) -> str:
    """Describe images that are not simply a generator's, from the settings."""
    refined = made.settings.get("refine")
    steps = refined.get("refine_steps") if isinstance(refined, dict) else None
    if steps:
        return f"A generator drew the images; they were then optimised for {markdown(steps)} steps, to have the statistics of the teacher's BatchNorm layers. "
    if "bank" not in made.settings:
        return ""
    labels = made.settings.get("labels")
    return f"No generator: each image was optimised directly, in a bank of them. Labels: {markdown(labels)}. "


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _size_category(samples: int) -> str:
    """Return the Hub's size category for a number of images."""
    bins = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
    return next((name for limit, name in bins.items() if samples < limit), "10M<n<100M")


def timm_info(manifest: Manifest) -> dict[str, Any]:
    """Return `_info.json`: shard names and lengths by split, for timm's reader of webdataset folders."""
    return {
        "splits": {
            name: {
                "name": name,
                "filenames": [shard.file for shard in split.shards],
                "shard_lengths": [shard.samples for shard in split.shards],
                "num_samples": split.samples,
            }
            for name, split in manifest.splits.items()
        }
    }


def wids_index(manifest: Manifest, split: SplitName) -> dict[str, Any]:
    """Return the index with which `wids` (in webdataset) gives random access to a split."""
    shards = manifest.splits[split].shards
    return {
        "wids_version": 1,
        "shardlist": [{"url": shard.file, "nsamples": shard.samples, "filesize": shard.bytes} for shard in shards],
    }
