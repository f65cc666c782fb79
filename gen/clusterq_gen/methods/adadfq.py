"""AdaDFQ (Qian et al., CVPR 2023): generator and student play over how much a sample tells the student."""

from clusterq_common.distill.entropy import EntropyObjective
from clusterq_gen.config import MethodConfig
from clusterq_gen.losses.agreement import AgreementLoss
from clusterq_gen.losses.bn_matching import BatchNormMatchingLoss
from clusterq_gen.losses.boundary import BoundaryLoss
from clusterq_gen.losses.disagreement import DisagreementLoss
from clusterq_gen.methods.gdfq import spread_term
from clusterq_gen.methods.method import Method, Term


def adadfq(config: MethodConfig, seed: int) -> Method:
    """Generator: `L_bound + beta (alpha_ds L_ds + alpha_as L_as) + gamma L_BNS`; student: `-T^2 mean H(softmax((zP - zQ) / T))`.

    The released code lets a student, quantized from the start, take part in every step of the generator and only holds its own
    steps back during warm-up. Here a student exists, and is calibrated, once the generator draws something. Until then the teacher
    stands in for it: L_as becomes `CE(2 zP, y)`, while L_ds and L_bound, functions of a difference that would be zero, are left
    out. So `beta alpha_as CE(2 zP, y) + gamma L_BNS` is the warm-up. It draws nothing, so `seed` is unused.
    """
    terms = (
        Term("agreement", config.beta * config.alpha_as, AgreementLoss(), warmup=True, student=True),
        Term("bns", config.gamma, BatchNormMatchingLoss(config.bns_units), warmup=True),
        Term("disagreement", config.beta * config.alpha_ds, DisagreementLoss(), student=True),
        Term("boundary", 1.0, BoundaryLoss(config.lambda_l, config.lambda_u), student=True),
        spread_term(config),
    )
    return Method("adadfq", terms, EntropyObjective(config.temperature))
