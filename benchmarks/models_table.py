"""docs/models.md: which engine trains which Keras model, each step held against a loop over examples.

``make models`` writes the page, and ``models_table.py PATTERN`` those of its rows whose name matches. The test derives
every row again. A model takes the fast path if ``PrivateModel`` trains it as it is, the slow one if
``unknown_layers="slow"`` is needed, and else is refused, in one line. Anything else is a FAULT of the library: another
exception, an error of many lines, a step that is not the loop's.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tfprivacy_lab import files

# isort: split
# The package first: it keeps TensorFlow's notices at start-up out of the output.
import example_loop
import keras
import numpy as np
import tensorflow as tf
from model_catalogue import CASES
from model_catalogue.case import EXAMPLES, Case

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import PrivateModel
from tfprivacy_lab.models.keras_internals import layers_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
# Of the step's length: what single precision leaves, with room for other processors' order of sums.
BOUND = 2e-5
_SEED = 11
_DRAWS = "compared with draws that are the same for every row"


_HEAD = """# Keras models under differential privacy

Written by `make models`; `tests/test_models_table.py` derives every row again, long ones under `make test-slow`.
{count} models and kinds of input: {said}.

- **fast**: `PrivateModel(model, l2_norm_clip=..., noise_multiplier=...)` trains it as it is, by book-keeping.
- **slow**: `unknown_layers="slow"` is needed: every example is differentiated alone, which is as right and takes
  longer.
- **refused**: neither trains it; the note is the error's one line.

Each model that is trained takes one step without noise on {examples} examples, at a clipping norm that about half of
their gradients pass, and its weights are held against a loop that takes Keras' own loss of one example at a time, clips
its gradient and sums in double precision. *Error* is the distance of the two over the length of the step. The notes
are what the library says; where it names a layer without a rule, its list of layers that have one is left out, and …
stands for a measured norm. Models are small and their weights random; those of `keras.applications` too.

| family | model | inputs | path | error | note |
|---|---|---|---|---|---|
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of a case.

    Attributes:
        case: The case.
        path: "fast", "slow", "refused" or "FAULT".
        note: The library's reason, or what is to be known of the comparison.
        error: Distance of the weights after a step from the loop's, over the step's length; None if not compared.
        clipped: How many of the examples' gradients the loop scaled down; None if not compared.
    """

    case: Case
    path: str
    note: str = ""
    error: float | None = None
    clipped: int | None = None


@dataclasses.dataclass(frozen=True)
class _Expected:
    """What the loop says a step does."""

    l2_norm_clip: float
    before: np.ndarray
    after: np.ndarray
    clipped: int
    drew: bool


def row(case: Case) -> Row:
    """Try a case on the fast engine, then on the slow one, and hold the step against the loop."""
    expected = None if case.not_compared else _by_loop(case)
    reason, path = "", "refused"
    for path, unknown_layers in (("fast", "refuse"), ("slow", "slow")):
        try:
            model, said = _fitted(case, expected, unknown_layers)
        except InputError as refusal:
            if "\n" in str(refusal).strip():
                return Row(case, "FAULT", f"a refusal of several lines: {_in_a_line(refusal)}")
            reason, refused = str(refusal), refusal
            continue
        except Exception as error:  # The table is where whatever else comes out is to be seen.
            return Row(case, "FAULT", f"{type(error).__name__}: {_in_a_line(error)}")
        return _compared(case, expected, path, model, " ".join(filter(None, [reason, *said])))
    return Row(case, "refused", str(refused))


def _by_loop(case) -> _Expected:
    model = _made(case)
    draws = example_loop.draw_alike(model)
    found = example_loop.gradients(model, case.x, case.y, case.weights, case.loss)
    clip = example_loop.clip_between(found)
    model = _made(case)
    before = example_loop.weights_of(model)
    step = example_loop.clipped_sum(found, clip) / EXAMPLES + example_loop.regularisation_gradient(model)
    after = example_loop.constrained(model, before - step)
    norms = np.linalg.norm(found, axis=1)
    clipped = int(np.sum(norms > 1.001 * clip))
    if not (clipped and np.any(norms < 0.999 * clip)):
        raise ValueError(f"{case.name}: expected norms on both sides of the clipping norm {clip}, got {norms}.")
    return _Expected(clip, before, after, clipped, any(one.used for one in draws))


def _made(case) -> keras.Model:
    """The case's model, with the same weights and names each time."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(_SEED)
    return case.build()


def _fitted(case, expected, unknown_layers, *, draw_alike=False):
    """The model after a noiseless step on all examples, and what the library said of its layers by the way."""
    model = _made(case)
    if draw_alike:
        example_loop.draw_alike(model)
    clip = 1.0 if expected is None else expected.l2_norm_clip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        private = PrivateModel(
            model, l2_norm_clip=clip, noise_multiplier=0.0, unknown_layers=unknown_layers, seed=_SEED
        )
        private.compile(keras.optimizers.SGD(1.0), case.loss, **case.compiled)
        private.fit(**case.given(case.x, case.y), batch_size=EXAMPLES, verbose=0, **case.options)
    said = dict.fromkeys(str(warning.message) for warning in caught)
    return model, [one for one in said if any(repr(layer.name) in one for layer in layers_of(model))]


def _compared(case, expected, path, model, note) -> Row:
    if expected is None:
        return Row(case, path, f"not compared: {case.not_compared}")
    if expected.drew:
        model, _ = _fitted(case, expected, "refuse" if path == "fast" else "slow", draw_alike=True)
        note = f"{note}; {_DRAWS}".removeprefix("; ")
    step = np.linalg.norm(expected.after - expected.before)
    error = float(np.linalg.norm(example_loop.weights_of(model) - expected.after) / step)
    if not error < BOUND:
        return Row(case, "FAULT", f"{path}, and the step is another than the loop's", error, expected.clipped)
    return Row(case, path, note, error, expected.clipped)


def _in_a_line(error) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else ""


def line(found: Row) -> str:
    """A row of the table."""
    error = "–" if found.error is None else f"< {BOUND:.0e}" if found.error < BOUND else f"{found.error:.1g}"
    # What the engine knows is the same list in every such line; norms differ between processors.
    note = re.sub(r" \(it knows [^)]*\)", "", found.note)
    note = re.sub(r"\d+\.\d{3,}(e[-+]\d+)?", "…", note).replace("|", "\\|").replace("*", "\\*")
    return "| " + " | ".join([found.case.family, found.case.model, found.case.inputs, found.path, error, note]) + " |"


def page(lines: list[str]) -> str:
    """The whole of docs/models.md, around the lines of its table."""
    counts = Counter(re.split(r"(?<!\\)\|", one)[4].strip() for one in lines)
    said = ", ".join(f"{counts[path]} {path}" for path in ("fast", "slow", "refused", "FAULT") if counts[path])
    return _HEAD.format(count=len(lines), said=said, examples=EXAMPLES) + "\n".join(lines) + "\n"


def main(pattern: str = "") -> None:
    """Derive the rows whose name matches, all by default, keep the page's other lines, and write the page."""
    tf.get_logger().setLevel("ERROR")
    written = PAGE.read_text(encoding="utf-8").splitlines() if pattern else []
    lines = []
    for case in CASES:
        begin = f"| {case.family} | {case.model} | {case.inputs} | "
        kept = [one for one in written if one.startswith(begin) and not re.search(pattern, case.name)]
        lines += kept or [_derived(case)]
    files.write_bytes(PAGE, page(lines).encode())


def _derived(case) -> str:
    """A line of the table, with a line of progress."""
    begun = time.perf_counter()
    found = row(case)
    error = "" if found.error is None else f"{found.error:.1e}"
    print(f"{time.perf_counter() - begun:5.1f} s  {found.path:8}{error:9}{case.name}: {found.note}", flush=True)
    return line(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
