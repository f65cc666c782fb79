"""GDFQ (Xu et al., ECCV 2020): class and BatchNorm statistics only. The plain baseline."""

from clusterq_common.distill.objective import StudentObjective
from clusterq_gen.config import MethodConfig
from clusterq_gen.losses.bn_matching import BatchNormMatchingLoss
from clusterq_gen.losses.classification import ClassificationLoss
from clusterq_gen.losses.spread import ClassSpreadLoss
from clusterq_gen.methods.method import Method, Term


def gdfq(config: MethodConfig, seed: int) -> Method:
    """Return GDFQ. Generator: `CE(M_FP(x), y) + a1 L_BNS` (Eq. 7) throughout; student: Eq. 9."""
    return Method("gdfq", base_terms(config, seed), student_objective(config))


def base_terms(config: MethodConfig, seed: int) -> tuple[Term, ...]:
    """Return ClusterQ Eq. 7, which every phase of GDFQ and its descendants uses, and the optional spread within classes."""
    return (
        Term("class", 1.0, ClassificationLoss(config.hard_gamma, config.soft_target, seed), warmup=True),
        Term("bns", config.alpha_bns, BatchNormMatchingLoss(config.bns_units), warmup=True),
        spread_term(config),
    )


def spread_term(config: MethodConfig) -> Term:
    """Return the term for the spread within classes. It is from no paper and suits any generator."""
    return Term("spread", config.alpha_spread, ClassSpreadLoss(config.spread_images, config.spread_layers), warmup=True)


def student_objective(config: MethodConfig) -> StudentObjective:
    """Return the student's objective, ClusterQ Eq. 9."""
    return StudentObjective(ce_weight=1.0, kl_weight=config.kl_weight, temperature=config.temperature)
