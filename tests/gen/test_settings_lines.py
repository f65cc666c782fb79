"""First lines of a generator run, before torch is imported."""

import pytest

from clusterq_common.errors import ClusterqError
from clusterq_gen.given import by_input_size, meant_by
from clusterq_gen.settings_lines import settings_lines

ARCH = {"teacher": {"arch": "resnet20_cifar10"}}


def test_auto_names_both_presets_until_the_architecture_is_built() -> None:
    meant = meant_by(ARCH, "auto")
    assert settings_lines(meant) == [
        "method: clusterq, preset by the input's size; student w4a4",
        "up to 64 pixels (paper-cifar): 400 epochs x 200, 50 epochs of warm-up; batch 200; 512 of each class for training; a tenth as many held out",
        "above 64 pixels (paper-imagenet): 400 epochs x 200, 50 epochs of warm-up; batch 16; 200 of each class for training; a tenth as many held out",
        "phases: generator (generator.safetensors), shards (shards/), report (report.html)",
    ]
    assert by_input_size(ARCH, meant.plans[0].teacher).preset == "paper-cifar"


@pytest.mark.parametrize(("size", "preset"), [(32, "paper-cifar"), ("64x128", "paper-imagenet"), (64, "paper-cifar")])
def test_auto_is_settled_by_a_given_size(size: object, preset: str) -> None:
    meant = meant_by({"teacher": {"arch": "net.py:build", "input_size": size}}, "auto")
    assert (meant.by_size, [plan.preset for plan in meant.plans]) == (False, [preset])


def test_flags_that_fit_one_preset_alone_are_no_choice() -> None:
    """Batches of paper-imagenet hold 16 images. The input's size still decides."""
    flags = {**ARCH, "train": {"classes_per_batch": 100}}
    meant = meant_by(flags, "auto")
    assert (meant.by_size, [plan.preset for plan in meant.plans]) == (True, ["paper-cifar"])
    with pytest.raises(ClusterqError, match=r"batch_size \(16\)"):
        by_input_size(
            {**flags, "teacher": {"arch": "resnet18"}}, meant.plans[0].teacher.model_copy(update={"arch": "resnet18"})
        )


def test_a_bank_and_known_classes() -> None:
    flags = {
        "teacher": {"arch": "net.py:build", "input_size": 32, "num_classes": 10},
        "method": {"method": "zeroq"},
        "emit": {"per_class": 20, "heldout_per_class": 0},
        "output": {"report": False},
    }
    assert settings_lines(meant_by(flags, "quick"), 90.0) == [
        "method: zeroq, preset quick; student w4a4",
        "steps: 200 for each batch of 100 images",
        "images: 200 for training and 0 held out",
        "phases: bank (bank/), shards (shards/)",
        "time budget: 1 min 30 s; steps and images become fewer where they do not fit",
    ]
