"""``walkthrough`` as a subcommand, and the twelve lines of it that a person wants."""

from __future__ import annotations

import decimal
from pathlib import Path

_SIX_DIGITS_UP = decimal.Context(prec=6, rounding=decimal.ROUND_CEILING)


def _walk(options) -> dict:
    from tfprivacy_lab.walkthrough import whole_path

    return whole_path.walk(
        options.out,
        fast=options.fast,
        seed=options.seed,
        data_dir=options.data_dir,
        ledger=options.ledger,
        on_progress=options.note,
    )


def table(metrics: dict, options) -> dict[str, str]:
    """What was found, by names for people; ``metrics.json`` has the rest."""
    audit, encrypted = metrics["audit"], metrics["he"]
    contradicts = audit["dp"]["accounted"]["violation"]
    minutes, seconds = divmod(round(metrics["seconds"]), 60)
    return {
        "Test accuracy": f"{metrics['test_accuracy']:.2%} of {metrics['test_examples']} test images",
        "Without DP": f"{metrics['nonprivate_test_accuracy']:.2%}",
        "Epsilon": f"{_rounded_up(metrics['epsilon'])} at delta {metrics['delta']:g}",
        "Accountant": metrics["accountant"],
        "Sampling": f"{metrics['sampling']}, {metrics['steps']} steps, "
        f"{metrics['batch_size']} of {metrics['examples']} examples expected in each",
        "Adjacency": metrics["adjacency"].replace("_", " "),
        "Attack": f"{_auc(audit['dp'])}: {'CONTRADICTS' if contradicts else 'no contradiction of'} the epsilon above",
        "Attack, positive control": _auc(audit["positive_control"]),
        "Encrypted, BFV": f"{_agree(encrypted['bfv'])}, "
        f"{'the integers of the clear' if encrypted['bfv']['exact'] else 'NOT the integers of the clear'}",
        "Encrypted, CKKS": f"{_agree(encrypted['ckks'])}, "
        f"{'within' if encrypted['ckks']['within_bound'] else 'BEYOND'} the stated error",
        "Time": f"{minutes} min {seconds} s" if minutes else f"{seconds} s",
        "Report": str(Path(options.out) / "report.html"),
    }


def _rounded_up(epsilon: float) -> str:
    """Six digits, and none of them below the truth."""
    return f"{_SIX_DIGITS_UP.create_decimal(repr(epsilon)).normalize():f}"


def _auc(attacked: dict) -> str:
    best = attacked["best"]
    low, high = best["auc_interval"]
    return f"AUC {best['auc']:.3f} ({low:.3f} to {high:.3f}), epsilon >= {best['epsilon_lower_bound']:.3f}"


def _agree(scheme: dict) -> str:
    return f"{scheme['agreement']:.2%} the same answers as in the clear"


def add(commands, command, note, seed) -> None:
    """Put ``walkthrough`` beside the other commands; ``command`` adds one, ``seed`` reads a seed."""
    walk = command(commands, "walkthrough", _walk, "the whole path on MNIST, ending in report.html")
    walk.add_argument("--out", required=True, metavar="DIR")
    walk.add_argument("--fast", action="store_true", help="a small genuine run, for tests")
    walk.add_argument("--seed", type=seed, default=0, metavar="S", help="default 0; os: secret noise")
    walk.add_argument("--data-dir", metavar="DIR")
    walk.add_argument("--ledger", metavar="FILE", help="charge this budget; default: one of this folder alone")
    walk.set_defaults(note=note, table=table)
