"""An in-loop student that torch.compile made learns what the plain one learns."""

import shutil
from pathlib import Path

import pytest

from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_gen.training.loop import train_step
from clusterq_gen.training.state import Training
from tests.gen.conftest import CPU, small

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_train_alike(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    found, students = [], []
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
        found.append(losses)
        students.append(run.student.state_dict())
    # Sums in another order: near, not the same.
    assert found[1] == pytest.approx(found[0], rel=0.1)
    assert list(students[0]) == list(students[1]), "its weights stay its own"
    assert any(not one.equal(other) for one, other in zip(*(s.values() for s in students), strict=True)), "it was compiled"
