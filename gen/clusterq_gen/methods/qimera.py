"""Qimera (Choi et al., NeurIPS 2021): GDFQ with images between classes."""

from clusterq_gen.config import MethodConfig
from clusterq_gen.methods.gdfq import base_terms, student_objective
from clusterq_gen.methods.method import Method


def qimera(config: MethodConfig, seed: int) -> Method:
    """Return Qimera: GDFQ's terms and student, with mixed classes as the generator's input (`mixture.py`) and soft labels.

    Left out are the paper's disentanglement layer between embeddings and generator, and embeddings initialised from the teacher's
    last layer.
    """
    return Method("qimera", base_terms(config, seed), student_objective(config))
