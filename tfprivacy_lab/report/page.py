"""One folder of results into figures, a self-contained ``report.html`` and a model card.

Reads files only: no model, no TensorFlow. The texts are in ``report.html.jinja`` and
``model_card.md.jinja``; a number that was not measured says so in its place. The same files give the
same bytes.

Not covered: the report shows private examples (the samples figure). That is fitting for MNIST, which is
public and plays the private part; for data that is really private the picture would be a disclosure.
"""

from __future__ import annotations

import base64
import math
from pathlib import Path

import jinja2
import numpy as np

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.ring.parameters import PARAMETERS
from tfprivacy_lab.report import figures, guarantee, style

MISSING = "not measured"
MODELS = ("positive_control", "non_private", "dp")
SCHEMES = ("bfv", "ckks")
# What the figure without amplification compares, where the metrics were written before they said so.
_FIXED_ORDER = "zero_out"
_IMAGES = (None, 28, 28)
_ARRAYS = {
    "samples": {
        "public_images": _IMAGES,
        "public_labels": (None,),
        "private_images": _IMAGES,
        "private_labels": (None,),
    },
    "reconstructions": {"original": _IMAGES, "noisy": _IMAGES, "reconstructed": _IMAGES},
    "logits": {"plain": (None, None), "bfv": (None, None), "ckks": (None, None), "labels": (None,)},
}


def build(out) -> dict[str, str]:
    """Write ``figures/*.png``, ``model_card.md`` and ``report.html`` into a finished walkthrough's folder.

    Args:
        out: Folder with ``metrics.json``, ``privacy_statement.txt`` and, under ``state/``, ``audit.json``,
            ``he.json``, ``samples.npz``, ``reconstructions.npz`` and ``logits.npz``.

    Returns:
        The path of each file written, by name: ``report``, ``model_card`` and one for each figure.

    Raises:
        InputError: naming the file, if one is missing, damaged or of another shape; nothing is written then.
    """
    out = Path(out)
    metrics = files.read_json(out / "metrics.json", "metrics")
    audit = files.read_json(out / "state" / "audit.json", "audit")
    he = files.read_json(out / "state" / "he.json", "encrypted evaluation")
    statement = files.read_bytes(out / "privacy_statement.txt", "privacy statement").decode(errors="replace")
    arrays = {name: _read_arrays(out / "state" / f"{name}.npz", name, shapes) for name, shapes in _ARRAYS.items()}

    pictures = draw(metrics, audit, he, arrays)
    texts = _environment()
    facts = {"m": metrics, "audit": audit, "he": he, "parameters": PARAMETERS, "missing": MISSING}
    facts["meaning"] = guarantee.meaning(metrics)
    page = texts.get_template("report.html.jinja").render(
        facts,
        statement=statement,
        models=MODELS,
        pretraining_words=_in_words((metrics.get("pretraining") or {}).get("probe")),
        schemes=SCHEMES,
        fixed_order=metrics.get("epsilon_no_amplification_adjacency") or _FIXED_ORDER,
        logits=_logits_of_first(arrays["logits"]),
        shown=_agreements(arrays["logits"]),
        images={name: _data_uri(picture) for name, picture in pictures.items()},
    )
    card = texts.get_template("model_card.md.jinja").render(facts)

    written = {name: (out / "figures" / f"{name}.png", picture) for name, picture in pictures.items()}
    written["model_card"] = out / "model_card.md", card.encode()
    written["report"] = out / "report.html", page.encode()
    for path, content in written.values():
        files.write_bytes(path, content)
    return {name: str(path) for name, (path, _) in written.items()}


def draw(metrics: dict, audit: dict, he: dict, arrays: dict) -> dict[str, bytes]:
    """Every figure of the report as PNG bytes, by name."""
    measured, pretrained = metrics.get("he") or {}, metrics.get("pretraining") or {}
    values = arrays["logits"]
    return {
        "samples": figures.samples(**arrays["samples"]),
        "pretraining": figures.pretraining(pretrained.get("probe"), pretrained.get("task")),
        "reconstructions": figures.reconstructions(**arrays["reconstructions"]),
        "training": figures.training(
            metrics.get("history") or [], metrics.get("epsilon"), metrics.get("nonprivate_test_accuracy")
        ),
        "roc": figures.roc(audit, metrics.get("epsilon"), metrics.get("delta"), guarantee.bound_of(metrics)),
        "logits": figures.logits(
            values["plain"],
            {scheme: values[scheme] for scheme in SCHEMES},
            {scheme: (measured.get(scheme) or {}).get("error_bound") for scheme in SCHEMES},
        ),
        "encrypted_cost": figures.encrypted_cost({scheme: he.get(scheme) or {} for scheme in SCHEMES}),
    }


def _read_arrays(path, name, shapes):
    """The named arrays of a file, numeric and of the wanted shapes."""
    arrays = files.read_arrays(path, name, shapes)
    for key, shape in shapes.items():
        found = arrays[key]
        fits = found.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, found.shape))  # noqa: B905
        if not fits or found.dtype.kind not in "fiub" or 0 in found.shape:
            wanted = " x ".join("n" if axis is None else str(axis) for axis in shape)
            raise InputError(
                f"Cannot read {name} {path}: expected {key!r} of {wanted} numbers, got {found.shape}, {found.dtype}."
            )
    if name == "logits" and len({arrays[key].shape for key in ("plain", *SCHEMES)}) > 1:
        raise InputError(f"Cannot read {name} {path}: 'plain', 'bfv' and 'ckks' differ in shape.")
    return arrays


def _logits_of_first(arrays):
    """The first sample, class by class: plain logit, the decrypted ones, and whether each is the largest."""
    columns = {key: arrays[key][0] for key in ("plain", *SCHEMES)}
    rows = [
        {key: (float(column[place]), bool(place == int(np.argmax(column)))) for key, column in columns.items()}
        for place in range(len(columns["plain"]))
    ]
    return {"label": int(arrays["labels"][0]), "rows": rows}


def _agreements(arrays):
    """Of the samples at hand, how many get the plaintext's class, by scheme."""
    plain = arrays["plain"].argmax(axis=1)
    return {
        "samples": len(plain),
        **{scheme: int((arrays[scheme].argmax(axis=1) == plain).sum()) for scheme in SCHEMES},
    }


def _in_words(probe):
    """The bars of the pretraining figure for those who cannot see them."""
    return ", ".join(f"{name} {_told(100 * _number(value), '.1f', ' %')}" for name, value in (probe or {}).items())


def _data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def _environment() -> jinja2.Environment:
    """Templates that escape all they insert, and in which a missing number is a word, not an error."""
    texts = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: MISSING if value is None or value != value or _absent(value) else value,
    )
    texts.filters |= {
        "number": _number,
        "percent": lambda value, digits=2: _told(100 * _number(value), f".{digits}f", " %"),
        "fixed": lambda value, digits=4: _told(value, f".{digits}f"),
        "short": lambda value: _told(value, ".4g"),
        "count": lambda value: _told(value, ",.0f"),
        "bytes": lambda value: _scaled(value, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))),
        "duration": lambda value: _scaled(value, ((1, "s"), (1e-3, "ms"), (1e-6, "µs"))),
    }
    texts.globals |= {"tpr_bound": lambda *of: float(figures.tpr_bound(*map(_number, of))), "ratio": _ratio}
    texts.tests["measured"] = lambda value: math.isfinite(_number(value))
    return texts


def _absent(value) -> bool:
    return isinstance(value, jinja2.Undefined)


def _number(value) -> float:
    """A float, NaN for what the files do not hold or what is no number."""
    return math.nan if _absent(value) else style.number(value)


def _told(value, form, unit=""):
    """A number in its form and unit, or the word for none."""
    value = _number(value)
    return f"{value:{form}}{unit}".replace("e-0", "e-") if math.isfinite(value) else MISSING


def _scaled(value, units):
    """A number with three digits in the largest unit that leaves it at least 1."""
    value = _number(value)
    if not math.isfinite(value):
        return MISSING
    size, unit = next(((size, unit) for size, unit in units if abs(value) >= size), units[-1])
    scaled = value / size
    digits = 0 if unit == "bytes" or abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:,.{digits}f} {unit}"


def _ratio(value, by) -> float:
    """One number over another, NaN if there is no such thing."""
    return _number(value) / _number(by) if _number(by) else math.nan
