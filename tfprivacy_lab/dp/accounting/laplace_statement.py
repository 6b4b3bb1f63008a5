"""The privacy statement of a run under Laplace noise, in the form of :mod:`tfprivacy_lab.dp.accounting.statement`."""

from __future__ import annotations

from tfprivacy_lab.dp.accounting.laplace import LaplaceRun, account_laplace
from tfprivacy_lab.dp.accounting.statement import SEEDED, UNIT, UNSEEDED, ZEROED, row

_SECURE = (
    "Noise came from the operating system's cryptographic generator; sampling was seeded with 128 bits from it. In "
    "floating point a sum's low bits can tell on the data all the same (Haney et al. 2022)."
)


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
    """The statement that goes beside a released model.

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
