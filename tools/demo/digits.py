"""The offline demo: a digit classifier, made low-bit from its weights alone, through the two command lines.

A small BatchNorm network learns scikit-learn's handwritten digits, 8x8 grey images that come with that package. From there
clusterq has the weights and nothing else: it learns a generator, writes synthetic digits as shards, and fine-tunes the
low-bit student on them. The held-out real digits come back only to measure the three accuracies printed at the end.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from digits_net import digits_net
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
SUMMARY = "demo.json"
MEAN = STD = 0.5
TEST_PART = 0.3


class Digits(NamedTuple):
    """Both parts of the data: pixels uint8 (N, 8, 8) in 0..255, labels int64 (N,)."""

    train_pixels: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_pixels: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def main(arguments: list[str] | None = None) -> int:
    """Run the demo. Returns 0, or the exit code of the program that failed."""
    options = _options().parse_args(arguments)
    out: Path = options.out
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / SUMMARY).is_file())):
        print(f"--out {out} holds something that is not an earlier demo; name a new or empty folder", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    # Written first, so that an interrupted demo can be started again in the same folder.
    (out / SUMMARY).write_text("{}\n", encoding="utf-8")

    info(f"1. a classifier learns real digits ({1 - TEST_PART:.0%} of them; the rest is held out)")
    digits = load(options.seed)
    model = train_classifier(digits, epochs=options.teacher_epochs, seed=options.seed)
    top1 = accuracy(model, digits.test_pixels, digits.test_labels)
    info(f"   {len(digits.train_labels)} images seen, {top1:.2f} % of {len(digits.test_labels)} held-out ones right")
    weights, val = out / "teacher.safetensors", out / "val"
    save_file(model.state_dict(), weights)
    write_class_folders(val, digits.test_pixels, digits.test_labels)

    try:
        info("2. a generator learns from that classifier alone and writes synthetic digits")
        run_cli("clusterq-gen", *generator_arguments(options, weights, out / "run"))
        info(f"3. a {options.bits} copy of the classifier learns from those, then all are measured on the held-out digits")
        answer = run_cli("clusterq-finetune", *finetune_arguments(options, out / "run", val), last_line_is_answer=True)
    except subprocess.CalledProcessError as failure:
        print(f"the demo stopped: {shlex.join(failure.cmd)} left with code {failure.returncode}", file=sys.stderr)
        return failure.returncode
    result: dict[str, Any] = json.loads(answer)
    (out / SUMMARY).write_text(json.dumps({"bits": options.bits, "classifier_top1": top1, "result": result}) + "\n", "utf-8")
    report(result, options.bits, out)
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("out-demo"), help="folder of all results (default: %(default)s)")
    parser.add_argument("--bits", default="w3a3", help="weights and activations (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the classifier and both programs (default: 0)")
    parser.add_argument("--teacher-epochs", type=int, default=40, help="over the real digits (default: %(default)s)")
    own = "(default: as the program has it)"
    parser.add_argument("--epochs", type=int, help=f"of the generator {own}")
    parser.add_argument("--steps-per-epoch", type=int, help=f"of the generator {own}")
    parser.add_argument("--per-class", type=int, help=f"synthetic images of each digit {own}")
    parser.add_argument("--finetune-epochs", type=int, help=f"of the low-bit student {own}")
    parser.add_argument("--reconstruct-steps", type=int, help=f"of the student's reconstruction {own}")
    return parser


def load(seed: int) -> Digits:
    """Load scikit-learn's 1797 digits, with values 0..16 as pixels, split by class with a fixed share held out."""
    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    train_pixels, test_pixels, train_labels, test_labels = train_test_split(
        pixels, labels, test_size=TEST_PART, random_state=seed, stratify=labels
    )
    return Digits(train_pixels, train_labels, test_pixels, test_labels)


def to_images(pixels: NDArray[np.uint8]) -> Tensor:
    """Convert uint8 (N, 8, 8) to normalised float32 (N, 1, 8, 8), as in the clusterq commands below."""
    return ((torch.from_numpy(pixels).float() / 255 - MEAN) / STD).unsqueeze(1)


def train_classifier(digits: Digits, *, epochs: int, seed: int) -> nn.Module:
    """Return `digits_net` after `epochs` over the training part, in eval mode: AdamW, cosine rate, shifts by one pixel."""
    torch.manual_seed(seed)
    model = digits_net()
    images, labels = to_images(digits.train_pixels), torch.from_numpy(digits.train_labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    batch_size = 64
    steps = epochs * (len(labels) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    background = -MEAN / STD
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(batch_size):
            if len(batch) < batch_size:
                break
            top, left = (int(offset) for offset in torch.randint(3, (2,)))
            shifted = F.pad(images[batch], (1, 1, 1, 1), value=background)[..., top : top + 8, left : left + 8]
            loss = F.cross_entropy(model(shifted), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Return top-1 in percent."""
    hits = model(to_images(pixels)).argmax(1) == torch.from_numpy(labels)
    return 100 * hits.double().mean().item()


def write_class_folders(folder: Path, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Write grey PNGs `folder/<digit>/<number>.png`, numbered from 1 within each digit. Earlier contents are deleted."""
    shutil.rmtree(folder, ignore_errors=True)
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
        for number, image in enumerate(pixels[labels == digit], start=1):
            Image.fromarray(image).save(folder / str(digit) / f"{number:04}.png")


def generator_arguments(options: argparse.Namespace, weights: Path, run: Path) -> list[str]:
    """Return the arguments of `clusterq-gen`: the factory, its weights, the shape of its input; no image."""
    spec = ["--input-size", "8", "--in-channels", "1", "--num-classes", "10", "--mean", str(MEAN), "--std", str(STD)]
    chosen = _given("--epochs", options.epochs) + _given("--steps-per-epoch", options.steps_per_epoch)
    chosen += _given("--per-class", options.per_class)
    place = ["--seed", str(options.seed), "--out", str(run), "--overwrite"]
    arch = f"{HERE / 'digits_net.py'}:digits_net"
    return [
        "train",
        "--arch",
        arch,
        "--weights",
        str(weights),
        *spec,
        "--preset",
        "quick",
        "--bits",
        options.bits,
        *chosen,
        *place,
    ]


def finetune_arguments(options: argparse.Namespace, run: Path, val: Path) -> list[str]:
    """Return the arguments of `clusterq-finetune`: the shards, the bits, and the held-out digits for the evaluation."""
    chosen = ["--seed", str(options.seed), *_given("--epochs", options.finetune_epochs)]
    chosen += _given("--reconstruct-steps", options.reconstruct_steps)
    return ["--shards", str(run), "--bits", options.bits, "--val", str(val), *chosen, "--overwrite", "--json"]


def _given(flag: str, value: int | None) -> list[str]:
    return [] if value is None else [flag, str(value)]


def run_cli(program: str, *arguments: str, last_line_is_answer: bool = False) -> str:
    """Run a console script of this environment, print its output, and return the last line, which is not printed as an answer.

    Raises subprocess.CalledProcessError when its exit code is not 0.
    """
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    info(f"   {shlex.join([program, *arguments])}")
    last = ""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if last_line_is_answer and last:
                info(last)
            last = line.rstrip("\n")
            if not last_line_is_answer:
                info(last)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return last


def report(result: dict[str, Any], bits: str, out: Path) -> None:
    """Print the three accuracies on held-out real digits, and the paths of the results."""
    info("")
    info("top-1 on the held-out real digits")
    for name, what in (
        ("teacher", "the classifier, full precision"),
        ("calibrated", f"{bits}, before fine-tuning"),
        ("student", f"{bits}, after fine-tuning on synthetic digits"),
    ):
        info(f"   {result[name]['top1']:6.2f} %  {what}")
    info(f"synthetic digits as shards: {out / 'run' / 'shards'}")
    grids = sorted((out / "run" / "samples").glob("*.png"))
    info(f"what they look like:        {grids[-1] if grids else 'no grid was written'}")


def info(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
