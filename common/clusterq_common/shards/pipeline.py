"""Reading of a set with webdataset, without the features that are unsafe for files from strangers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.index import ADVICE, MEMBERS
from clusterq_common.shards.manifest import Manifest, Shard
from clusterq_common.shards.members import read_facts, read_label, read_logits, read_pixels


class ShardPipeline(webdataset.DataPipeline, webdataset.FluidInterface):
    """Pipeline of webdataset. Its methods `shuffle`, `batched`, `map`, `to_tuple` and the like return further ones.

    Its samples are decoded: nothing of them is bytes any more, so that webdataset's own `decode` finds nothing to unpickle.
    """


@dataclass(frozen=True)
class DecodeMembers:
    """Decoder of one sample of bytes, as webdataset groups them. Members that the format does not have are refused."""

    manifest: Manifest

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return `__key__`, `png` (C, H, W) uint8, `cls` int, `json` a dict, and `logits.npy` (classes,) float16 if the set has it.

        Raises:
            ClusterqError: a member is missing, or none of the format's, or does not hold what it should.
        """
        spec, key = self.manifest.teacher.spec, str(sample["__key__"])
        where = f"{setting_name('shards')}: sample {key} of {sample['__url__']}"
        wanted = {name for name in MEMBERS if name != "logits.npy" or self.manifest.has_logits}
        members = {name for name in sample if not name.startswith("__")}
        if members != wanted:
            raise ClusterqError(f"{where}: it has {sorted(members)}, expected {sorted(wanted)} behind each other; {ADVICE}.")
        label = read_label(sample["cls"], spec, where)
        values = {
            "__key__": key,
            "png": torch.from_numpy(read_pixels(sample["png"], spec, where)).permute(2, 0, 1).contiguous(),
            "cls": label,
            "json": read_facts(sample["json"], label, spec, where).model_dump(),
        }
        if self.manifest.has_logits:
            values["logits.npy"] = torch.from_numpy(read_logits(sample["logits.npy"], spec, where))
        return values


def shard_pipeline(folder: Path, manifest: Manifest, shards: list[Shard]) -> ShardPipeline:
    """Return a pipeline over verified tars, which the workers of a loader share out."""
    return ShardPipeline(
        # Addresses are a list, because webdataset expands braces, variables and "::" in a string.
        webdataset.SimpleShardList([str((folder / shard.file).resolve()) for shard in shards]),
        webdataset.split_by_worker,
        _opened,
        tar_file_expander,
        group_by_keys,
        webdataset.map(DecodeMembers(manifest)),
    )


def _opened(shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Open files. webdataset's own opener also runs commands and fetches addresses."""
    for shard in shards:
        with open(shard["url"], "rb") as stream:
            yield {**shard, "stream": stream}
