"""The notebooks run, small, and are committed as executed."""

from pathlib import Path

import nbformat
import pytest

from notebooks.execute import execute

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


# Minutes even when small: `make notebooks` and the slow tests run it.
LONG = {"03_dp_sgd_on_mnist"}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in LONG)) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_notebook_runs(path):
    notebook = execute(path, fast=True)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    # TensorFlow's notices must not reach a student.
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
