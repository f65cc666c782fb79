"""A data folder in the layout that packs are made from, with made-up images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from clusterq_common.teacher.load import build_architecture
from clusterq_common.teacher.spec import TeacherConfig
from tests.conftest import ROOT

GPU = ROOT / "tools" / "gpu"

PHOTOGRAPHS = {"n01440764": 3, "n01443537": 1, "n15075141": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: two images of each CIFAR class, a few photographs, weights of which only one is a network's."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for name in (f"class{number}" for number in range(10)):
        place = folder / "data" / "cifar10" / "test" / name
        place.mkdir(parents=True)
        for number in range(2):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{name}.{number}.png")
    for number, (wnid, count) in enumerate(PHOTOGRAPHS.items()):
        place = folder / "data" / "imagenet-like" / "val" / wnid
        place.mkdir(parents=True)
        for index in range(count):
            smooth = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((301 + 50 * number, 299))
            smooth.save(place / f"{index}.JPEG", quality=95)
    models = folder / "models"
    models.mkdir()
    network, _ = build_architecture(TeacherConfig(arch="resnet20_cifar10"))
    save_file(network.state_dict(), models / "resnet20_cifar10.safetensors")
    for name in ("resnet20_cifar100", "mobilenet_v1_x025_imagenet", "mobilenet_v1_x075_imagenet"):
        (models / f"{name}.safetensors").write_bytes(name.encode())
    for name in ("mobilenet_v1.py", "mobilenet_v1_x075.py"):
        (models / name).write_text("# a factory\n")
    return folder
