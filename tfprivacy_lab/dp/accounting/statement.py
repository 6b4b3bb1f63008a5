"""The privacy statement: a guarantee is worth what is written beside its number."""

from __future__ import annotations

import textwrap

from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun, account, delta_warning
from tfprivacy_lab.dp.accounting.laplace import LaplaceRun, account_laplace

SEEDED = (
    "SEEDED RUN, FOR TEACHING AND TESTS: noise and sampling come from a seed that is written beside the "
    "model. Whoever knows the seed can subtract the noise. Run without a seed to mean the guarantee."
)
UNSEEDED = (
    "Noise and sampling were seeded with 128 bits from the operating system, which are deleted when the last noise "
    "is drawn. The noise is TensorFlow's Philox generator in single precision: not cryptographic, and subject "
    "to the floating-point gaps of Mironov (2012)."
)
_SECURE = (
    "Noise came from the operating system's cryptographic generator; sampling was seeded with 128 bits from it. In "
    "floating point a sum's low bits can tell on the data all the same (Haney et al. 2022)."
)
# For whom epsilon holds where batches are cut from a fixed order: not for the neighbours of the headline.
ZEROED = (
    "and for zero-out neighbours (one example's gradient becomes zero while its place stays), not for add-or-remove: "
    "one example more would shift all later batches"
)
UNIT = "one example: one row of x with its label"


def privacy_statement(
    run: DpSgdRun,
    delta: float,
    *,
    released: str,
    l2_norm_clip: float,
    tuning: str,
    seeded: bool,
    unit: str = UNIT,
    not_covered: tuple[str, ...] = (),
    tensorflow_privacy: dict | None = None,
) -> str:
    """The statement that goes beside a released model.

    Args:
        run: What was done to the private set.
        delta: δ of the guarantee.
        released: What is released under it.
        l2_norm_clip: Clipping norm C.
        tuning: What was chosen, on which data, outside the guarantee.
        seeded: Whether noise came from a published seed.
        unit: What one example is: the record that the guarantee is for.
        not_covered: Further outputs that the guarantee does not cover.
        tensorflow_privacy: The figures of
            :func:`tfprivacy_lab.dp.accounting.comparison.tensorflow_privacy_figures`, to print beside ours.

    Returns:
        Plain text, lines of at most 100 characters.
    """
    figures = account(run, delta)
    warning = delta_warning(delta, run.examples)
    rows = [
        ("Guarantee", f"(epsilon = {figures['epsilon']:.4f}, delta = {delta:g})-differential privacy"),
        ("Unit of privacy", unit),
        ("Adjacency", "add or remove one example"),
        ("Sampling", f"Poisson, each example joins a step with probability {run.sampling_probability:.6g}"),
        ("Accountant", f"{figures['accountant']}, pessimistic discretisation"),
        ("Mechanism", f"{run.steps} steps of a sum clipped to L2 norm {l2_norm_clip:g} under Gaussian noise"),
        ("Noise multiplier", f"{run.noise_multiplier:g}"),
        ("Private examples", f"{run.examples}, {run.batch_size} expected in a batch"),
        ("Released", released),
        ("Tuning", tuning),
        ("Randomness", SEEDED if seeded else UNSEEDED),
        ("Not covered", "; ".join(not_covered) or "nothing further was computed"),
    ]
    rows += [("Warning", warning)] if warning else []
    lines = ["PRIVACY STATEMENT", "=================", ""]
    lines += [row(name, text) for name, text in rows]
    lines += ["", "The same run under other assumptions:", ""]
    lines += [
        row("RDP, Poisson", f"epsilon = {figures['epsilon_rdp']:.4f}"),
        row(
            "No amplification",
            f"epsilon = {figures['epsilon_no_amplification_exact']:.4f} exactly, "
            f"{figures['epsilon_no_amplification']:.4f} by RDP: what the noise alone gives if batches are cut "
            f"from one fixed order, each example once a pass, {ZEROED}",
        ),
    ]
    if tensorflow_privacy is not None:
        lines += ["", "What TF Privacy's own functions print for this run:", ""]
        lines += [
            row(
                "compute_dp_sgd_privacy",
                f"epsilon = {tensorflow_privacy['compute_dp_sgd_privacy']:.4f} (deprecated; RDP, Poisson sampling; "
                "knows nothing of microbatches, nor whether the code samples so)",
            ),
            "",
            "compute_dp_sgd_privacy_statement(..., used_microbatching=False), RDP; right for one microbatch",
            "an example (its default, used_microbatching=True, doubles the sensitivity):",
            "",
            textwrap.indent(tensorflow_privacy["statement"].strip(), "    "),
        ]
    return "\n".join(lines) + "\n"


def row(name: str, text: str) -> str:
    """A line of the statement, wrapped under its name."""
    return textwrap.fill(text, 98, initial_indent=f"{name:<24}", subsequent_indent=" " * 24)


def laplace_statement(
    run: LaplaceRun,
    delta: float,
    *,
    released: str,
    l1_norm_clip: float,
    tuning: str,
    seeded: bool,
    secure_noise: bool = False,
    unit: str = UNIT,
    not_covered: tuple[str, ...] = (),
) -> str:
    """The statement that goes beside a model released under Laplace noise.

    Args:
        run: What was done to the private set.
        delta: δ of the second, smaller figure.
        released: What is released under it.
        l1_norm_clip: Clipping norm C.
        tuning: What was chosen, on which data, outside the guarantee.
        seeded: Whether noise came from a published seed.
        secure_noise: Whether noise came from the operating system's generator.
        unit: What one example is: the record that the guarantee is for.
        not_covered: Further outputs that the guarantee does not cover.

    Returns:
        Plain text, lines of at most 100 characters.
    """
    figures = account_laplace(run, delta)
    randomness = SEEDED if seeded else _SECURE if secure_noise else UNSEEDED
    rows = [
        ("Guarantee", f"pure epsilon = {figures['epsilon_pure']:.4f}, delta = 0"),
        ("At a delta above 0", f"epsilon = {figures['epsilon']:.4f}, delta = {delta:g}, of the same run"),
        ("Unit of privacy", unit),
        ("Adjacency", "add or remove one example"),
        ("Sampling", f"Poisson, each example joins a step with probability {run.sampling_probability:.6g}"),
        ("Accountant", f"sum of the steps' largest losses; {figures['accountant']} at delta = {delta:g}"),
        ("Mechanism", f"{run.steps} steps of a sum clipped to L1 norm {l1_norm_clip:g} under Laplace noise"),
        ("Noise multiplier", f"{run.noise_multiplier:g} (scale of the noise over the clipping norm)"),
        ("Private examples", f"{run.examples}, {run.batch_size} expected in a batch"),
        ("Released", released),
        ("Tuning", tuning),
        ("Randomness", randomness),
        ("Not covered", "; ".join(not_covered) or "nothing further was computed"),
    ]
    lines = ["PRIVACY STATEMENT", "=================", "", *(row(name, text) for name, text in rows)]
    lines += [
        "",
        "The same run under another assumption:",
        "",
        row(
            "No amplification",
            f"pure epsilon = {figures['epsilon_no_amplification']:.4f}: batches cut from one fixed order, each example "
            f"once a pass, {ZEROED}. At a pure epsilon this may be the smaller figure; it does not hold for Poisson "
            "batches, which may draw an example at every step",
        ),
    ]
    return "\n".join(lines) + "\n"
