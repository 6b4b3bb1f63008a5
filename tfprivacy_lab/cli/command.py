"""The command line: one subcommand a stage. The only module that prints or exits.

Errors that a user can cause are one line on stderr and exit code 2. Figures go to stdout; ``--json``
makes that one JSON object. Progress and warnings go to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import warnings

from tfprivacy_lab.checks import (
    InputError,
    LargeDeltaWarning,
    ModelReadingWarning,
    PrecisionWarning,
    RowOrderWarning,
    check_choice,
    check_finite_number,
)
from tfprivacy_lab.cli import apps, he, mpc, walkthrough

_DEFAULT_DELTA = 1e-5
_OUR_WARNINGS = (LargeDeltaWarning, ModelReadingWarning, PrecisionWarning, RowOrderWarning)


class _Parser(argparse.ArgumentParser):
    """argparse, but errors are one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments=None) -> int:
    """Run one command; returns the exit code."""
    parser = _build_parser()
    options = parser.parse_args(arguments)
    # Advice to programmers (retracing, font caches) is no news to the user of a command.
    for name in ("tensorflow", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with _warnings_told():
            result = options.command(options)
        if getattr(options, "json", False):
            print(json.dumps(result, allow_nan=False))
        else:
            _print_table(options.table(result, options))
        return 0
    except InputError as error:
        return _fail(options, str(error), 2)
    except KeyboardInterrupt:
        return _fail(options, "interrupted; the same command goes on where it can", 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except OSError as error:
        return _fail(options, f"{error.strerror or error}: {error.filename or 'output'}", 2)


def _fail(options, message: str, code: int) -> int:
    print(f"{options.prog}: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _account(options) -> dict:
    from tfprivacy_lab.dp.accounting import comparison, gaussian

    steps = gaussian.steps_for(options.examples, options.batch_size, options.epochs)
    run = gaussian.DpSgdRun(options.examples, options.batch_size, options.noise_multiplier, steps)
    result = gaussian.account(run, options.delta)
    if options.tensorflow_privacy:
        result["tensorflow_privacy"] = comparison.tensorflow_privacy_figures(run, options.delta)
    return result


def _calibrate(options) -> dict:
    from tfprivacy_lab.dp.accounting import budget, gaussian

    steps = gaussian.steps_for(options.examples, options.batch_size, options.epochs)
    noise_multiplier = budget.calibrate_noise_multiplier(
        options.examples, options.batch_size, steps, options.epsilon, options.delta
    )
    return gaussian.account(
        gaussian.DpSgdRun(options.examples, options.batch_size, noise_multiplier, steps), options.delta
    )


def _prepare_data(options) -> dict:
    from tfprivacy_lab.data import datasets

    return datasets.prepare(options.dataset, options.data_dir, source=options.source, from_idx=options.from_idx)


def _train(options) -> dict:
    from tfprivacy_lab.experiments.recipes import recipe

    chosen = recipe(options.recipe)
    check_finite_number("epsilon", options.epsilon, above=0)
    check_finite_number("delta", options.delta, above=0, below=1)
    if options.engine is not None:
        check_choice("engine", options.engine, ("reference", "fast"))
    from tfprivacy_lab.dp.accounting import gaussian
    from tfprivacy_lab.experiments import runs

    metrics = runs.train_recipe(
        chosen,
        options.out,
        epsilon=options.epsilon,
        delta=options.delta,
        seed=options.seed,
        dataset=options.dataset,
        data_dir=options.data_dir,
        epochs=options.epochs,
        engine=options.engine,
        ledger=options.ledger,
        on_epoch=_show_epoch,
    )
    gaussian.warn_of_large_delta(options.delta, metrics["examples"])
    return metrics


def _audit(options) -> dict:
    from tfprivacy_lab.experiments import audits

    return audits.audit_run(options.run, options.out, data_dir=options.data_dir)


def _ledger_create(options) -> dict:
    from tfprivacy_lab.data import datasets
    from tfprivacy_lab.dp.ledger.ledger import Ledger, dataset_digest

    _refuse_existing_ledger(options.ledger)
    private = datasets.load_private(options.dataset, options.data_dir)
    digest = dataset_digest(private.train, private.validation)
    return Ledger.create(options.ledger, digest, options.epsilon, options.delta).show()


def _refuse_existing_ledger(path) -> None:
    """Before the data are loaded: a ledger is never made again."""
    if os.path.exists(path):
        raise InputError(f"Cannot write {path}: it is there already; look at it with 'ledger show', or name another.")


def _ledger_show(options) -> dict:
    from tfprivacy_lab.dp.ledger.ledger import Ledger

    shown = Ledger.open(options.ledger).show()
    if not options.json:
        for run in shown["runs"]:
            state = "finished" if run["finished"] else "open"
            print(f"{run['run']:<40} epsilon alone {run['epsilon_alone']:.4f}  parts {run['parts']}  {state}")
    return shown


def _seed(text: str) -> int | None:
    if text == "os":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number or 'os', got {text!r}") from None


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="tfprivacy_lab", description="Train with DP, account, attack, evaluate encrypted.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    data = commands.add_parser("data", help="prepare datasets").add_subparsers(required=True, metavar="COMMAND")
    prepare = _command(data, "prepare", _prepare_data, "make a TFDS folder")
    _dataset_options(prepare)
    prepare.add_argument("--source", default="auto", choices=("auto", "package", "download"))
    prepare.add_argument("--from-idx", metavar="DIR", help="folder with four IDX files, gzipped or raw")

    for name, run, text in (("account", _account, "what a run costs"), ("calibrate", _calibrate, "noise for a budget")):
        command = _command(commands, name, run, text)
        command.add_argument("--examples", type=int, required=True, metavar="N", help="private examples")
        command.add_argument("--batch-size", type=int, required=True, metavar="B", help="expected Poisson batch")
        command.add_argument("--epochs", type=float, required=True, metavar="E")
        command.add_argument("--delta", type=float, required=True, metavar="D")
        if name == "account":
            command.add_argument("--noise-multiplier", type=float, required=True, metavar="S")
            command.add_argument("--tensorflow-privacy", action="store_true", help="TF Privacy's figures too (slow)")
        else:
            command.add_argument("--epsilon", type=float, required=True, metavar="X")

    train = _command(commands, "train", _train, "train a recipe under DP")
    train.add_argument(
        "--recipe", required=True, metavar="NAME", help="finetune, seed-mlp or another of REPRODUCTION.md"
    )
    train.add_argument("--epsilon", type=float, required=True, metavar="X")
    train.add_argument("--delta", type=float, default=_DEFAULT_DELTA, metavar="D")
    train.add_argument("--seed", type=_seed, default=None, metavar="S", help="for teaching; default: os, kept secret")
    train.add_argument("--out", required=True, metavar="DIR")
    train.add_argument("--epochs", type=int, metavar="E", help="instead of the recipe's")
    train.add_argument("--engine", metavar="ENGINE", help="reference (DPKerasSGDOptimizer) or fast; default: recipe's")
    train.add_argument("--ledger", metavar="PATH", help="charge this budget first; 'ledger create' makes one")
    _dataset_options(train)

    audit = _command(commands, "audit", _audit, "attack a trained run and its twin without DP")
    audit.add_argument("--run", required=True, metavar="DIR", help="what train wrote")
    audit.add_argument("--out", required=True, metavar="DIR")
    audit.add_argument("--data-dir", metavar="DIR")

    he.add(commands, _command, _note)
    apps.add(commands, mpc.add(commands, _command, _note), _command, _note)
    _add_ledger(commands)

    walkthrough.add(commands, _command, _note, _seed)
    return parser


def _add_ledger(commands) -> None:
    ledger = commands.add_parser("ledger", help="a budget per data set that outlives runs").add_subparsers(
        required=True, metavar="COMMAND"
    )
    create = _command(ledger, "create", _ledger_create, "open a budget for the train set of a dataset")
    _dataset_options(create)
    create.add_argument("--epsilon", type=float, required=True, metavar="X", help="total, for all runs together")
    create.add_argument("--delta", type=float, required=True, metavar="D")
    show = _command(ledger, "show", _ledger_show, "what was spent, by which run, and what is left")
    for command in (create, show):
        command.add_argument("--ledger", required=True, metavar="PATH")


def _command(commands, name, run, text) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(command=run, prog=parser.prog, table=lambda result, options: result)
    return parser


def _dataset_options(parser) -> None:
    parser.add_argument("--dataset", default="mnist", choices=("mnist", "fashion_mnist"))
    parser.add_argument("--data-dir", metavar="DIR", help="default: TFDS_DATA_DIR, or TFDS's own")


def _show_epoch(record) -> None:
    accuracy = "" if record.validation_accuracy is None else f"  validation {record.validation_accuracy:.2%}"
    _note(f"epoch {record.epoch:3d}  epsilon {record.epsilon:.3f}{accuracy}  {record.seconds:.1f} s")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _warnings_told():
    """Warnings of this package become a line each, said once however many functions warn."""
    told = set()
    with warnings.catch_warnings():
        for ours in _OUR_WARNINGS:
            warnings.simplefilter("always", ours)
        otherwise = warnings.showwarning

        def show(message, category, *where, **more):
            if not issubclass(category, _OUR_WARNINGS):
                otherwise(message, category, *where, **more)
            elif str(message) not in told:
                told.add(str(message))
                _note(f"warning: {message}")

        warnings.showwarning = show
        yield


def _print_table(result: dict) -> None:
    """One ``name  value`` line each; nested values are left to the files that hold them."""
    for name, value in result.items():
        if isinstance(value, dict | list):
            continue
        shown = f"{value:.6g}" if isinstance(value, float) else value
        print(f"{name:<28} {shown}")
