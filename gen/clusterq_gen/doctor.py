"""`clusterq-gen doctor`: check of the installation."""

import time

import torch
from torch import nn

from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.setup import prepare_device
from clusterq_common.progress.console import print_result
from clusterq_common.run.environment import environment
from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import InputSpec, TeacherConfig
from clusterq_common.teacher.weights import weights_cache
from clusterq_gen.config import GenConfig
from clusterq_gen.presets import resolve
from clusterq_gen.training.loop import train_step
from clusterq_gen.training.state import Training


def examine() -> None:
    """Print versions, device, threads and the weights cache, then run one whole training step on a tiny model."""
    device = prepare_device(RuntimeConfig())
    facts = environment(device)
    versions = facts["versions"]
    assert isinstance(versions, dict)
    print_result(f"versions:       {', '.join(f'{name} {version}' for name, version in versions.items())}")
    cuda = f"CUDA {torch.version.cuda}" if device.type == "cuda" else "no CUDA device"
    print_result(f"device:         {facts['device']} ({cuda})")
    print_result(f"threads:        {facts['threads']} of {facts['cores']} cores")
    cache = weights_cache()
    files = sorted(cache.glob("*.pth")) if cache.is_dir() else []
    print_result(f"weights cache:  {cache} ({f'{len(files)} files' if cache.is_dir() else 'not there yet'})")
    begin = time.monotonic()
    metrics = smoke_step(device)
    print_result(f"smoke run:      one step in {time.monotonic() - begin:.2f} s, losses finite ({', '.join(sorted(metrics))})")


def smoke_step(device: torch.device) -> dict[str, float]:
    """Run one generator and student step on a tiny random classifier, and return its losses.

    Raises:
        RuntimeError: a loss is not finite.
    """
    teacher = _tiny_teacher(device)
    run = Training.start(_tiny_config(teacher), teacher, device)
    with batchnorm_taps(teacher.model) as taps:
        stored = run.stored_statistics()
        run.end_warmup(log=lambda _: None)
        metrics = train_step(run, taps, stored)
    losses = {name: float(value) for name, value in metrics.items() if "/" in name}
    if not all(torch.isfinite(torch.tensor(value)) for value in losses.values()):
        raise RuntimeError(f"a loss of the smoke run is not finite: {losses}")
    return losses


def _tiny_config(teacher: Teacher) -> GenConfig:
    train = {"epochs": 1, "steps_per_epoch": 1, "warmup_epochs": 0, "batch_size": 8}
    return resolve({"teacher": teacher.config.model_dump(), "train": train}, "quick", imagenet_sized=False)


def _tiny_teacher(device: torch.device) -> Teacher:
    spec = InputSpec(size=8, channels=1, num_classes=2, mean=(0.5,), std=(0.5,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).to(device).eval()
    model.requires_grad_(False)
    return Teacher(model=model, config=TeacherConfig(arch="tiny"), spec=spec, digest="sha256:none")
