"""What lies beside the manifest for people and for other tools."""

from typing import Any

import yaml

from clusterq_common.shards.manifest import Manifest, SplitName


def dataset_card(manifest: Manifest) -> str:
    """README.md: front matter as the Hugging Face Hub expects it, then what the set is, is not, and how to use it."""
    data_files = [{"split": name, "path": f"synth-{name}-*.tar"} for name in manifest.splits]
    spec, teacher, generation = manifest.teacher.spec, manifest.teacher, manifest.generation
    front = yaml.safe_dump(
        {
            "task_categories": ["image-classification"],
            "tags": ["synthetic", "data-free-quantization", "webdataset", "clusterq"],
            "configs": [{"config_name": "default", "data_files": data_files}],
        },
        sort_keys=False,
    )
    counts = "\n".join(f"| {name} | {split.samples} | {len(split.shards)} |" for name, split in manifest.splits.items())
    return f"""---
{front}---

# Synthetic images for {teacher.arch}

Class-labelled images that a generator learned from a trained classifier alone, to quantize that classifier where its
training data may not be used. No real image was used or is contained; do not take them for samples of the real classes.

| split | images | shards |
|---|---|---|
{counts}

- teacher: `{teacher.arch}`, weights `{teacher.digest}`
- images: {spec.channels} x {spec.size} x {spec.size}, 8-bit PNG, {spec.num_classes} classes
- method: {generation.method}, seed {generation.seed}; every setting stands in `manifest.json`
- the teacher agrees with the label of {100 * generation.teacher_agreement:.1f} % of the images drawn; those it takes for another
  class were {"kept" if generation.keep_misclassified else "dropped"}; its mean confidence is {100 * generation.mean_confidence:.1f} %

Members of a sample: `.png` (pixels), `.cls` (class index), `.json` (label, seed, attempt, the teacher's top-1 and
confidence){", `.logits.npy` (the teacher's logits, float16)" if manifest.has_logits else ""}. Labels and logits are the teacher's on the decoded PNG.

Fine-tune the same classifier to four bits:

```
clusterq-finetune --shards THIS_FOLDER --bits w4a4 --arch {"path/to/file.py:factory --weights FILE" if teacher.is_factory else teacher.arch}
```

`manifest.json` holds the SHA-256 of every shard; clusterq checks them before it uses the set.
"""


def timm_info(manifest: Manifest) -> dict[str, Any]:
    """`_info.json`: shard names and lengths by split, as timm's reader of webdataset folders takes them."""
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
    """The index with which `wids` (in webdataset) gives random access to a split."""
    shards = manifest.splits[split].shards
    return {
        "wids_version": 1,
        "shardlist": [{"url": shard.file, "nsamples": shard.samples, "filesize": shard.bytes} for shard in shards],
    }
