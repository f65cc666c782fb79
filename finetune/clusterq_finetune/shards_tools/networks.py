"""Loading of the second network for comparing images."""

import torch

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name, settings_renamed
from clusterq_common.shards.manifest import Manifest
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_common.teacher.spec import TeacherConfig, is_factory
from clusterq_finetune.teachers import SPEC_FIELDS


def need_other_arch(arch: str | None, weights: str | None) -> None:
    """Raise an error for weights of a second network without its architecture.

    Raises:
        ClusterqError: there are weights and no architecture.
    """
    if weights is not None and arch is None:
        name = setting_name("other_arch")
        raise ClusterqError(
            f"{name} is missing: {setting_name('other_weights')} alone do not make a model; pass {setting_name('other_arch', 'NAME')} too."
        )


def other_network(arch: str, weights: str | None, manifest: Manifest, device: torch.device) -> Teacher:
    """Load a second classifier of the same images and classes.

    Raises:
        ClusterqError: it takes other images, or has other classes.
    """
    spec = manifest.teacher.spec
    known = {"arch": arch, "weights": weights}
    if is_factory(arch):
        known |= {field: getattr(spec, name) for field, name in SPEC_FIELDS.items()}
    with settings_renamed({"arch": "other_arch", "weights": "other_weights"}):
        other = load_teacher(TeacherConfig.validated(known), device=device)
    other_spec = other.spec
    if (other_spec.size, other_spec.channels, other_spec.num_classes) != (spec.size, spec.channels, spec.num_classes):
        raise ClusterqError(
            f"{arch} takes {other_spec.channels}x{other_spec.shown_size} images of {other_spec.num_classes} classes, expected "
            f"{spec.channels}x{spec.shown_size} of {spec.num_classes}, as the set has; choose another classifier.",
            setting="other_arch",
        )
    return other
