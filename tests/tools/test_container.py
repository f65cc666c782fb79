"""`Dockerfile` and `.dockerignore`, read and in part run by a shell; no image is built."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"ARG", "CMD", "COPY", "ENV", "FROM", "RUN", "USER", "WORKDIR"}


def instructions() -> list[tuple[str, str]]:
    """Return name and arguments of each instruction of the Dockerfile, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", "").splitlines() if line.strip()]
    listed = []
    for line in lines:
        name, _, rest = line.partition(" ")
        listed.append((name, rest))
    return listed


def stages() -> list[list[tuple[str, str]]]:
    """Return the instructions of each stage, from its FROM on."""
    listed: list[list[tuple[str, str]]] = []
    for instruction in instructions():
        if instruction[0] == "FROM":
            listed.append([])
        if listed:
            listed[-1].append(instruction)
    return listed


def torch_step() -> str:
    """Return the shell command that installs torch."""
    (step,) = [rest for name, rest in instructions() if name == "RUN" and "$DEVICE" in rest]
    return step


def test_each_instruction_is_known() -> None:
    assert {name for name, _ in instructions()} == PARTS


def test_each_stage_starts_from_an_image_with_a_pinned_tag_and_a_supported_python() -> None:
    defaults = dict(rest.split("=", 1) for name, rest in instructions() if name == "ARG" and "=" in rest)
    images = [re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], stage[0][1].split()[0]) for stage in stages()]
    assert len(images) == 2
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
    for image in images:
        tag = re.fullmatch(r"python:(3\.\d+)-slim-[a-z]+", image)
        assert tag, image
        assert f"Programming Language :: Python :: {tag[1]}" in classifiers


def test_the_image_runs_as_another_user_than_root() -> None:
    users = [rest for name, rest in stages()[-1] if name == "USER"]
    assert users == ["10001"]
    after = [name for name, _ in stages()[-1]]
    assert "RUN" not in after[after.index("USER") :]
    assert any(f"useradd --uid {users[0]}" in rest for name, rest in stages()[-1] if name == "RUN")


def test_what_is_copied_exists_and_is_all_that_docker_sees() -> None:
    copied = {
        source for name, rest in instructions() if name == "COPY" and "--from" not in rest for source in rest.split()[:-1]
    }
    assert not [source for source in copied if not (ROOT / source).exists()]
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "a virtual environment or data beside the sources would be sent along"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied


def test_every_package_is_pinned_and_no_host_is_named() -> None:
    installs = [part for name, rest in instructions() if name == "RUN" for part in re.findall(r"pip install[^;&]*", rest)]
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in install for install in installs)
    assert "://" not in (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("device", "index", "build", "code", "words"),
    [
        ("cuda", "", "13.0", 0, ["--constraint constraints.txt torch"]),
        (
            "cpu",
            "some-index",
            "",
            0,
            ["--constraint constraints.txt --no-deps --index-url some-index torch", "--constraint constraints.txt torch"],
        ),
        ("cpu", "", "", 2, ["TORCH_INDEX is empty"]),
        ("tpu", "", "", 2, ["found 'tpu', expected cpu or cuda"]),
        ("cpu", "some-index", "13.0", 1, ["is a build for cuda; change TORCH_INDEX"]),
        ("cuda", "", "", 1, ["is a build for cpu; change TORCH_INDEX"]),
    ],
)
def test_torch_is_of_the_build_that_was_asked_for(
    device: str, index: str, build: str, code: int, words: list[str], tmp_path: Path
) -> None:
    """The shell command itself, with a pip that prints what it is given and a torch that has only its version."""
    (tmp_path / "torch.py").write_text(f"class version:\n    cuda = {build or None!r}\n__version__ = '2.0'\n", encoding="utf-8")
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    (tmp_path / "pip").chmod(0o755)
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "DEVICE": device,
        "TORCH_INDEX": index,
    }
    done = subprocess.run(
        ["sh", "-c", torch_step()], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == code, done.stderr
    printed = done.stdout + done.stderr
    if code == 0:
        assert printed.splitlines() == [f"install {line}" for line in words]
    else:
        assert words[0] in printed
