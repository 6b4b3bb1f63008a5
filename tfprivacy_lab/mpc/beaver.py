r"""**For learning.** Secret sharing, Beaver's triples, truncation from scratch; train on :class:`SharedModel` instead.

Numbers are whole numbers mod :math:`2^{64}` that stand for multiples of :math:`2^{-16}`. A secret x is the sum of
random shares, one a party: :math:`x = x_0 + x_1 \bmod 2^{64}`; one share alone is uniform and tells nothing. Sums are
local. For a product the *dealer* hands out shares of a random triple :math:`c = ab`. The parties open
:math:`d = x - a` and :math:`e = y - b`, which are uniform as long as a and b are secret, and

.. math:: xy = c + d b + e a + d e,

which is linear in what is shared. A product carries twice the fraction bits; after a few of them nothing is left above
the point. So it is *truncated*, from z to :math:`z / 2^m`:

1. The dealer draws r uniform mod :math:`2^{64}` and shares r, its top bit t, and :math:`\lfloor r' / 2^m \rfloor`,
   where :math:`r' = r \bmod 2^{63}` is r without the top bit.
2. The parties add the public :math:`2^{62}` to z, which must lie within :math:`\pm 2^{62}`: now
   :math:`0 \le z < 2^{63}`. They open :math:`c = z + r \bmod 2^{64}`, which is uniform whatever z is.
3. With :math:`c' = c \bmod 2^{63}`, it is :math:`z + r' = c' + 2^{63} w`. As the top bit of z is 0, the carry w is
   the exclusive or of t and the top bit of c, which is public: w is linear in t.
4. :math:`\lfloor c' / 2^m \rfloor + 2^{63-m} w - \lfloor r' / 2^m \rfloor` is linear in what is shared, and it is
   :math:`z / 2^m`, rounded up if the last m bits of z and of r have a carry, else down. Take :math:`2^{62-m}` off.

The last m bits of r are uniform, so the rounding is up with a probability of exactly what is cut off: the error is
below one step of :math:`2^{-16}` *always*, and zero on average. Truncating each share for itself would cost no message,
and fail badly with probability :math:`2^{l+1-64}` for :math:`|z| \le 2^l` (Mohassel and Zhang 2017, Thm 1).

Nobody sees z, so nobody can look whether it is within :math:`\pm 2^{62}`. Every shared value carries a *public* bound,
which its owner declares; operations carry it on, and one whose result might not fit is refused.

Whoever knows a and sees d knows :math:`x = d + a`; whoever knows r and sees c knows z: the dealer must not be a party.
That is what ``crypto_provider=bob`` in the document's listing does; :func:`recover_input` is the attack.

Not covered: parties who do not follow the protocol; what an opened result says. Every party sees the last m bits of c,
the coin of a rounding: an opened result is to be read as rounded by public coins.

Source: Beaver 1991; Cramer, Damgård and Nielsen 2015, ch. 3; truncation: Catrina and de Hoogh 2010, protocol 3.1, and
mod :math:`2^k` Dalskov, Escudero and Keller 2020. Random numbers come from the operating system (``secrets``).
Everything runs in one process: what a party *receives* is written down in :class:`Party`, and that is all a test or a
reader may look at on its behalf.
"""

from __future__ import annotations

import dataclasses
import math
import secrets

import numpy as np

from tfprivacy_lab.checks import InputError, check_finite_number

FRACTION_BITS = 16
ROOM_BITS = 62  # Values stay within ±2^62 steps: one bit for the sign, and the top bit of z + 2^62 must be 0.
_TOP = np.uint64(63)
_BELOW_TOP = np.uint64(2**63 - 1)


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
    """A value on shares, and what is public of it.

    Attributes:
        shares: One uint64 array a party, in the order of the parties.
        limit: No element is further from zero than this, in steps of 2^-fraction_bits, whatever the secret is.
        fraction_bits: f: an element stands for itself times 2^-f.

    Raises:
        InputError: if an element might leave ±2^62, where neither truncation nor the sign is certain.
    """

    shares: tuple[np.ndarray, ...]
    limit: int
    fraction_bits: int

    def __post_init__(self):
        _check_fits("a value", self.limit, self.fraction_bits)

    @property
    def bound(self) -> float:
        """No value is further from zero than this."""
        return self.limit / 2**self.fraction_bits

    def transposed(self) -> Shared:
        """The transposed matrix: local."""
        return dataclasses.replace(self, shares=tuple(one.T for one in self.shares))

    def __add__(self, other: Shared) -> Shared:
        return self._with(other, np.add, "x + y")

    def __sub__(self, other: Shared) -> Shared:
        return self._with(other, np.subtract, "x - y")

    def times(self, factor: float) -> Shared:
        """Every element times a public number: local, but a product, so it carries 16 fraction bits more."""
        ring = encode(factor)
        limit, bits = self.limit * abs(int(ring.view(np.int64))), self.fraction_bits + FRACTION_BITS
        _check_fits(f"x times {factor:g}", limit, bits)
        return Shared(tuple(one * ring for one in self.shares), limit, bits)

    def _with(self, other: Shared, operation, what: str) -> Shared:
        bits = _same_fraction_bits(self, other)
        _check_fits(what, self.limit + other.limit, bits)
        shares = tuple(operation(a, b) for a, b in zip(self.shares, other.shares, strict=True))
        return Shared(shares, self.limit + other.limit, bits)


def _check_fits(what: str, limit: int, fraction_bits: int):
    """Refuse what might leave ±2^62 steps, or has no bit left in front of the point."""
    if limit >= 2**ROOM_BITS or fraction_bits >= ROOM_BITS:
        raise InputError(
            f"Expected {what} to stay below 2^{ROOM_BITS - fraction_bits} with {fraction_bits} fraction bits, but it "
            f"may reach 2^{math.log2(max(limit, 1)) - fraction_bits:.1f} and wrap to another number: truncate every "
            "product before the next, share inputs with a smaller bound, or compute fewer steps."
        )


def _same_fraction_bits(*values: Shared) -> int:
    bits = {value.fraction_bits for value in values}
    if len(bits) > 1:
        raise InputError(f"Expected values with the same fraction bits, got {sorted(bits)}: truncate products first.")
    return bits.pop()


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
    """Back to real numbers; each product that was not truncated has doubled the fraction bits."""
    return ring.view(np.int64) / 2.0 ** (FRACTION_BITS * (1 + products))


def share(values: np.ndarray, owner: Party, parties: tuple[Party, ...], label: str, bound: float = 2.0**14) -> Shared:
    """Split the ring elements of ``owner``; each of the others receives a share, the owner keeps the rest.

    Args:
        values: From :func:`encode`.
        owner: Who knows them, one of ``parties``.
        parties: All who compute; shares come in their order.
        label: What the messages are called.
        bound: Public; no value is further from zero. The smaller it is, the more can be computed.

    Returns:
        The shared values, which carry the bound.

    Raises:
        InputError: naming the argument, if a value is beyond its bound or the owner is none of the parties.
    """
    if not any(party is owner for party in parties):
        raise InputError(f"Expected owner to be one of parties, got owner={owner.name!r}.")
    limit = math.ceil(check_finite_number("bound", bound, above=0) * 2**FRACTION_BITS)
    signed = values.view(np.int64)
    largest = max(-int(signed.min(initial=0)), int(signed.max(initial=0)))
    if largest > limit:
        raise InputError(
            f"Expected no value of {label} beyond bound={bound:g}, got {largest / 2**FRACTION_BITS:g} in magnitude: "
            "declare the range that values may have, before anything is shared."
        )
    place = next(number for number, party in enumerate(parties) if party is owner)
    shares = _split(values, len(parties), keeper=place)
    for party, one in zip(parties, shares, strict=True):
        if party is not owner:
            party.receive(f"share of {label}", one)
    return Shared(shares, limit, FRACTION_BITS)


def _split(values: np.ndarray, count: int, keeper: int = 0) -> tuple[np.ndarray, ...]:
    """Random shares for all but one, who keeps what is missing to the values."""
    shares = [random_ring(values.shape) for _ in range(count)]
    shares[keeper] = values - sum((one for at, one in enumerate(shares) if at != keeper), np.zeros_like(values))
    return tuple(shares)


def public(values, parties: tuple[Party, ...]) -> Shared:
    """Real numbers that everyone knows, on shares: the first party holds them, the others zero."""
    ring = encode(values)
    limit = int(np.abs(ring.view(np.int64)).max(initial=0))
    return Shared((ring, *(np.zeros_like(ring) for _ in parties[1:])), limit, FRACTION_BITS)


def columns(*parts: Shared) -> Shared:
    """Matrices side by side, as when each holder has columns of its own: local."""
    shares = tuple(np.hstack(of_one) for of_one in zip(*(part.shares for part in parts), strict=True))
    return Shared(shares, max(part.limit for part in parts), _same_fraction_bits(*parts))


def open_to_all(value: Shared | list[np.ndarray], parties: tuple[Party, ...], label: str) -> np.ndarray:
    """Every party receives the others' shares and adds them up: ring elements."""
    shares = value.shares if isinstance(value, Shared) else value
    for number, party in enumerate(parties):
        for other, one in enumerate(shares):
            if other != number:
                party.receive(f"opening of {label}", one)
    return sum(shares[1:], shares[0].copy())


def reveal(value: Shared, parties: tuple[Party, ...], label: str = "result") -> np.ndarray:
    """Open to all and decode, whatever the fraction bits: real numbers."""
    return open_to_all(value, parties, label).view(np.int64) / 2.0**value.fraction_bits


@dataclasses.dataclass
class Dealer:
    """Deals triples and masks, and remembers the triples: nothing makes it forget."""

    name: str
    dealt: list[tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)

    def triple(self, x_shape, y_shape, parties: tuple[Party, ...]) -> tuple[tuple[np.ndarray, ...], ...]:
        """Shares of random a, b and of c = a @ b."""
        a, b = random_ring(x_shape), random_ring(y_shape)
        self.dealt.append((a, b))
        return self._deal({"triple a": a, "triple b": b, "triple c": a @ b}, parties)

    def mask(self, shape, bits: int, parties: tuple[Party, ...]) -> tuple[tuple[np.ndarray, ...], ...]:
        """Shares of random r, of its top bit, and of the rest of it without its last ``bits``."""
        r = random_ring(shape)
        rest = (r & _BELOW_TOP) >> np.uint64(bits)
        return self._deal({"mask r": r, "mask top bit": r >> _TOP, "mask truncated": rest}, parties)

    @staticmethod
    def _deal(values: dict[str, np.ndarray], parties: tuple[Party, ...]) -> tuple[tuple[np.ndarray, ...], ...]:
        dealt = []
        for label, value in values.items():
            shares = _split(value, len(parties))
            dealt.append(tuple(party.receive(label, one) for party, one in zip(parties, shares, strict=True)))
        return tuple(dealt)


def multiply(x: Shared, y: Shared, parties: tuple[Party, ...], dealer: Dealer) -> Shared:
    """The matrix product x @ y on shares, with one triple; it carries the fraction bits of both until truncated.

    Raises:
        InputError: if the product might not fit, as x and y are bounded.
    """
    bits, limit = x.fraction_bits + y.fraction_bits, x.limit * y.limit * x.shares[0].shape[-1]
    _check_fits("x @ y", limit, bits)
    a, b, c = dealer.triple(x.shares[0].shape, y.shares[0].shape, parties)
    d = open_to_all([x_ - a_ for x_, a_ in zip(x.shares, a, strict=True)], parties, "x - a")
    e = open_to_all([y_ - b_ for y_, b_ in zip(y.shares, b, strict=True)], parties, "y - b")
    shares = [c_ + d @ b_ + a_ @ e for a_, b_, c_ in zip(a, b, c, strict=True)]
    shares[0] = shares[0] + d @ e
    return Shared(tuple(shares), limit, bits)


def truncate(z: Shared, parties: tuple[Party, ...], dealer: Dealer) -> Shared:
    """A product's extra fraction bits cut off, on shares, with one mask: the four steps at the top of this module.

    Returns:
        Shares of the same value with 16 fraction bits, within less than 2^-16 of it, always, and right on average.

    Raises:
        InputError: if there is nothing to cut off.

    Guarantee: the parties open one number, z + r, which is uniform and independent of z for whoever does not know r.
    """
    if z.fraction_bits <= FRACTION_BITS:
        raise InputError(f"Expected z to be a product, with more than {FRACTION_BITS} fraction bits, got a factor.")
    bits = z.fraction_bits - FRACTION_BITS
    cut, carried = np.uint64(bits), np.uint64(2 ** (63 - bits))
    r, top, rest = dealer.mask(z.shares[0].shape, bits, parties)
    masked = [z_ + r_ for z_, r_ in zip(z.shares, r, strict=True)]
    masked[0] = masked[0] + np.uint64(2**ROOM_BITS)
    c = open_to_all(masked, parties, "z + r")
    # Exclusive or with a public bit p: t if p is 0, 1 - t if it is 1.
    public_bit = c >> _TOP
    sign = np.uint64(1) - np.uint64(2) * public_bit
    shares = [carried * sign * top_ - rest_ for top_, rest_ in zip(top, rest, strict=True)]
    known = ((c & _BELOW_TOP) >> cut) + carried * public_bit
    shares[0] = shares[0] + known - np.uint64(2 ** (ROOM_BITS - bits))
    return Shared(tuple(shares), (z.limit >> bits) + 1, FRACTION_BITS)


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
