"""A bank on disk: one safetensors file for each finished batch."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from clusterq_common.files import atomic_write, make_folder, sha256_file
from clusterq_common.run.run_folder import BANK
from clusterq_common.teacher.load import Teacher
from clusterq_gen.bank.layout import BankLayout
from clusterq_gen.bank.optimise import BankBatch
from clusterq_gen.config import GenConfig

NOTE = "clusterq"


def batch_path(run: Path, number: int) -> Path:
    """`bank/000000.safetensors` in a run's folder."""
    return run / BANK / f"{number:06d}.safetensors"


def made_of(config: GenConfig, teacher: Teacher) -> str:
    """SHA-256 of everything that a batch depends on, apart from its number."""
    what = {
        "method": config.method.method,
        "bank": config.bank.model_dump(mode="json"),
        "layout": vars(BankLayout.of(config, teacher.spec.num_classes)) | {"batches": None},
        "seed": config.runtime.seed,
        "teacher": teacher.digest,
        "spec": teacher.spec.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def write_batch(path: Path, batch: BankBatch, made: str) -> None:
    """Pixels, labels, the teacher's answers and the losses, in one file written whole; the same batch gives the same bytes."""
    make_folder(path.parent)
    # safetensors refuses tensors that share memory, as answers that are the labels do.
    tensors = {"pixels": batch.pixels, "labels": batch.labels, "top1": batch.top1.clone()}
    # One key: safetensors writes several in any order.
    atomic_write(path, save(tensors, {NOTE: json.dumps({"made_of": made, "losses": batch.losses})}))


def is_finished(path: Path, made: str) -> bool:
    """Return whether a whole batch of that making lies there."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get(NOTE, "{}")).get("made_of") == made
    except (OSError, SafetensorError, ValueError, AttributeError, RecursionError):
        return False


def read_losses(path: Path) -> dict[str, float]:
    """The losses that `write_batch` noted."""
    with safe_open(path, "pt") as file:
        losses: dict[str, float] = json.loads(file.metadata()[NOTE])["losses"]
    return losses


def read_answers(path: Path) -> tuple[list[int], list[int]]:
    """Labels and the teacher's top-1 of a batch."""
    with safe_open(path, "pt") as file:
        return file.get_tensor("labels").tolist(), file.get_tensor("top1").tolist()


def read_pixels(path: Path, rows: list[int]) -> torch.Tensor:
    """Some images of a batch, (len(rows), C, H, W) uint8; the others are not read."""
    with safe_open(path, "pt") as file:
        part = file.get_slice("pixels")
        return torch.stack([part[row] for row in rows])


def bank_digest(paths: list[Path]) -> str:
    """`sha256:<hex>` over the files' hashes, in order."""
    return "sha256:" + hashlib.sha256("\n".join(sha256_file(path) for path in paths).encode()).hexdigest()
