"""Shared fixtures of many tests: a small trained teacher, one tiny run through the real command lines, and the real data."""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer.testing
from filelock import FileLock
from hypothesis import settings
from safetensors.torch import save_file

from clusterq_finetune.cli.main import app as finetune_app
from clusterq_gen.bank.config import BANK_METHODS
from clusterq_gen.cli import app as gen_app

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "tools" / "demo"
FACTORY = f"{DEMO / 'digits_net.py'}:digits_net"

# What tests index and verify is nothing to keep in the user's cache.
CACHE = tempfile.TemporaryDirectory(prefix="clusterq-cache-")
os.environ["CLUSTERQ_CACHE"] = CACHE.name
# The record of a test's runs is temporary, too.
STATES = "clusterq-state-"
if not Path(os.environ.get("CLUSTERQ_STATE", "")).name.startswith(STATES):  # a test's own processes go on with its runs
    STATE = tempfile.TemporaryDirectory(prefix=STATES)
    os.environ["CLUSTERQ_STATE"] = STATE.name
# Each call of a program would make its parser anew, which takes as long as many of the calls.
typer.testing._get_command = cache(typer.testing._get_command)
# No test cuts the power, and a disk takes milliseconds for each of the thousands of files. tests/common/test_files.py checks the calls.
os.fsync = lambda descriptor: None
# The networks here are tiny: more threads only wait for each other.
torch.set_num_threads(1)
# Time limits of single examples only tell how busy the machine is.
settings.register_profile("clusterq", deadline=None)
settings.load_profile("clusterq")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device; begin with those marked `long`, for which the others' end would be late."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command line."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


def made_once(name: str, make: Callable[[Path], None], factory: pytest.TempPathFactory) -> Path:
    """Return a folder that the first of all test processes to ask for it fills with `make`; the others wait for it."""
    own = factory.getbasetemp()
    # Each worker of pytest-xdist has a folder of its own in the session's.
    base = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = base / f"once-{name}"
    with FileLock(base / f"once-{name}.lock"):
        if not (folder / "finished").exists():
            folder.mkdir()
            make(folder)
            (folder / "finished").touch()
    return folder


# Before what a test gives itself.
REFINEMENT = ["--refine-steps", "5"]
DISTILLATION = ["--batchnorm", "frozen", "--reconstruct", "none", "--select", "last"]


@dataclass(frozen=True)
class DigitsTeacher:
    """A classifier of 8x8 grey digits on disk, with held-out images in class folders, and the flags that describe it."""

    weights: Path
    val: Path
    accuracy: float

    @property
    def flags(self) -> list[str]:
        sizes = ["--input-size", "8", "--in-channels", "1", "--num-classes", "10", "--mean", "0.5", "--std", "0.5"]
        return ["--arch", FACTORY, "--weights", str(self.weights), *sizes]


@pytest.fixture(scope="session")
def gen() -> Cli:
    """Run `clusterq-gen` with arguments, in this process.

    A training draws no report unless `--report` is among them. A generator's images of `--preset quick` are refined for a few steps:
    fifty would be most of the time of most tests.
    """

    def run(*arguments: object) -> Outcome:
        if arguments[:1] != ("train",):
            return _invoke(gen_app, arguments)
        refined = "quick" in arguments and not set(BANK_METHODS) & set(arguments)
        return _invoke(gen_app, ["train", "--no-report", *(REFINEMENT if refined else []), *arguments[1:]])

    return run


@pytest.fixture(scope="session")
def finetune() -> Cli:
    """Run `clusterq-finetune` with arguments, in this process.

    A fine-tuning that names no recipe and no configuration distils alone: reconstruction would be most of the time of most tests.
    None draws a report unless `--report` is among the arguments.
    """

    def run(*arguments: object) -> Outcome:
        words = [str(argument) for argument in arguments]
        tuning = bool({"--shards", "--config"} & set(words)) and words[0].startswith("--")
        plain = tuning and not {"--recipe", "--config"} & set(words)
        return _invoke(finetune_app, [*(["--no-report"] if tuning else []), *(DISTILLATION if plain else []), *words])

    return run


@pytest.fixture(scope="session")
def digits_teacher(tmp_path_factory: pytest.TempPathFactory) -> DigitsTeacher:
    """The demo's classifier, trained for a few seconds on real digits."""

    def make(folder: Path) -> None:
        demo = _demo()
        digits = demo.load(0)
        model = demo.train_classifier(digits, epochs=8, seed=0)
        save_file(model.state_dict(), folder / "teacher.safetensors")
        demo.write_class_folders(folder / "val", digits.test_pixels, digits.test_labels)
        (folder / "accuracy").write_text(str(demo.accuracy(model, digits.test_pixels, digits.test_labels)))

    folder = made_once("teacher", make, tmp_path_factory)
    return DigitsTeacher(folder / "teacher.safetensors", folder / "val", float((folder / "accuracy").read_text()))


TINY = ["--preset", "quick", "--epochs", "6", "--steps-per-epoch", "60", "--warmup-epochs", "4", "--batch-size", "40"]
TINY += ["--width", "32", "--lr", "0.01", "--checkpoint-seconds", "0", "--bits", "w4a4", "--per-class", "12"]
# float32, whatever the CPU; images as the generator draws them.
TINY += ["--amp", "off", "--refine-steps", "0"]
# Where only the files count, not what the images show: a second or two.
BRIEF = [*TINY, "--epochs", "3", "--steps-per-epoch", "10", "--warmup-epochs", "2", "--keep-misclassified"]


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory, digits_teacher: DigitsTeacher, gen: Cli) -> Path:
    """A finished tiny run of `clusterq-gen train`: do not change it; copy it where a test must."""

    def make(folder: Path) -> None:
        done = gen("train", *digits_teacher.flags, *TINY, "--report", "--out", folder / "out")
        assert done.code == 0, done.err

    return made_once("run", make, tmp_path_factory) / "out"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data and trained models, named by CLUSTERQ_DATA; tests that need it are skipped without it."""
    folder = Path(os.environ.get("CLUSTERQ_DATA", ROOT.parent / "shared"))
    if not (folder / "models" / "resnet20_cifar10.safetensors").is_file():
        pytest.skip(f"no real data: set CLUSTERQ_DATA to the folder that holds models/ and data/ (looked in {folder})")
    return folder


def _invoke(app: object, arguments: Sequence[object]) -> Outcome:
    result = typer.testing.CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def _demo() -> ModuleType:
    pytest.importorskip("sklearn", reason="real digits come with scikit-learn, in the extra `test`")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DEMO)
        spec = importlib.util.spec_from_file_location("clusterq_digits_demo", DEMO / "digits.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cifar_subset(real_data: Path) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    """The first images of each class of the real CIFAR-10 test set, normalised, with labels."""
    from clusterq_common.images.normalise import normalise
    from clusterq_common.teacher.spec import InputSpec
    from clusterq_finetune.data.real import open_validation

    spec = InputSpec(size=32, channels=3, num_classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
    images = open_validation(real_data / "data" / "cifar10" / "test", spec)

    def subset(per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = [images[start + n] for start in range(0, 10_000, 1000) for n in range(per_class)]
        pixels = torch.stack([pixels for pixels, _, _ in chosen if pixels is not None])
        return normalise(pixels, spec), torch.tensor([label for _, label, _ in chosen])

    return subset
