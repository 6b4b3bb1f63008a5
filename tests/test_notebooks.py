"""The notebooks run, small and anywhere, draw what can be read, say what is so, and are committed as executed."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

from notebooks.execute import execute
from tfprivacy_lab import he, mpc

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


# Minutes even when small: `make notebooks` and `make test-slow` run it. Of the others `make test` has a few.
ON_SHARES = {"08_secret_sharing", "09_medicine", "11_education"}
LONG = {"03_dp_sgd_on_mnist"}
QUICK = {
    "02_differential_privacy_from_scratch",
    "05_homomorphic_encryption_from_scratch",
    "06_encrypted_head",
    "08_secret_sharing",
}
SLOW = {path.stem for path in NOTEBOOKS} - QUICK - LONG

# Put before a notebook's cells: a figure that cannot be read says so where a test reads it.
LEGIBLE = f"""
{(ROOT / "tests" / "legibility.py").read_text().replace("from __future__ import annotations", "")}
import sys as _sys
from matplotlib.backend_bases import FigureCanvasBase as _Canvas

_print_figure = _Canvas.print_figure

def _checked(self, *arguments, **options):
    for complaint in complaints(self.figure):
        print("ILLEGIBLE:", complaint, file=_sys.stderr)
    return _print_figure(self, *arguments, **options)

_Canvas.print_figure = _checked
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_imports_is_public(path):
    """Modules, or what a package lists in ``__all__``."""
    cells = nbformat.read(path, as_version=4).cells
    trees = [ast.parse(cell.source) for cell in cells if cell.cell_type == "code"]
    found = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    for node in [node for node in found if node.module.startswith("tfprivacy_lab")]:
        module = importlib.import_module(node.module)
        for name in (alias.name for alias in node.names):
            assert not name.startswith("_")
            if hasattr(module, "__path__") and importlib.util.find_spec(f"{node.module}.{name}") is None:
                assert name in module.__all__, f"{name} of {node.module}"
            elif not hasattr(module, "__path__"):
                assert node.module.count(".") == 1, f"{node.module} is a module within a package"


def outputs_of(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(stem):
    """All that a committed notebook printed, and its prose, with single spaces."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
    text = "".join(output.get("text", "") for output in outputs_of(notebook))
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return " ".join(text.split()), " ".join(prose.split())


@pytest.mark.processes
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.long] * (path.stem in LONG) + [pytest.mark.slow] * (path.stem in SLOW))
        for path in NOTEBOOKS
    ],
    ids=lambda path: path.stem,
)
def test_notebook_runs_wherever_it_lies(path, tmp_path, request):
    """From a copy in an empty folder, as students have it, and with every figure looked at."""
    if path.stem in ON_SHARES:
        request.getfixturevalue("engine")
    notebook = nbformat.read(path, as_version=4)
    drawn = "matplotlib" in "".join(cell.source for cell in notebook.cells)
    if drawn:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(LEGIBLE))
    nbformat.write(notebook, tmp_path / path.name)
    outputs = outputs_of(execute(tmp_path / path.name, fast=True))
    assert not [output for output in outputs if output.output_type == "error"]
    # TensorFlow's notices must not reach a student, and figures must be legible.
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_house_style(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) <= 15
    assert max(len(cell.source.splitlines()) for cell in cells) <= 20
    assert path.stat().st_size < 400_000
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "commit it as executed"
    assert not [output.text for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    assert any("solution" in cell.metadata.get("tags", []) for cell in cells)
    assert not any("../" in cell.source for cell in cells), "a copy elsewhere would not find it"


def test_secret_sharing_trains_on_its_own_protocol_to_the_golden_weights():
    text, _ = printed("08_secret_sharing")
    assert "3, and times 2 eight times over: 3 6 12 24 48 96 192 384 768" in text
    found = re.search(r"on shares \[ ?(\S+) (\S+) (\S+)\]", text)
    assert [float(value) for value in found.groups()] == pytest.approx([0.8950, -0.0513, 0.0927], abs=3e-4)
    difference, bound = re.search(r"largest difference (\S+), proved: at most (\S+)", text).groups()
    assert float(difference) <= float(bound) < 1e-3


def test_secret_sharing_objects_to_a_p_value_below_its_threshold_only():
    text, prose = printed("08_secret_sharing")
    tests = re.findall(r"p = (\S+) threshold (\S+): the test (objects|does not object)", text)
    assert [verdict for *_, verdict in tests] == ["does not object", "does not object", "objects"]
    assert all((float(p) < float(threshold)) == (verdict == "objects") for p, threshold, verdict in tests)
    assert "not near 0" not in prose


def test_secret_sharing_shows_whom_to_trust_in_full():
    text, _ = printed("08_secret_sharing")
    worlds = [
        mpc.World("semi2k", ("carol", "alice", "bob"), dealer="carol"),
        mpc.World("aby3", ("alice", "bob", "carol")),
        mpc.World("cheetah", ("alice", "bob")),
        mpc.World("semi2k", ("alice", "bob"), dealer="bob"),
    ]
    for world in worlds:
        assert world.trust(("alice", "bob")) in text


def test_encrypted_head_says_from_how_many_samples_on_a_batch_sends_less():
    text, _ = printed("06_encrypted_head")
    equal, fewer = map(int, re.search(r"as many bytes at (\d+) samples, fewer from (\d+) on", text).groups())
    assert fewer == equal + 1
    saved = []
    for count in range(1, 100):
        plans = [
            he.choose(np.ones((128, 10)), samples=count, scheme="bfv", packing=p) for p in ("coefficient", "batched")
        ]
        coefficient, batched = (plan.query_bytes + plan.reply_bytes for plan in plans)
        saved.append(coefficient - batched)
    assert [1 + saved.index(0), 1 + next(at for at, value in enumerate(saved) if value > 0)] == [equal, fewer]


def test_encrypted_head_shows_the_attacks_that_it_tells_of():
    text, prose = printed("06_encrypted_head")
    assert "65 samples under BFV; all integer weights right: True" in text
    assert "coefficients of the secret key found: 2048 of 2048, by one reply of 8 samples" in text
    assert "no decrypted value goes back" in prose


def test_finance_trains_every_epsilon_with_settings_of_its_own():
    text, _ = printed("10_finance")
    spent = {float(value) for value in re.findall(r"epsilon (\S+) accuracy", text)}
    chosen = {float(value) for value in re.findall(r"epsilon (\S+) \(delta \S+\): the pilot chose", text)}
    assert chosen == spent == {1.0, 0.1}


@pytest.mark.parametrize("stem", ["09_medicine", "10_finance", "11_education"])
def test_applications_give_a_delta_with_every_epsilon_of_a_table(stem):
    text, _ = printed(stem)
    rows = re.findall(r"\| [a-z]+ \|(?: [a-z]+ \(\d+\) \|)? ([^|]+) \|", text)
    private = [cell for cell in rows if re.match(r"\d", cell) and "±" not in cell and "[" not in cell]
    assert private
    assert all(re.fullmatch(r"\S+ \(δ = \S+\)", cell) for cell in private)
    if stem == "11_education":
        assert "Laplace with δ = 0, Gauss with δ = 1e-05" in text
