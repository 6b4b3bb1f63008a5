r"""**For learning.** Additive secret sharing and Beaver's triples, from scratch; train on :class:`SharedModel` instead.

Numbers are whole numbers mod :math:`2^{64}`. A secret x is the sum of random shares, one a party:
:math:`x = x_0 + x_1 \bmod 2^{64}`; one share alone is uniform and tells nothing. Sums are local. For a product the
*dealer* hands out shares of a random triple :math:`c = ab`. The parties open :math:`d = x - a` and :math:`e = y - b`,
which are uniform as long as a and b are secret, and

.. math:: xy = c + d b + e a + d e,

which is linear in what is shared. Whoever knows a and sees d knows :math:`x = d + a`: the dealer must not be a party.
That is what ``crypto_provider=bob`` in the document's listing does; :func:`recover_input` is the attack.

Source: Beaver 1991; Cramer, Damgård and Nielsen 2015, ch. 3. Random numbers come from the operating system
(``secrets``). Everything runs in one process: what a party *receives* is written down in :class:`Party`, and that is
all a test or a reader may look at on its behalf.
"""

from __future__ import annotations

import dataclasses
import secrets

import numpy as np

from tfprivacy_lab.checks import InputError

FRACTION_BITS = 16


@dataclasses.dataclass
class Party:
    """A party: its name, its shares, and every message it received (what it could look at)."""

    name: str
    received: list[tuple[str, np.ndarray]] = dataclasses.field(default_factory=list)

    def receive(self, label: str, message: np.ndarray) -> np.ndarray:
        """Write down a message and hand it on."""
        self.received.append((label, message))
        return message

    def bytes_received(self) -> bytes:
        """All messages, end to end."""
        return b"".join(message.tobytes() for _, message in self.received)


@dataclasses.dataclass(frozen=True)
class Shared:
    """A value on shares: one uint64 array a party."""

    shares: tuple[np.ndarray, ...]

    def __add__(self, other: Shared) -> Shared:
        return Shared(tuple(a + b for a, b in zip(self.shares, other.shares, strict=True)))

    def __sub__(self, other: Shared) -> Shared:
        return Shared(tuple(a - b for a, b in zip(self.shares, other.shares, strict=True)))


def random_ring(shape) -> np.ndarray:
    """Uniform whole numbers mod 2^64 from the operating system."""
    count = int(np.prod(shape, dtype=int))
    return np.frombuffer(secrets.token_bytes(8 * count), np.uint64).reshape(shape).copy()


def encode(values) -> np.ndarray:
    """Real numbers as whole numbers mod 2^64, in steps of 2^-16; negative ones from the top.

    Raises:
        InputError: if one is not finite or beyond 2^14, where a product would not fit.
    """
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) >= 2.0**14:
        raise InputError("Expected values to be finite and below 2^14 in magnitude: products must fit in 64 bits.")
    return np.rint(values * 2.0**FRACTION_BITS).astype(np.int64).view(np.uint64)


def decode(ring: np.ndarray, products: int = 0) -> np.ndarray:
    """Back to real numbers; each product doubles the fraction bits, and is not truncated here."""
    return ring.view(np.int64) / 2.0 ** (FRACTION_BITS * (1 + products))


def share(values: np.ndarray, owner: Party, others: tuple[Party, ...], label: str) -> Shared:
    """Split the ring elements of ``owner``; each of ``others`` receives a share, the owner keeps the rest."""
    handed = [other.receive(f"share of {label}", random_ring(values.shape)) for other in others]
    return Shared((values - sum(handed, np.zeros_like(values)), *handed))


def open_to_all(value: Shared, parties: tuple[Party, ...], label: str) -> np.ndarray:
    """Every party receives the others' shares and adds them up."""
    for number, party in enumerate(parties):
        for other, one in enumerate(value.shares):
            if other != number:
                party.receive(f"opening of {label}", one)
    return sum(value.shares[1:], value.shares[0].copy())


@dataclasses.dataclass
class Dealer:
    """Deals triples, and remembers them: nothing makes it forget."""

    name: str
    dealt: list[tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)

    def triple(self, x_shape, y_shape, parties: tuple[Party, ...]) -> tuple[Shared, Shared, Shared]:
        """Shares of random a, b and of c = a @ b."""
        a, b = random_ring(x_shape), random_ring(y_shape)
        self.dealt.append((a, b))
        dealt = []
        for label, value in (("a", a), ("b", b), ("c", a @ b)):
            handed = [random_ring(value.shape) for _ in parties[1:]]
            shares = (value - sum(handed, np.zeros_like(value)), *handed)
            dealt.append(Shared(tuple(p.receive(f"triple {label}", s) for p, s in zip(parties, shares, strict=True))))
        return tuple(dealt)


def multiply(x: Shared, y: Shared, parties: tuple[Party, ...], dealer: Dealer) -> Shared:
    """The matrix product x @ y on shares, with one triple.

    Returns:
        Shares of the product; encoded numbers carry twice the fraction bits, see :func:`decode`.
    """
    a, b, c = dealer.triple(x.shares[0].shape, y.shares[0].shape, parties)
    d = open_to_all(x - a, parties, "x - a")
    e = open_to_all(y - b, parties, "y - b")
    shares = [c_ + d @ b_ + a_ @ e for a_, b_, c_ in zip(a.shares, b.shares, c.shares, strict=True)]
    shares[0] = shares[0] + d @ e
    return Shared(tuple(shares))


def recover_input(dealer: Dealer, me: Party, my_share: np.ndarray, product: int = 0) -> np.ndarray:
    """What a dealer who is also a party learns of the other's x: everything.

    It dealt a, and as a party it holds its own share of x - a and received the other's.

    Args:
        dealer: Who dealt.
        me: The party that is the same person.
        my_share: Its share of the opened x - a.
        product: Which product, in the order they were computed.

    Returns:
        The ring elements of x.
    """
    opened = [message for label, message in me.received if label == "opening of x - a"][product]
    return opened + my_share + dealer.dealt[product][0]
