"""What the README, the pages and the Makefile say is what is there."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import tables
from tfprivacy_lab.cli.command import _build_parser

pages, reproduce_dp = tables.reproduce.pages, tables.reproduce_dp
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def prose(page):
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """What a link may point to within a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines():
    """Every command of the command line that a page shows, one line each, without what stands in brackets."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^ *tfprivacy_lab +(.+)$", text, flags=re.MULTILINE):
            yield pytest.param(re.sub(r"\[.*\]", "", line), id=f"{page.name}: {line[:50]}")


def results(command):
    """What a command found last."""
    return json.loads(command.RESULTS.read_text())


@pytest.mark.parametrize("command", tables.COMMANDS, ids=lambda command: command.__name__)
def test_tables_are_what_the_commands_write_from_their_results(command):
    if command is tables.bench_dp:
        assert command.PAGE.read_text() == command.dp_table.table(results(command))
        return
    parts = command.parts(results(command))
    assert parts
    for part in parts:
        assert pages.between(part.page.read_text(), part.marks) == part.text


def test_tables_of_the_readme_are_short():
    assert len(README.splitlines()) <= 120
    blocks = re.findall(r"(?:^\|.*\n)+", README, flags=re.MULTILINE)
    assert len(blocks) == 4
    assert all(len(block.splitlines()) <= 2 + 5 for block in blocks)


def test_parts_are_written_between_their_marks_and_nowhere_else(tmp_path):
    page, marks = tmp_path / "page.md", pages.marks("x", "tables")
    page.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    pages.write([pages.Part(page, marks, "new\nlines")])
    assert page.read_text() == f"before\n{marks[0]}\nnew\nlines\n{marks[1]}\nafter\n"
    assert pages.between(page.read_text(), marks) == "new\nlines"


def test_a_short_table_names_each_row_exactly():
    rows = [{"case": "a", "samples": 1}, {"case": "a", "samples": 2}]
    assert pages.select(rows, ({"samples": 2}, {"samples": 1})) == rows[::-1]
    for wanted in ({"case": "a"}, {"case": "b"}):
        with pytest.raises(ValueError, match="Expected one row"):
            pages.select(rows, (wanted,))


def test_every_command_of_the_accuracy_table_is_shown():
    page = (ROOT / "REPRODUCTION.md").read_text()
    shown = pages.between(page, pages.marks("commands", "reproduce-dp")).splitlines()
    assert shown[1:-1] == [row["command"] for row in results(reproduce_dp)["rows"]]


def test_rows_follow_from_their_runs():
    found = results(reproduce_dp)
    assert found["rows"] == reproduce_dp.rows(found["runs"])
    for row in found["rows"]:
        mine = [
            run for run in found["runs"] if (run["recipe"], run["target_epsilon"]) == (row["recipe"], row["epsilon"])
        ]
        accuracies = [run["test_accuracy"] for run in mine]
        assert row["seeds"] == len({run["seed"] for run in mine}) == len(mine) >= 3
        assert row["accuracy_mean"] == pytest.approx(sum(accuracies) / len(accuracies))
        assert 0.98 * row["epsilon"] < row["epsilon_spent"] <= row["epsilon"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_page_is_in_the_index():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+)\)", index.read_text())}
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs") and page != index} <= linked


def test_the_map_names_every_room():
    plan = (ROOT / "CONTRIBUTING.md").read_text().split("```")[1]
    for folder in ("", "dp", "he", "mpc"):
        for path in (ROOT / "tfprivacy_lab" / folder).iterdir():
            if not path.name.startswith("_"):
                assert re.search(rf"\b{path.stem}\b", plan), path


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """What the first three blocks of the README leave, run one after the other."""
    import keras

    keras.utils.set_random_seed(0)
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        for block in EXAMPLES[:3]:
            exec(compile(block, "README.md", "exec"), names)
    return names


def test_example_trains_within_its_budget(example):
    spent = example["private"].privacy()
    assert 2.9 < spent["epsilon"] <= 3.0
    assert {"delta", "accountant", "sampling", "adjacency", "not_covered"} <= spent.keys()
    guesses = example["model"].predict(example["x_test"], verbose=0).argmax(axis=1)
    assert (guesses == example["y_test"]).mean() > 0.7


def test_example_attacks_with_as_many_as_were_trained_on(example):
    found = example["found"]
    assert (found["members"], found["nonmembers"]) == (len(example["x"]), len(example["x_test"]))
    assert found["accounted"]["accounted_epsilon"] == example["private"].privacy()["epsilon"]
    assert not found["accounted"]["violation"]


def test_example_decrypts_the_models_own_logits(example):
    expected = example["model"].predict(example["x_test"][:3], verbose=0)
    assert np.abs(example["logits"] - expected).max() <= example["client"].error_bound(example["reply"]) + 1e-5


@pytest.mark.filterwarnings("ignore::tfprivacy_lab.checks.RowOrderWarning")
def test_example_shares(example):
    assert len(EXAMPLES) == 4
    exec(compile(EXAMPLES[3], "README.md", "exec"), example)
    odd = example["odd"]
    assert odd.shape == (5, 1)
    assert ((odd[:, 0] > 0) & (odd[:, 0] < 1)).all()


@pytest.mark.parametrize("line", command_lines())
def test_commands_are_accepted(line):
    options = _build_parser().parse_args(line.split("#")[0].split())
    assert callable(options.command)


def test_make_targets_of_the_contract():
    makefile = (ROOT / "Makefile").read_text()
    contract = "setup data walkthrough train audit encrypt mpc apps notebooks bench reproduce lint clean help"
    contract += " test test-slow check"
    documented = set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))
    assert set(contract.split()) <= documented
