"""The from-scratch protocol: right products, messages that tell nothing, and the dealer who tells all."""

import numpy as np
import pytest
from scipy import stats

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc import beaver


@pytest.fixture
def parties():
    return beaver.Party("alice"), beaver.Party("bob")


def product(x, y, parties, dealer):
    alice, bob = parties
    shared_x = beaver.share(beaver.encode(x), alice, (bob,), "x")
    theirs = beaver.share(beaver.encode(y), bob, (alice,), "y")
    shared_y = beaver.Shared(theirs.shares[::-1])  # In the order of the parties, not of the owner.
    return shared_x, beaver.multiply(shared_x, shared_y, parties, dealer)


def test_product_is_numpys(parties):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 4)), rng.normal(size=(4, 3))
    _, shared = product(x, y, parties, beaver.Dealer("carol"))
    opened = beaver.open_to_all(shared, parties, "product")
    assert beaver.decode(opened, products=1) == pytest.approx(x @ y, abs=4 * 4 * 2.0**-16)


def test_addition_is_local(parties):
    alice, bob = parties
    a, b = (beaver.share(beaver.encode([v]), alice, (bob,), "v") for v in (1.5, -2.25))
    received = len(bob.received)
    assert beaver.decode(sum((a + b).shares))[0] == -0.75
    assert beaver.decode(sum((a - b).shares))[0] == 3.75
    assert len(bob.received) == received


def test_a_dealer_who_is_a_party_recovers_the_input(parties):
    """The listing's ``crypto_provider=bob``: Bob deals, and opens x - a with Alice."""
    x = np.array([[0.0, 1.0], [12.5, -3.25]])
    dealer = beaver.Dealer("bob")
    shared_x, _ = product(x, np.ones((2, 1)), parties, dealer)
    bob = parties[1]
    a_share = next(message for label, message in bob.received if label == "triple a")
    recovered = beaver.recover_input(dealer, bob, shared_x.shares[1] - a_share)
    assert beaver.decode(recovered).tolist() == x.tolist()


def test_without_the_dealers_memory_the_same_messages_recover_nothing(parties):
    x = np.full((40, 25), 7.0)
    shared_x, _ = product(x, np.ones((25, 1)), parties, beaver.Dealer("carol"))
    bob = parties[1]
    a_share = next(message for label, message in bob.received if label == "triple a")
    stranger = beaver.Dealer("bob", [(beaver.random_ring(x.shape), beaver.random_ring((25, 1)))])
    guess = beaver.recover_input(stranger, bob, shared_x.shares[1] - a_share)
    assert not np.any(guess == beaver.encode(x))


def histogram(data):
    return np.bincount(np.frombuffer(data, np.uint8), minlength=256)


def received_by_bob(x, leaking=False):
    parties = beaver.Party("alice"), beaver.Party("bob")
    product(x, np.ones((50, 1)), parties, beaver.Dealer("carol"))
    data = parties[1].bytes_received()
    return histogram(data + (beaver.encode(x).tobytes() if leaking else b""))


# One in a million: randomness is the operating system's, and cannot be seeded.
ALPHA = 1e-6


def test_received_bytes_do_not_depend_on_inputs():
    """Two-sample test of homogeneity over the values of a byte, with a control that leaks and must fail."""
    small, large = np.zeros((200, 50)), np.full((200, 50), 123.456)
    assert stats.chi2_contingency([received_by_bob(small), received_by_bob(large)]).pvalue > ALPHA
    assert stats.chi2_contingency([received_by_bob(small), received_by_bob(large, leaking=True)]).pvalue < ALPHA


def test_randomness_is_the_operating_systems(monkeypatch):
    drawn = []

    def token_bytes(count):
        drawn.append(count)
        return b"\x01" * count

    monkeypatch.setattr(beaver.secrets, "token_bytes", token_bytes)
    np.random.seed(0)
    assert beaver.random_ring((3, 2)).tolist() == [[0x0101010101010101] * 2] * 3
    assert drawn == [48]


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**14, -(2.0**15)])
def test_what_would_wrap_is_refused(value):
    with pytest.raises(InputError, match="below 2\\^14"):
        beaver.encode([0.0, value])
