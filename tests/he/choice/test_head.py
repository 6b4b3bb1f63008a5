"""The choice of set and packing: what is asked is what is proved, and what cannot be is refused with what would do."""

import numpy as np
import pytest

from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError

RNG = np.random.default_rng(0)
KERNEL, BIAS = RNG.normal(size=(128, 10)) * 0.2, RNG.normal(size=10) * 0.1


@pytest.mark.parametrize(
    ("asked", "name", "packing"),
    [
        ({"scheme": "bfv"}, "bfv", "coefficient"),
        ({"scheme": "bfv", "samples": 16}, "bfv", "coefficient"),
        ({"scheme": "bfv", "samples": 2048}, "bfv", "batched"),
        ({"scheme": "ckks", "samples": 5000}, "ckks", "batched"),
        ({"scheme": "bfv", "sanitized": True}, "bfv-sanitized", "coefficient"),
        ({"sanitized": True, "max_error": 1e-2}, "ckks-sanitized", "coefficient"),
        ({"max_error": 1e-3}, "ckks", "coefficient"),
    ],
)
def test_the_cheapest_that_does_it(asked, name, packing):
    choice = he.choose(KERNEL, BIAS, **asked)
    assert (choice.parameters.name, choice.packing) == (name, packing)
    assert choice.bits_left > 0
    samples = min(asked.get("samples", 1), 64)
    client = he.Client.generate(name)
    features = np.random.default_rng(1).uniform(-1, 1, (samples, 128))
    query = client.encrypt(features, 1.0, packing)
    reply = he.Server(KERNEL, BIAS).evaluate(query)
    assert np.abs(client.decrypt(reply, query) - features @ KERNEL - BIAS).max() <= choice.error_bound
    if samples == asked.get("samples", 1):
        assert (len(query), len(reply)) == (choice.query_bytes, choice.reply_bytes)


def test_words_say_what_is_proved():
    told = "\n".join(he.choose(KERNEL, BIAS, scheme="bfv").explain())
    for part in ("N = 2048", "53 in all; the 2024 table allows 53", "exact", "evaluation keys 0", "not sanitised"):
        assert part in told
    told = "\n".join(he.choose(KERNEL, BIAS, sanitized=True).explain())
    assert "106 in all; the 2024 table allows 106" in told
    assert "nothing of the head but its logits" in told
    assert "129 chosen samples or half as many" in told


def test_what_cannot_be_is_refused_with_what_would_do():
    with pytest.raises(InputError, match=r"the least that is proved is .* let the scheme be ckks"):
        he.choose(KERNEL, BIAS, scheme="bfv", max_error=1e-6)
    with pytest.raises(InputError, match="could overflow"):
        he.choose(np.ones((2048, 1)), [1e6], scheme="bfv", sanitized=True)
    for wrong in ({"samples": 0}, {"feature_range": -1.0}, {"scheme": "bgv"}, {"max_error": float("nan")}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            he.choose(KERNEL, BIAS, **wrong)
    with pytest.raises(InputError, match="kernel"):
        he.choose(np.full((2, 2), np.nan))
