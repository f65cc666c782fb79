"""Statement coverage without tracing: a plugin of pytest, which `tools/dev.py` names in PYTEST_PLUGINS.

When a module of the project's packages is imported, each of its statements is preceded by one that marks it as reached. The marks take
no time that could be measured; Python's tracing, which sees every line of every package, adds a third to the suite's. Each process of
the session leaves its marks in a data file for `coverage combine` and `coverage report`. Processes that tests start themselves are not
measured. torch.compile breaks its graphs at marks, so tests of compiled networks use such processes.
"""

import ast
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from coverage import CoverageData

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for name in ("common", "gen", "finetune") for path in sorted((ROOT / name).glob("clusterq*/**/*.py"))]
PACKAGES = {path.parent.name for path in SOURCES if path.name == "__init__.py" and path.parents[2] == ROOT}
MARKS = "__reached_statements__"


class Marking(ast.NodeTransformer):
    """Puts a mark before each statement. An `except` or `case` is reached when its body is.

    Attributes:
        lines: for each mark, the line numbers that it stands for.
    """

    def __init__(self) -> None:
        self.lines: list[list[int]] = []

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                setattr(node, field, list(self._marked(statements)))
        for branch in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
            self.generic_visit(branch)
            place = branch.pattern if isinstance(branch, ast.match_case) else branch
            branch.body.insert(0, self._mark(place, [place.lineno]))
        return node

    def _marked(self, statements: list[ast.stmt]) -> Iterator[ast.AST]:
        for statement in statements:
            decorators = [decorator.lineno for decorator in getattr(statement, "decorator_list", [])]
            mark = self._mark(statement, [*decorators, statement.lineno])
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                yield statement  # a docstring, which must stay first and counts as no statement
            elif isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                yield from (statement, mark)
            else:
                yield from (mark, self.generic_visit(statement))

    def _mark(self, place: ast.AST, lines: list[int]) -> ast.stmt:
        index = ast.Subscript(ast.Name(MARKS, ast.Load()), ast.Constant(len(self.lines)), ast.Store())
        self.lines.append(lines)
        return ast.fix_missing_locations(ast.copy_location(ast.Assign([index], ast.Constant(True)), place))


class Marked:
    """A source file compiled with marks.

    Attributes:
        code: compiled module, whose global MARKS must be `reached`.
        reached: for each mark, whether it was reached.
    """

    def __init__(self, source: bytes, path: str) -> None:
        marking = Marking()
        self.code: CodeType = compile(marking.visit(ast.parse(source, path)), path, "exec", dont_inherit=True)
        self.reached = [False] * len(marking.lines)
        self._lines = marking.lines

    def lines(self) -> set[int]:
        """Return the numbers of the lines that were reached."""
        return {line for lines, seen in zip(self._lines, self.reached, strict=True) if seen for line in lines}


files: dict[str, Marked] = {}


class Loader(SourceFileLoader):
    """Imports a module with marks."""

    def exec_module(self, module: ModuleType) -> None:
        files[self.path] = marked = Marked(self.get_data(self.path), self.path)
        module.__dict__[MARKS] = marked.reached
        exec(marked.code, module.__dict__)


class Finder(MetaPathFinder):
    """Finds the project's modules, for which it names `Loader`."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname.partition(".")[0] in PACKAGES else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(fullname, spec.loader.path)
        return spec


def pytest_configure() -> None:
    sys.meta_path.insert(0, Finder())
    if "PYTEST_XDIST_WORKER" in os.environ:  # a pytest that a test starts is not measured
        del os.environ["PYTEST_PLUGINS"]


def pytest_sessionfinish() -> None:
    data = CoverageData(str(ROOT / ".coverage"), suffix=str(os.getpid()))
    data.add_lines({path: marked.lines() for path, marked in files.items()})
    data.touch_files([str(path) for path in SOURCES])
