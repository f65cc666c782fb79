"""A manifest's facts about the teacher."""

from clusterq_common.shards.manifest import TeacherFacts
from clusterq_common.taps import batchnorm_layers
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import is_factory, shown_arch


def teacher_facts(teacher: Teacher) -> TeacherFacts:
    """Return name, digest, size and images of the classifier. A factory is named without its folders."""
    return TeacherFacts(
        arch=shown_arch(teacher.config.arch),
        is_factory=is_factory(teacher.config.arch),
        digest=teacher.digest,
        parameters=sum(parameter.numel() for parameter in teacher.model.parameters()),
        batchnorm_layers=len(batchnorm_layers(teacher.model)),
        spec=teacher.spec,
    )
