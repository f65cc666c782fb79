"""Stage "sound": checks that everything runs on this device and gives the same results as a CPU."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from packed import Pack
from record import Record
from torch import Tensor, nn

from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.setup import prepare_device, to_device
from clusterq_common.files import sha256_file
from clusterq_common.images.normalise import normalise
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert
from clusterq_common.run.run_folder import GENERATOR, SHARDS, STUDENT
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_finetune import commands as finetune_commands
from clusterq_finetune.data.real import open_validation
from clusterq_finetune.prepare import Request
from clusterq_gen import commands as gen_commands
from clusterq_gen.config import GENERATOR_METHODS
from clusterq_gen.presets import resolve
from clusterq_gen.training.loop import train_step
from clusterq_gen.training.state import Training

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION_IMAGES = 256


def run(record: Record, pack: Pack, work: Path) -> None:
    """Run the doctor, the GPU tests, and checks for the CPU's top-1, reproducible bytes, and steps without synchronisation."""
    device = prepare_device(RuntimeConfig())
    teacher = pack.teacher("resnet20_cifar10")
    record.part("doctor", lambda: _program(record, "doctor", ["-m", "clusterq_gen", "doctor"], 20))
    record.part("same answers as a CPU", lambda: _same_answers(record, pack, teacher, device))
    record.part("steps wait for nothing", lambda: _nothing_waits(record, teacher, device))
    record.part("same bytes twice", lambda: _same_bytes(record, pack, teacher, device, work))
    # Only these files, because others may import packages that this machine lacks.
    files = [
        str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    tests = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    record.part("tests that need a GPU", lambda: _program(record, "tests that need a GPU", tests, max(record.left, 5)))


def _program(record: Record, name: str, arguments: list[str], seconds: float) -> None:
    limit = 120 if record.rehearsal else seconds
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    last = ([line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or [""])[-1]
    print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", flush=True)
    # If all tests are skipped, nothing is shown.
    skipped = "pytest" in arguments and "passed" not in last and not record.rehearsal
    record.add(name, done.returncode == 0 and not skipped, note=last.strip("= ")[:160])


@torch.no_grad()
def _same_answers(record: Record, pack: Pack, config: TeacherConfig, device: torch.device) -> None:
    """Compare a W8A8 student, calibrated on the CPU, on the same images there and on the device, in float32."""
    here = torch.device("cpu")
    teacher = load_teacher(config, device=here)
    images = open_validation(pack.cifar10, teacher.spec)
    every = 100 if record.rehearsal else 5
    chosen = [images[index] for index in range(0, len(images), every)]
    pixels = torch.stack([pixels for pixels, _, _ in chosen if pixels is not None])
    labels = torch.tensor([label for _, label, _ in chosen])
    seen = normalise(pixels, teacher.spec).contiguous(memory_format=torch.channels_last)
    quant = QuantConfig(bits="w8a8")
    student = convert(teacher.model, quant, seen[:1], lambda _: None).eval()
    calibration = 16 if record.rehearsal else CALIBRATION_IMAGES
    calibrate(student, [seen[:calibration]], quant)
    to_device(student, here)
    logits = {"CPU": _answers(student, seen, here), "device": _answers(copy.deepcopy(student), seen, device)}
    top1 = {name: 100 * float((given.argmax(1) == labels).float().mean()) for name, given in logits.items()}
    note = f"{len(labels)} CIFAR-10 test images, ranges from {calibration} of them"
    for name, value in top1.items():
        record.add(f"W8A8 top-1, {name}", value, "%", note)
    same = logits["CPU"].argmax(1) == logits["device"].argmax(1)
    record.add("same class as on a CPU", 100 * float(same.float().mean()), "%", note)
    record.add("largest difference of a logit", float((logits["CPU"] - logits["device"]).abs().max()))


def _answers(student: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    to_device(student, device)
    return torch.cat([student(part.to(device)).float().cpu() for part in images.split(500)])


def _nothing_waits(record: Record, config: TeacherConfig, device: torch.device) -> None:
    """Run steps of every method with synchronisation forbidden; on a CPU there is nothing to forbid."""
    for method in GENERATOR_METHODS:
        teacher = load_teacher(config, device=device)
        run = _short_run(teacher, device, method, small=record.rehearsal)
        run.end_warmup(lambda _: None)
        run.step = run.warmup_steps + 1
        with batchnorm_taps(teacher.model) as taps:
            stored = run.stored_statistics()
            for number in range(2 if record.rehearsal else 4):
                # The first step creates the optimizers' state.
                if device.type == "cuda" and number:
                    torch.cuda.set_sync_debug_mode("error")
                try:
                    train_step(run, taps, stored)
                finally:
                    if device.type == "cuda":
                        torch.cuda.set_sync_debug_mode("default")
                run.step += 1
        record.add(f"a step of {method} waits for nothing", True, note="" if device.type == "cuda" else "nothing to wait for")


def _short_run(teacher: Teacher, device: torch.device, method: str, *, small: bool) -> Training:
    train = {
        "epochs": 2,
        "warmup_epochs": 1,
        "steps_per_epoch": 20,
        "batch_size": 10 if small else 40,
        "gradient_norm_every": 1000,
    }
    quant = {"range": "minmax"} if small else {}
    flags = {
        "teacher": teacher.config.model_dump(),
        "method": {"method": method},
        "train": train,
        "generator": {"width": 32},
        "quant": quant,
    }
    return Training.start(resolve(flags, "quick", imagenet_sized=False), teacher, device)


def _same_bytes(record: Record, pack: Pack, config: TeacherConfig, device: torch.device, work: Path) -> None:
    """Run a small version of the whole path twice with the same seed: generator, shards and student must have the same bytes."""
    small = record.rehearsal
    graphs = device.type == "cuda"
    found: list[dict[str, str]] = []
    for name in ("one", "two"):
        out = work / f"same-{name}"
        flags: dict[str, dict[str, Any]] = {
            "teacher": config.model_dump(),
            "train": {"epochs": 2, "warmup_epochs": 1, "steps_per_epoch": 2 if small else 20, "cuda_graphs": graphs},
            "generator": {"width": 16 if small else 64, "conditioning": "concat"},
            "emit": {"per_class": 2 if small else 4, "refine_steps": 2, "keep_misclassified": True, "refine_class_weight": 1.0},
            "quant": {"range": "minmax"} if small else {},
            "output": {"report": False},
        }
        flags["train"] |= {"batch_size": 20} if small else {}
        gen_commands.train(resolve(flags, "quick", imagenet_sized=False), out, resume=False, overwrite=False, dry_run=False)
        recipe = {
            "epochs": 1,
            "steps_per_epoch": 2 if small else 5,
            "reconstruct": "block",
            "reconstruct_steps": 2 if small else 20,
        }
        recipe |= {"reconstruct_batch_size": 8} if small else {}
        asked = {"recipe": {**recipe, "cuda_graphs": graphs, "batch_size": 16}, "output": {"report": False}}
        settings = {**asked, "quant": {"bits": "w4a4", **flags["quant"]}}
        finetune_commands.finetune(Request(settings, out, out / "student"))
        digests = {"generator": sha256_file(out / GENERATOR), "in-loop student": sha256_file(out / STUDENT)}
        digests |= {"shards": read_manifest(out / SHARDS).digest, "fine-tuned student": sha256_file(out / "student" / STUDENT)}
        found.append(digests)
    for name, digest in found[0].items():
        note = "deterministic kernels" + (", CUDA graphs" if graphs else "")
        record.add(f"same bytes twice: {name}", digest == found[1][name], note=note)
