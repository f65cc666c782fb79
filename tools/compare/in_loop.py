"""Evaluation of the in-loop student, which is trained along with the generator on images that are not stored."""

import json
from pathlib import Path

import torch

from clusterq_common.files import atomic_write
from clusterq_common.progress.console import progress
from clusterq_common.run.run_folder import PREDICTIONS, RESULT
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.data.real import open_validation
from clusterq_finetune.evaluation.evaluate import evaluate_models
from clusterq_finetune.evaluation.predictions import Predictions
from clusterq_finetune.evaluation.summary import top1_so_far
from clusterq_finetune.student import load_student


def evaluate_in_loop(folder: Path, run: Path, val: Path, teacher: Teacher, device: torch.device) -> None:
    """Write the predictions of a generator run's student and of its teacher, and a result.json, into `folder`.

    Args:
        folder: folder of the results; created if missing.
        run: folder of a finished `clusterq-gen train`.
        val: real images.
        teacher: teacher of the run.
        device: device of the networks.
    """
    student, spec, config = load_student(run, device, teacher.config.arch)
    images, predictions = open_validation(val, spec), Predictions()
    with progress("evaluating", len(images)) as ticker:
        evaluate_models(
            {"teacher": teacher.model, "student": student},
            images,
            device=device,
            progress=lambda done, _, top1: ticker.advance(done - ticker.done, top1_so_far(top1)),
            predictions=predictions,
        )
    folder.mkdir(parents=True, exist_ok=True)
    predictions.save(folder / PREDICTIONS)
    # Written last, since its presence marks the evaluation as finished. The student saw no stored images.
    result = {"student": {"bits": config.quant.bits}, "shards": {"training_images": 0}}
    atomic_write(folder / RESULT, json.dumps(result) + "\n")
