"""Logistic regression on shares for an application: trained, compared with plain NumPy, and noised from shares."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy.special import expit

from tfprivacy_lab import mpc
from tfprivacy_lab.apps import audits, evaluation, logistic
from tfprivacy_lab.apps.cases import Part, Split, choose
from tfprivacy_lab.distributed_noise import SharedGaussian, gradient_norm

HOLDERS = ("alice", "bob")
SIGMOID_ERROR = 1e-3
# A gradient sum is rounded when it is made, and twice when it is scaled.
ROUNDINGS = 3


@dataclasses.dataclass(frozen=True)
class Settings:
    """Plain gradient descent on all rows, chosen on the pilot."""

    learning_rate: float
    steps: int


CANDIDATES = tuple(Settings(rate, steps) for steps in (5, 10, 20) for rate in (0.5, 1.0, 2.0, 4.0))


@dataclasses.dataclass(frozen=True)
class Pool:
    """What two holders pool: how their data are split, and what they promise.

    Attributes:
        split: ``columns`` or ``rows``.
        blocks: Columns of each holder if columns are split; else one block of all.
        epsilon: ε of the release with noise; None for training without.
        delta: Its δ.
    """

    split: str
    blocks: tuple[slice, ...]
    epsilon: float | None = None
    delta: float = 1e-4

    def noise(self, width: int, steps: int) -> SharedGaussian | None:
        """Noise that keeps (ε, δ) against anyone who sees every step's sum, a holder who knows its own included."""
        if self.epsilon is None:
            return None
        clip = gradient_norm(len(self.blocks) ** 0.5, SIGMOID_ERROR)
        options = {"colluding": 1, "releases": steps, "roundings": ROUNDINGS}
        return SharedGaussian.calibrated(HOLDERS, clip, width + 1, epsilon=self.epsilon, delta=self.delta, **options)

    def parts(self, part: Part) -> tuple[dict, dict]:
        """(features, labels) by holder; the second holds the labels if columns are split."""
        if self.split == "columns":
            return {who: part.x[:, cut] for who, cut in zip(HOLDERS, self.blocks, strict=True)}, {"bob": part.y}
        half = len(part.y) // 2
        cuts = dict(zip(HOLDERS, (slice(None, half), slice(half, None)), strict=True))
        return {who: part.x[cut] for who, cut in cuts.items()}, {who: part.y[cut] for who, cut in cuts.items()}

    def settings(self, parts: Split) -> Settings:
        """Chosen on the pilot, with noise as large beside its gradients as it will be beside the train set's."""

        def probability(candidate, half, x, seed):
            noise = self.noise(x.shape[1], candidate.steps)
            drawn = None
            if noise is not None:
                stddev = noise.stddev() * len(half.y) / len(parts.train.y)
                drawn = np.random.default_rng(seed).normal(scale=stddev, size=(candidate.steps, x.shape[1] + 1))
            kernel, bias = logistic.fit(half.x, half.y, **dataclasses.asdict(candidate), noise=drawn)
            return expit(x @ kernel + bias)[:, 0]

        return choose(CANDIDATES, parts.pilot, probability)


def train(parts: Split, pool: Pool, world, *, seed: int, secret: bool = False, reveal=("alice",), run=None):
    """Train on shares.

    Args:
        parts: Whose train rows are pooled.
        pool: How, and under which noise.
        world: Who computes, by which protocol.
        seed: Of the public start; and of the noise, unless
        secret: it comes from the operating system. Seeded noise is for tables that can be made again: whoever knows
            the seed can subtract it.
        reveal: Who learns the weights, noised if ``pool`` says so.
        run: :func:`tfprivacy_lab.mpc.simulate` or :func:`tfprivacy_lab.mpc.launch`.

    Returns:
        The model, and figures: ``settings``, ``quality`` on the test rows, the largest distance of the weights from
        those of plain NumPy on the same start and noise, cost, and the noise's statement if there is noise.
    """
    settings, width = pool.settings(parts), parts.train.x.shape[1]
    model = mpc.SharedModel([mpc.Layer(1, "sigmoid")], world, sigmoid_error=SIGMOID_ERROR, seed=seed)
    model.compile("binary_crossentropy", settings.learning_rate, row_norm=1.0)
    noise, drawn = pool.noise(width, settings.steps), None
    if noise is not None:
        seeds = (None, None) if secret else (2 * seed, 2 * seed + 1)
        drawn = {who: noise.draw(one) for who, one in zip(HOLDERS, seeds, strict=True)}
    found = model.fit(
        *pool.parts(parts.train),
        steps=settings.steps,
        split=pool.split,
        reveal_weights=reveal,
        noise=noise and noise.noise(pool.delta),
        noise_steps=drawn,
        # Both hold parts of one table.
        ids=dict.fromkeys(HOLDERS, np.arange(len(parts.train.y))) if pool.split == "columns" else None,
        run=run,
    )
    kernel, bias = found.outcomes[reveal[0]].weights
    added = None if drawn is None else sum(drawn.values()) * 2.0**-noise.fraction_bits
    start = [np.array(one) for one in model.job.weights]
    plain = logistic.fit(parts.train.x, parts.train.y, **dataclasses.asdict(settings), start=start, noise=added)
    figures = {
        "settings": dataclasses.asdict(settings),
        "quality": evaluation.quality(expit(parts.test.x @ kernel + bias)[:, 0], parts.test.y),
        "plain_accuracy": evaluation.quality(expit(parts.test.x @ plain[0] + plain[1])[:, 0], parts.test.y)["accuracy"],
        "weight_difference": float(max(np.abs(a - b).max() for a, b in zip((kernel, bias), plain, strict=True))),
        "bytes_sent": found.bytes_sent,
        "rounds": found.rounds,
        "seconds": round(found.seconds, 3),
        "statement": None if noise is None else noise.statement(pool.delta),
    }
    return model, (kernel, bias), figures


def runs(split, pool, world, seeds, epsilons, delta: float) -> list[dict]:
    """Every seed and ε, trained and attacked; see :func:`tfprivacy_lab.apps.audits.described`.

    Args:
        split: Seed to :class:`~tfprivacy_lab.apps.cases.Split`.
        pool: ε, or None, to :class:`Pool`.
        world: Who computes.
        seeds: Of splits, starts and noise.
        epsilons: Targets, None for no DP.
        delta: δ.
    """
    result = []
    for seed in seeds:
        parts = split(seed)
        for epsilon in epsilons:
            _, (kernel, bias), figures = train(parts, pool(epsilon), world, seed=seed)
            statement = figures["statement"] or {"epsilon": None, "accountant": None}
            logits_of = functools.partial(logistic.logits, kernel=kernel, bias=bias)
            spent = statement["epsilon"]
            result.append(audits.described(logits_of, parts, delta, epsilon, spent, statement["accountant"], seed))
    return result
