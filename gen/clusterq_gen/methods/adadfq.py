"""AdaDFQ (Qian et al., CVPR 2023): a game between generator and student over how informative a sample is for the student."""

from clusterq_common.distill.entropy import EntropyObjective
from clusterq_gen.config import MethodConfig
from clusterq_gen.losses.agreement import AgreementLoss
from clusterq_gen.losses.bn_matching import BatchNormMatchingLoss
from clusterq_gen.losses.boundary import BoundaryLoss
from clusterq_gen.losses.disagreement import DisagreementLoss
from clusterq_gen.methods.gdfq import spread_term
from clusterq_gen.methods.method import Method, Term


def adadfq(config: MethodConfig, seed: int) -> Method:
    """Return AdaDFQ.

    Generator: `L_bound + beta (alpha_ds L_ds + alpha_as L_as) + gamma L_BNS`; student: `-T^2 mean H(softmax((zP - zQ) / T))`.

    In the released code a student, quantized from the start, takes part in every step of the generator, and only its own steps
    are skipped during warm-up. Here the student is created and calibrated after the warm-up. Until then the teacher replaces it:
    L_as becomes `CE(2 zP, y)`, and L_ds and L_bound, functions of a difference that would be zero, are left out. So the loss of
    the warm-up is `beta alpha_as CE(2 zP, y) + gamma L_BNS`. The method draws nothing at random, so `seed` is unused.
    """
    terms = (
        Term("agreement", config.beta * config.alpha_as, AgreementLoss(), warmup=True, student=True),
        Term("bns", config.gamma, BatchNormMatchingLoss(config.bns_units), warmup=True),
        Term("disagreement", config.beta * config.alpha_ds, DisagreementLoss(), student=True),
        Term("boundary", 1.0, BoundaryLoss(config.lambda_l, config.lambda_u), student=True),
        spread_term(config),
    )
    return Method("adadfq", terms, EntropyObjective(config.temperature))
