"""Teachers: names, sizes, weights in every form, and pytorchcv's store, for which a local server stands in."""

import functools
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pytorchcv.model_provider import get_model
from pytorchcv.models import model_store
from safetensors.torch import save_file
from torch import nn

from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.digest import weights_digest
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.load import Teacher, build_architecture, load_teacher
from clusterq_common.teacher.pooling import last_pooling_over_all
from clusterq_common.teacher.spec import Geometry, TeacherConfig
from clusterq_common.teacher.weights import weights_cache
from tests.common.teachers import own


def test_sizes_and_normalisation_of_pytorchcv_families() -> None:
    _, cifar = build_architecture(TeacherConfig(arch="resnet20_cifar100"))
    assert (cifar.size, cifar.channels, cifar.num_classes) == (32, 3, 100)
    assert cifar.mean == (0.4914, 0.4822, 0.4465)
    _, imagenet = build_architecture(TeacherConfig(arch="mobilenetv2_wd4"))
    assert (imagenet.size, imagenet.num_classes, imagenet.std) == (224, 1000, (0.229, 0.224, 0.225))
    sizes = {"num_classes": 7, "mean": "0,0,0", "std": "1,1,1"}
    _, own_head = build_architecture(TeacherConfig(arch="resnet18", **sizes))
    assert (own_head.size, own_head.num_classes) == (224, 7)
    with pytest.raises(ClusterqError, match="cannot be built with these sizes"):
        build_architecture(TeacherConfig(arch="resnet20_cifar10", num_classes=7))


def test_normalisation_of_other_data_sets_and_of_foreign_weights() -> None:
    assert build_architecture(TeacherConfig(arch="resnet20_svhn"))[1].std == (0.2023, 0.1994, 0.2010), "CIFAR's"
    assert build_architecture(TeacherConfig(arch="resnet10_cub"))[1].std == (0.229, 0.224, 0.225), "ImageNet's"
    assert build_architecture(TeacherConfig(arch="efficientnet_b0b"))[1].std == (0.229, 0.224, 0.225)
    assert build_architecture(TeacherConfig(arch="efficientnet_b0c"))[1].std == (0.5, 0.5, 0.5)
    with pytest.raises(ClusterqError, match=r"^mean, std missing"):
        build_architecture(TeacherConfig(arch="resnet10", num_classes=7))


def test_geometry_is_that_of_pytorchcvs_own_evaluation() -> None:
    """Its table of models has the share of each, 0 where it is not known."""
    table = {name: row for name, row in model_store._model_sha1.items() if row[5] == "in1k" and row[7]}
    assert len(table) > 300
    for name, row in table.items():
        size, share, remark = row[6], row[7], row[9]
        wanted = Geometry(crop_pct=share, interpolation="bicubic" if remark.endswith("*") else "bilinear")
        assert known_geometry(size, name) == wanted, name
    assert known_geometry(32, "resnet20_cifar10").crop_pct is None
    assert known_geometry(64).crop_pct is None
    assert known_geometry(96, "/mine/efficientnet_b1.py:net") == Geometry(crop_pct=0.875, interpolation="bilinear")


@pytest.mark.parametrize(
    ("arch", "sentence"),
    [
        ("resnet19", "did you mean resnet18"),
        ("alexnet", "no BatchNorm layer"),
        ("nowhere.py:net", "does not exist"),
    ],
)
def test_names_that_cannot_be_used(arch: str, sentence: str) -> None:
    with pytest.raises(ClusterqError, match=sentence):
        build_architecture(TeacherConfig(arch=arch))


def test_a_teacher_is_frozen_and_its_config_resolved(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(factory).parent)
    teacher = load_teacher(own("mine.py"))
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert teacher.config.arch == f"{factory}:net"
    assert load_teacher(teacher.config).digest == teacher.digest


def test_weights_in_every_form_have_one_digest(factory: str, tmp_path: Path) -> None:
    model, _ = build_architecture(own(factory))
    torch.manual_seed(3)
    state = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "wrapped.pth")
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "uncounted.pth")
    for name in ("w.safetensors", "plain.pth", "wrapped.pth", "uncounted.pth"):
        teacher = load_teacher(own(factory, weights=str(tmp_path / name)))
        assert teacher.digest == weights_digest(model), name
        assert torch.equal(teacher.model[0].weight, state["0.weight"])
    inner = load_teacher(own(factory, "wrapped", weights=str(tmp_path / "w.safetensors")))
    assert torch.equal(inner.model[1][0].weight, state["0.weight"]), "a file that fits the only child goes there"
    with torch.no_grad():
        model[1].running_var[2] += 1e-6
    assert weights_digest(model) != inner.digest


def test_weights_that_do_not_fit(factory: str, tmp_path: Path) -> None:
    state = build_architecture(own(factory))[0].state_dict()
    path = tmp_path / "w.pth"

    def refused(changed: object, sentence: str) -> None:
        torch.save(changed, path)
        with pytest.raises(ClusterqError, match=sentence):
            load_teacher(own(factory, weights=str(path)))

    refused({k: v for k, v in state.items() if k != "0.weight"}, "missing 0.weight")
    refused({**state, "extra": torch.zeros(1)}, "unexpected extra")
    refused({**state, "4.bias": torch.zeros(9)}, r"4.bias is \(9,\) instead of \(3,\)")
    refused({**state, "0.bias": torch.full((4,), torch.nan)}, "not finite, in 0.bias")
    refused({**state, "1.running_mean": torch.full((4,), torch.inf)}, r"not finite, in 1\.running_mean")
    refused({**state, "1.running_var": torch.tensor([1, 1, torch.nan, 1])}, r"not finite, in 1\.running_var")
    refused(
        {**state, "1.running_var": torch.tensor([1, -0.25, -0.5, 1])}, r"a running variance of -0\.5 in the BatchNorm layer 1,"
    )
    refused([1, 2], "no state dict of tensors")
    refused(
        torch.nn.Linear(1, 1), "holds an object of the class torch.nn.modules.linear.Linear"
    )  # a pickled object: never loaded
    path.write_bytes(b"garbage")
    with pytest.raises(ClusterqError, match="no plain state dict"):
        load_teacher(own(factory, weights=str(path)))
    broken = tmp_path / "w.safetensors"
    broken.write_bytes(b"garbage")
    with pytest.raises(ClusterqError, match="no readable safetensors"):
        load_teacher(own(factory, weights=str(broken)))
    with pytest.raises(ClusterqError, match="does not exist"):
        load_teacher(own(factory, weights=str(tmp_path / "absent.pth")))


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("1.running_var", -1.0, "a running variance of -1 in the BatchNorm layer 1"),
        ("1.running_var", torch.inf, r"not finite, in 1\.running_var"),
        ("1.running_mean", torch.nan, r"not finite, in 1\.running_mean"),
        ("4.weight", torch.nan, r"not finite, in 4\.weight"),
    ],
)
def test_a_network_with_values_of_no_training_is_refused(factory: str, name: str, value: float, sentence: str) -> None:
    """Also one that is made in Python, whose weights are in no file."""
    model, spec = build_architecture(own(factory))
    model.state_dict()[name].view(-1)[0] = value
    with pytest.raises(ClusterqError, match=sentence):
        Teacher.of(model, spec)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """pytorchcv's server, played by a local one that has weights of resnet20_cifar10; the cache is empty."""
    torch.manual_seed(1)
    file = tmp_path / "weights.pth"
    torch.save(get_model("resnet20_cifar10").state_dict(), file)
    digest = hashlib.sha1(file.read_bytes()).hexdigest()
    row = list(model_store._model_sha1["resnet20_cifar10"])
    row[1] = digest
    monkeypatch.setitem(model_store._model_sha1, "resnet20_cifar10", tuple(row))
    name = f"resnet20_cifar10-{row[0]}-{digest[:8]}.pth"
    release = tmp_path / "server" / "releases" / "download" / row[2]
    release.mkdir(parents=True)
    with zipfile.ZipFile(release / f"{name}.zip", "w") as archive:
        archive.write(file, name)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "server"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(model_store, "imgclsmob_repo_url", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    yield tmp_path / "server"
    server.shutdown()
    server.server_close()


def test_published_weights_are_downloaded_once(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = load_teacher(TeacherConfig(arch="resnet20_cifar10"))
    torch.manual_seed(1)
    assert first.digest == weights_digest(get_model("resnet20_cifar10"))
    assert capsys.readouterr().out == "", "stdout is for results"
    assert len(list(weights_cache().glob("*.pth"))) == 1
    for file in store.rglob("*.zip"):
        file.unlink()
    assert load_teacher(TeacherConfig(arch="resnet20_cifar10")).digest == first.digest, "from the cache"


def test_store_out_of_reach_says_how_to_go_on(store: Path) -> None:
    for file in store.rglob("*.zip"):
        file.unlink()
    with pytest.raises(ClusterqError, match="pass a file with weights"):
        load_teacher(TeacherConfig(arch="resnet20_cifar10"))
    with pytest.raises(ClusterqError, match="publishes no weights"):
        load_teacher(TeacherConfig(arch="resnext20_16x4d_cifar10"))


@pytest.mark.real
def test_the_given_teachers_load(real_data: Path) -> None:
    models = real_data / "models"
    resnet = load_teacher(TeacherConfig(arch="resnet20_cifar10", weights=str(models / "resnet20_cifar10.safetensors")))
    assert resnet.digest.startswith("sha256:0b1ee3a79f90d339")
    mobilenet = load_teacher(
        TeacherConfig(
            arch=f"{models / 'mobilenet_v1.py'}:mobilenet_v1_x025",
            weights=str(models / "mobilenet_v1_x025_imagenet.safetensors"),
            input_size=224,
            num_classes=1000,
            mean="0.5,0.5,0.5",
            std="0.5,0.5,0.5",
            in_channels=3,
        )
    )
    assert mobilenet.spec.num_classes == 1000


def test_pytorchcv_networks_take_other_sizes_than_they_were_published_for() -> None:
    plain, _ = build_architecture(TeacherConfig(arch="resnet20_cifar10"))
    assert isinstance(plain.features.final_pool, nn.AvgPool2d), "at its own size a network stays as it is"
    for size in ("32x64", "48x16", "64"):
        wide, spec = build_architecture(TeacherConfig(arch="resnet20_cifar10", input_size=size))
        images = torch.randn(2, *spec.shape)
        with torch.no_grad():
            maps = nn.Sequential(*list(plain.features)[:-1])(images)
            torch.testing.assert_close(wide(images), plain.output(maps.mean((2, 3))))
    for arch in ("efficientnet_b0", "mobilenetv2_wd4"):
        assert build_architecture(TeacherConfig(arch=arch, input_size="64x96"))[1].shape == (3, 64, 96)
    with pytest.raises(ClusterqError, match=r"vgg11 .*3x64x128"):
        build_architecture(TeacherConfig(arch="bn_vgg11", input_size="64x128"))


def test_a_pooling_that_does_not_help_is_left_alone() -> None:
    own = nn.Module()
    own.features = nn.Sequential()
    own.features.add_module("final_pool", nn.AvgPool2d(7))
    with last_pooling_over_all(own) as changed:
        assert not changed
        assert isinstance(own.features.final_pool, nn.AvgPool2d), "of someone's own network nothing is assumed"
    model = get_model("resnet20_cifar10")
    before = model.features.final_pool
    with pytest.raises(ZeroDivisionError), last_pooling_over_all(model) as changed:
        assert "averages all places" in changed
        assert isinstance(model.features.final_pool, nn.AdaptiveAvgPool2d)
        1 / 0  # noqa: B018
    assert model.features.final_pool is before
