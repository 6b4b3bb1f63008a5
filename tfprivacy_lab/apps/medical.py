"""Medicine: two hospitals hold different measurements of the same patients; a third party's patient is assessed.

Question: can a model of both hospitals' columns be trained, released, and asked about a clinic's patient, while no
hospital shows a measurement, the released model says little about any one patient, and the clinic shows nothing?

Pipeline: ``mpc`` trains logistic regression on shares, columns split; noise from shares makes the weights a DP release;
the clinic asks on shares (weights and question both hidden), or by ``he`` against the released weights.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from tfprivacy_lab import he, mpc
from tfprivacy_lab.apps import cases, sharing

CARD = cases.Card(
    name="Breast Cancer Wisconsin (Diagnostic)",
    source="Wolberg, Street and Mangasarian 1995; in scikit-learn 1.4.2",
    unit="a patient's fine needle aspirate, 30 measurements of cell nuclei",
    rows=569,
    left_out=0,
    columns=tuple(
        f"{name} {kind}"
        for kind in ("mean", "error", "worst")
        for name in (
            *("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity"),
            *("concave points", "symmetry", "fractal dimension"),
        )
    ),
    target="malignant",
    positives=212,
    groups=(),
    sha256="28fc6b7cdb8a1824689c926a6004e0800c4032a4ee1db540331d0b293ff2a468",
    caution="one clinic, three decades ago, no age or sex: no basis for a diagnosis today; that two hospitals hold "
    "half of the columns each is invented here",
)
NOT_PROTECTED = (
    "that a patient is in both hospitals' files: rows are matched beforehand, and their number is public",
    "a patient who appears in several rows: ε is for one row",
    "the pilot's patients, whose records scale the columns and chose the settings",
    "a hospital that lies about its columns or adds less noise than agreed: all protocols here are semi-honest",
    "under semi2k anything, if the dealer looks; under aby3 anything, if two of the three collude",
    "the model without DP of the table, which is revealed to one hospital for comparison only",
    "the clinic's patient from what the answer itself says",
)
BLOCKS = (slice(0, 15), slice(15, 30))
EPSILONS, DELTA = (None, 1.0, 3.0), 1e-4
WORLDS = {
    "semi2k": mpc.World("semi2k", ("dealer", "alice", "bob", "clinic"), "dealer"),
    "aby3": mpc.World("aby3", ("alice", "bob", "clinic")),
    "cheetah": mpc.World("cheetah", ("alice", "bob")),
}


def load():
    """Measurements (569, 30), labels (malignant is 1) and no groups, as the card says."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    x, y = found.data, 1 - found.target
    CARD.check(x, y)
    return x, y, {}


def split(seed: int) -> cases.Split:
    """114 public pilot rows, 341 for training, 114 for testing."""
    return cases.split(*load(), BLOCKS, pilot=114, test=114, seed=seed)


def pool(epsilon: float | None) -> sharing.Pool:
    """Columns of two hospitals."""
    return sharing.Pool("columns", BLOCKS, epsilon, DELTA)


def ask_encrypted(weights, patients: np.ndarray, scheme: str = "bfv-sanitized") -> np.ndarray:
    """Probabilities for a clinic's patients, whose measurements the holder of released weights never sees.

    Args:
        weights: Kernel (30, 1) and bias (1,), released.
        patients: (n, 30) on the public scale.
        scheme: The encryption's parameter set.
    """
    clinic, hospital = he.Client.generate(scheme), he.Server(*weights)
    query = clinic.encrypt(patients, 1.0)
    return expit(clinic.decrypt(hospital.evaluate(query), query)[:, 0])


def train_on_shares(protocol: str, *, epsilon: float = 3.0, seed: int = 0, run=None) -> dict:
    """Train with secret noise from shares, and answer the clinic: what ``mpc train --app medical`` shows."""
    world, parts = WORLDS[protocol], split(seed)
    model, weights, figures = sharing.train(parts, pool(epsilon), world, seed=seed, secret=True, run=run)
    patients = parts.test.x[:5]
    figures["clinic_encrypted"] = ask_encrypted(weights, patients).tolist()
    if "clinic" in world.parties:
        figures["clinic_on_shares"] = model.predict({"clinic": patients}, reveal=("clinic",), run=run)[:, 0].tolist()
    return figures | {"holders": "two hospitals, 15 columns each; the second has the labels"}


def run(seeds=range(5), protocol: str = "aby3", epsilons=EPSILONS) -> dict:
    """All seeds, without and with DP: the runs of the result table, each attacked."""
    return {"runs": sharing.runs(split, pool, WORLDS[protocol], seeds, epsilons, DELTA)}
