"""ClusterQ (Gao et al.): GDFQ with feature distribution alignment and diversity enhancement."""

from clusterq_gen.config import MethodConfig
from clusterq_gen.losses.diversity import DiversityLoss
from clusterq_gen.losses.fda import FeatureAlignmentLoss
from clusterq_gen.methods.gdfq import base_terms, student_objective
from clusterq_gen.methods.method import Method, Term


def clusterq(config: MethodConfig, seed: int) -> Method:
    """Return ClusterQ. Generator: Eq. 7 in warm-up, then `L1 + a2 L_FDA + a3 L_DE` (Eq. 8); student: Eq. 9."""
    fda = FeatureAlignmentLoss(config.fda_reduction)
    diversity = DiversityLoss(config.de_noise, config.de_mean_std, config.de_std_std, config.fda_reduction, seed)
    terms = (
        *base_terms(config, seed),
        Term("fda", config.alpha_fda, fda, centroids=True),
        Term("de", config.alpha_de, diversity, centroids=True),
    )
    return Method("clusterq", terms, student_objective(config))
