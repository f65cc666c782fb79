"""Compiled networks train as the plain ones do. That a C++ compiler makes them is tested with fine-tuning's student."""

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import load_teacher
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_gen.training.loop import train_step
from clusterq_gen.training.state import Training
from tests.conftest import DigitsTeacher
from tests.gen.conftest import CPU, small, teacher_config
from tests.several import in_processes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_compiled_networks_train_alike(digits_teacher: DigitsTeacher) -> None:
    # In a process whose modules are as they are written: slipcover's marks would break graphs.
    in_processes(1, train_alike, teacher_config(digits_teacher))


def train_alike(config: TeacherConfig) -> None:
    teacher = load_teacher(config)
    # Traced and differentiated as by the default backend, without minutes of C++.
    torch.compile = partial(torch.compile, backend="aot_eager")
    recorded, students = [], []
    for compiled in (False, True):
        # The student takes part in the generator's step, too: there its parameters get no gradient, and it runs plainly.
        run = Training.start(small(teacher, method={"method": "adadfq"}, train={"compile": compiled}), teacher, CPU)
        losses = []
        with batchnorm_taps(teacher.model) as taps:
            stored = run.stored_statistics()
            run.end_warmup(lambda _: None)
            for _ in range(4):
                values = train_step(run, taps, stored)
                losses.append(sum(float(value) for name, value in values.items() if name.startswith(("student/", "loss/"))))
                run.step += 1
        assert run.student is not None
        recorded.append(losses)
        students.append(run.student.state_dict())
    # Sums in another order: near, not the same.
    assert recorded[1] == pytest.approx(recorded[0], rel=0.1)
    assert list(students[0]) == list(students[1]), "its weights stay its own"
    assert counters["stats"]["unique_graphs"] >= 3, "generator, teacher and student were compiled"
    assert not counters["graph_break"], "the teacher's hooks are compiled with it"
