"""The from-scratch protocol: right products, messages that tell nothing, and the dealer who tells all."""

import numpy as np
import pytest
from scipy import stats

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc import beaver
from tfprivacy_lab.mpc.jobs.fixed_point import FixedPoint

STEP = 2.0**-16


@pytest.fixture
def parties():
    return beaver.Party("alice"), beaver.Party("bob")


@pytest.fixture
def dealer():
    return beaver.Dealer("carol")


def product(x, y, parties, dealer, bound=128.0):
    alice, bob = parties
    shared_x = beaver.share(beaver.encode(x), alice, parties, "x", bound)
    shared_y = beaver.share(beaver.encode(y), bob, parties, "y", bound)
    return shared_x, beaver.multiply(shared_x, shared_y, parties, dealer)


def on_shares(ring, fraction_bits=32, parties=2):
    """Signed whole numbers on shares, with the largest limit there is."""
    ring = np.array([value % 2**64 for value in ring], np.uint64)
    first = [beaver.random_ring(ring.shape) for _ in range(parties - 1)]
    shares = (*first, ring - sum(first, np.zeros_like(ring)))
    return beaver.Shared(shares, 2**62 - 1, fraction_bits)


def test_product_is_numpys(parties, dealer):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 4)), rng.normal(size=(4, 3))
    _, shared = product(x, y, parties, dealer)
    opened = beaver.open_to_all(shared, parties, "product")
    assert beaver.decode(opened, products=1) == pytest.approx(x @ y, abs=4 * 4 * STEP)
    assert beaver.reveal(shared, parties).tolist() == beaver.decode(opened, products=1).tolist()


def test_truncated_product_is_fixed_points_to_the_last_step(parties, dealer):
    """Oracle: Python's whole numbers. Down or up, by less than a step, and nothing else."""
    rng = np.random.default_rng(1)
    x, y = 5 * rng.normal(size=(40, 30)), 5 * rng.normal(size=(30, 20))
    _, shared = product(x, y, parties, dealer)
    exact = beaver.encode(x).view(np.int64).astype(object) @ beaver.encode(y).view(np.int64).astype(object)
    found = sum(beaver.truncate(shared, parties, dealer).shares).view(np.int64).astype(object)
    rounded_up = found - exact // 2**16
    assert set(rounded_up.ravel()) == {0, 1}


EXTREMES = [0, 1, -1, 2**16 - 1, 2**16, -(2**16), 2**61, -(2**61), 2**62 - 1, -(2**62) + 1, 2**46 + 3, -(2**46) - 3]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("bits", [1, 16, 32, 45])
def test_truncation_never_fails_up_to_the_ends_of_its_range(count, bits):
    """Where truncating each share for itself fails with probability 1/2, this one does not in 20,000 tries."""
    parties = tuple(beaver.Party(f"p{number}") for number in range(count))
    z = EXTREMES * (20_000 // len(EXTREMES))
    cut = beaver.truncate(on_shares(z, 16 + bits, count), parties, beaver.Dealer("carol"))
    found = sum(cut.shares[1:], cut.shares[0]).view(np.int64)
    floor = np.array([value >> bits for value in z])
    exact = np.array([value % 2**bits == 0 for value in z])
    assert set(np.unique(found - floor)) == {0, 1}
    assert (found == floor)[exact].all()
    assert np.abs(found).max() <= cut.limit


# One in a million: randomness is the operating system's, and cannot be seeded.
ALPHA = 1e-6


@pytest.mark.parametrize("cut_off", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("whole", [5, -3])
def test_truncation_rounds_up_as_often_as_what_is_cut_off_says(parties, dealer, whole, cut_off):
    """Two-sided: the right probability is accepted, 2/3 of it or 4/3 rejected; so the error is zero on average."""
    tries, last = 20_000, round(cut_off * 2**16)
    cut = beaver.truncate(on_shares([whole * 2**16 + last] * tries), parties, dealer)
    ups = int((sum(cut.shares).view(np.int64) - whole).sum())
    assert stats.binomtest(ups, tries, last / 2**16).pvalue > ALPHA
    for wrong in (2 / 3, 4 / 3):
        assert stats.binomtest(ups, tries, min(wrong * last / 2**16, 0.999)).pvalue < ALPHA


def test_chain_of_products_is_right_until_it_is_refused(parties, dealer):
    alice, bob = parties
    value = beaver.share(beaver.encode([[3.0]]), alice, parties, "x", bound=3.0)
    two = beaver.share(beaver.encode([[2.0]]), bob, parties, "y", bound=2.0)
    for number in range(28):
        value = beaver.truncate(beaver.multiply(value, two, parties, dealer), parties, dealer)
        assert beaver.reveal(value, parties).item() == 3.0 * 2 ** (number + 1)
    # The next would not fit: where the engine's own arithmetic ends.
    assert value.bound < FixedPoint(64, 16).largest <= 2 * value.bound
    with pytest.raises(InputError, match=r"Expected x @ y to stay below 2\^30 .* truncate every product"):
        beaver.multiply(value, two, parties, dealer)


def test_products_that_are_not_truncated_are_refused_before_they_wrap(parties, dealer):
    """3, 6, 12 fit; 24 at 64 fraction bits would be 0."""
    alice, bob = parties
    value = beaver.share(beaver.encode([[3.0]]), alice, parties, "x", bound=3.0)
    two = beaver.share(beaver.encode([[2.0]]), bob, parties, "y", bound=2.0)
    for expected in (6.0, 12.0):
        value = beaver.multiply(value, two, parties, dealer)
        assert beaver.reveal(value, parties).item() == expected
    with pytest.raises(InputError, match="with 64 fraction bits"):
        beaver.multiply(value, two, parties, dealer)


def test_every_operation_refuses_what_might_not_fit(parties, dealer):
    alice = parties[0]
    x = beaver.share(beaver.encode([[1.0]]), alice, parties, "x")  # the default bound, 2^14, is all that is known
    nothing = beaver.public([[0.0]], parties)
    with pytest.raises(InputError, match="Expected x @ y"):
        beaver.multiply(beaver.columns(*[x] * 4), beaver.columns(*[x] * 4).transposed(), parties, dealer)
    with pytest.raises(InputError, match=r"Expected x times 4 .* 48 fraction bits"):
        x.times(2.0**13).times(4.0)
    with pytest.raises(InputError, match="63 fraction bits"):
        beaver.Shared(nothing.shares, 0, 63)
    half = beaver.Shared(x.shares, 2**61, 16)
    with pytest.raises(InputError, match=r"Expected x \+ y"):
        half + half
    with pytest.raises(InputError, match="Expected x - y"):
        half - half
    with pytest.raises(InputError, match=r"same fraction bits, got \[16, 32\]"):
        x - x.times(0.5)
    with pytest.raises(InputError, match=r"same fraction bits, got \[16, 32\]"):
        beaver.columns(x, x.times(0.5))
    with pytest.raises(InputError, match="Expected z to be a product"):
        beaver.truncate(x, parties, dealer)
    received = [len(party.received) for party in parties]
    with pytest.raises(InputError, match=r"Expected no value of x beyond bound=2, got 2\.5 in magnitude"):
        beaver.share(beaver.encode([1.0, -2.5]), alice, parties, "x", bound=2.0)
    with pytest.raises(InputError, match="Expected owner to be one of parties, got owner='carol'"):
        beaver.share(beaver.encode([1.0]), beaver.Party("carol"), parties, "x")
    assert received == [len(party.received) for party in parties]


def test_addition_is_local(parties):
    alice, bob = parties
    a, b = (beaver.share(beaver.encode([v]), alice, parties, "v") for v in (1.5, -2.25))
    received = len(bob.received)
    assert beaver.decode(sum((a + b).shares))[0] == -0.75
    assert beaver.decode(sum((a - b).shares))[0] == 3.75
    assert (a + b).bound == (a - b).bound == 2.0**15
    assert len(bob.received) == received


def test_shares_come_in_the_order_of_the_parties(parties):
    """The owner's is never sent: each party has received its own share, or is the owner."""
    alice, bob = parties
    for owner, other, place in ((alice, bob, 1), (bob, alice, 0)):
        shared = beaver.share(beaver.encode([1.0, 2.0]), owner, parties, "z")
        label, message = other.received[-1]
        assert label == "share of z"
        assert message.tolist() == shared.shares[place].tolist()
    assert [len(party.received) for party in parties] == [1, 1]


DATA = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], float)
TARGET = np.array([[0], [0], [1], [1]], float)


def train(parties, dealer, steps):
    """Listing 4.2: Alice holds the first column, Bob the second and the targets; the first weights are public."""
    alice, bob = parties
    x = beaver.columns(
        beaver.share(beaver.encode(DATA[:, :1]), alice, parties, "x", bound=1.0),
        beaver.share(beaver.encode(DATA[:, 1:]), bob, parties, "x", bound=1.0),
        beaver.public(np.ones((4, 1)), parties),
    )
    y = beaver.share(beaver.encode(TARGET), bob, parties, "y", bound=1.0)
    weights = beaver.public([[0.3], [-0.2], [0.1]], parties)
    for _ in range(steps):
        residual = beaver.truncate(beaver.multiply(x, weights, parties, dealer), parties, dealer) - y
        slope = beaver.truncate(beaver.multiply(x.transposed(), residual, parties, dealer), parties, dealer)
        weights = weights - beaver.truncate(slope.times(0.2), parties, dealer)
    return weights


def test_listing_trains_on_the_protocol_as_in_the_clear(parties, dealer):
    """Golden weights of listing 4.2. Features are whole numbers, so only the update is rounded, by a step a weight."""
    found = beaver.reveal(train(parties, dealer, 10), parties).ravel()
    assert found == pytest.approx([0.8950, -0.0513, 0.0927], abs=5e-5 + 10 * 3**0.5 * 2 * STEP)
    learnt = {label for party in parties for label, _ in party.received if label.startswith("opening")}
    assert learnt == {"opening of x - a", "opening of y - b", "opening of z + r", "opening of result"}


def test_training_that_might_not_fit_is_refused(parties, dealer):
    with pytest.raises(InputError, match="compute fewer steps"):
        train(parties, dealer, 30)


def test_a_dealer_who_is_a_party_recovers_the_input(parties):
    """The listing's ``crypto_provider=bob``: Bob deals, and opens x - a with Alice."""
    x = np.array([[0.0, 1.0], [12.5, -3.25]])
    dealer = beaver.Dealer("bob")
    shared_x, _ = product(x, np.ones((2, 1)), parties, dealer)
    bob = parties[1]
    a_share = next(message for label, message in bob.received if label == "triple a")
    recovered = beaver.recover_input(dealer, bob, shared_x.shares[1] - a_share)
    assert beaver.decode(recovered).tolist() == x.tolist()


def test_without_the_dealers_memory_the_same_messages_recover_nothing(parties, dealer):
    x = np.full((40, 25), 7.0)
    shared_x, _ = product(x, np.ones((25, 1)), parties, dealer)
    bob = parties[1]
    a_share = next(message for label, message in bob.received if label == "triple a")
    stranger = beaver.Dealer("bob", [(beaver.random_ring(x.shape), beaver.random_ring((25, 1)))])
    guess = beaver.recover_input(stranger, bob, shared_x.shares[1] - a_share)
    assert not np.any(guess == beaver.encode(x))


def histogram(data):
    return np.bincount(np.frombuffer(data, np.uint8), minlength=256)


def received_by_bob(x, leaking=False):
    parties, dealer = (beaver.Party("alice"), beaver.Party("bob")), beaver.Dealer("carol")
    _, shared = product(x, np.ones((50, 1)), parties, dealer)
    beaver.truncate(shared, parties, dealer)
    data = parties[1].bytes_received()
    return histogram(data + (beaver.encode(x).tobytes() if leaking else b""))


def test_received_bytes_do_not_depend_on_inputs():
    """Two-sample test of homogeneity over the values of a byte, with a control that leaks and must fail."""
    small, large = np.zeros((200, 50)), np.full((200, 50), 123.456)
    assert stats.chi2_contingency([received_by_bob(small), received_by_bob(large)]).pvalue > ALPHA
    assert stats.chi2_contingency([received_by_bob(small), received_by_bob(large, leaking=True)]).pvalue < ALPHA


def masked(value):
    """What both parties open in a truncation: each adds the share it received to its own, so the sum is c."""
    parties = beaver.Party("alice"), beaver.Party("bob")
    beaver.truncate(on_shares([value] * 20_000), parties, beaver.Dealer("carol"))
    received = [dict(party.received) for party in parties]
    for one in received:
        assert set(one) == {"mask r", "mask top bit", "mask truncated", "opening of z + r"}
    return sum(one["opening of z + r"] for one in received)


def test_what_a_truncation_opens_does_not_depend_on_the_value(monkeypatch):
    """Every byte of c, for two far values; with a mask of 32 bits, as if r were small, it must depend."""
    opened = [masked(value) for value in (0, 2**61)]
    tables = [[np.bincount(c.view(np.uint8)[byte::8], minlength=256) for c in opened] for byte in range(8)]
    assert min(stats.chi2_contingency(table).pvalue for table in tables) > ALPHA / 8
    right = beaver.Dealer.mask

    def narrow(self, shape, bits, parties):
        with pytest.MonkeyPatch.context() as patch:
            drawn = beaver.random_ring
            patch.setattr(beaver, "random_ring", lambda shape: drawn(shape) & np.uint64(2**32 - 1))
            return right(self, shape, bits, parties)

    monkeypatch.setattr(beaver.Dealer, "mask", narrow)
    opened = [masked(value) for value in (0, 2**61)]
    table = np.array([np.bincount(c.view(np.uint8)[7::8], minlength=256) for c in opened])
    assert stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue < ALPHA


def test_randomness_is_the_operating_systems(monkeypatch):
    drawn = []

    def token_bytes(count):
        drawn.append(count)
        return b"\x01" * count

    monkeypatch.setattr(beaver.secrets, "token_bytes", token_bytes)
    np.random.seed(0)
    assert beaver.random_ring((3, 2)).tolist() == [[0x0101010101010101] * 2] * 3
    assert drawn == [48]


def test_masks_of_truncation_are_the_operating_systems_too():
    opened = []
    for _ in range(2):
        np.random.seed(0)
        opened.append(masked(7))
    assert not np.any(opened[0] == opened[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**14, -(2.0**15)])
def test_what_would_wrap_is_refused(value):
    with pytest.raises(InputError, match="below 2\\^14"):
        beaver.encode([0.0, value])
