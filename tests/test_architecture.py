"""The shape of the house: imports point one way, importing is cheap, files stay small."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tbnn

ROOT = Path(tbnn.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("*.py"))
LEVEL = {"bits": 0, "ops": 0, "surrogate": 0, "nn": 1, "learning": 2, "train": 2, "cli": 3}
FOUNDATION = {"_version", "bits", "files", "ops"}
ONLY = {  # parts that may import nothing of tbnn but this and themselves
    "bits": set(),
    "files": set(),
    "ops": FOUNDATION | {"surrogate"},
    "surrogate": FOUNDATION,
    "nn": FOUNDATION | {"surrogate"},
    "data": FOUNDATION,
    "sim": FOUNDATION,
}
SEES_NN = "sim/pack/"
PRINTS = ("cli", "report")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(tree: ast.AST, path: Path) -> Iterator[str]:
    """The top-level parts of tbnn that a file imports, anywhere in it."""
    package = ["tbnn", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("tbnn."))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    part, imported = part_of(path), set(imported_parts(ast.parse(path.read_text()), path))
    if part == "__init__":
        return
    allowed = ONLY.get(part)
    if allowed is not None:
        extra = {"nn"} if name_of(path).startswith(SEES_NN) else set()
        assert imported <= allowed | extra | {part}
    assert all(LEVEL.get(target, 0) <= LEVEL.get(part, 3) for target in imported), imported
    assert "cli" not in imported or part in ("cli", "__main__")


def test_the_import_parser_sees_every_way_to_import() -> None:
    source = """
import tbnn.nn.leaky
from tbnn import bits
from tbnn.train.loop import run
def later():
    from ..cli import main
    from . import data
"""
    assert set(imported_parts(ast.parse(source), ROOT / "ops" / "x.py")) == {"nn", "bits", "train", "cli", "ops"}


@pytest.mark.parametrize("path", FILES + TESTS, ids=lambda p: "/".join(p.parts[-3:]))
def test_files_stay_under_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 400


def test_importing_compiles_nothing_and_leaves_heavy_packages_alone() -> None:
    code = """
import sys
import tbnn
heavy = {"tonic", "snntorch", "matplotlib", "sklearn", "tensorboard", "triton.compiler"} & set(sys.modules)
assert not heavy, heavy
from tbnn.ops.kernels import Kernel
values = [v for name, m in list(sys.modules.items()) if name.startswith("tbnn") for v in vars(m).values()]
dispatchers = [v.dispatcher for v in values if isinstance(v, Kernel)] + [v for v in values if hasattr(v, "py_func")]
assert len(dispatchers) >= 6, dispatchers
compiled = [d for d in dispatchers if d.signatures]
assert not compiled, compiled
import torch
assert not torch.cuda.is_initialized()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("module", [tbnn, tbnn.nn], ids=["tbnn", "tbnn.nn"])
def test_every_public_callable_has_a_docstring_of_its_own(module: object) -> None:
    for name in module.__all__:  # type: ignore[attr-defined]
        public = getattr(module, name)
        if callable(public):
            assert (public.__doc__ or "").strip(), name
            assert not isinstance(public, type) or "__doc__" in vars(public), name


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_command_line_and_reports_print(path: Path) -> None:
    if part_of(path) in PRINTS:
        return
    assert [node.lineno for name, node in calls(ast.parse(path.read_text())) if name == "print"] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_unpickled(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for name, node in calls(tree):
        if name == "torch.load":
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), node.lineno
        if name in ("np.load", "numpy.load"):
            assert not any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords), (
                node.lineno
            )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_user_input_is_not_checked_by_assert(path: Path) -> None:
    asserts = [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
    assert asserts == []
