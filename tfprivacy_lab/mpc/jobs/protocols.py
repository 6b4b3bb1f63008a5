"""The protocols, who must not collude with whom under each, and a world: who computes, by which protocol.

All three are *semi-honest*: parties follow the protocol and may look at all they see. None of them proves that a
party used its true data, and what is revealed says what it says.
"""

from __future__ import annotations

import dataclasses

from tfprivacy_lab.checks import InputError, check_choice, settle


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One protocol as a row of the table.

    Attributes:
        name: ``semi2k``, ``aby3`` or ``cheetah``.
        sizes: Least and largest number of computing parties.
        dealer: Whether one of them deals the multiplication triples.
        trust: Who must not collude with whom.
        cost: What it costs, in words; figures are measured by ``make bench-mpc``.
        use: When to take it.
        source: Author-year of the protocol.
    """

    name: str
    sizes: tuple[int, int]
    dealer: bool
    trust: str
    cost: str
    use: str
    source: str


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "semi2k",
            (2, 5),
            True,
            "The dealer holds every party's seed and can unmask every value: all must trust it not to look. "
            "Anyone else learns nothing unless the dealer helps.",
            "the least traffic; triples cost nothing, because the dealer knows them",
            "to learn, to develop, or where an outsider is trusted by all; never with a dealer who wants the data",
            "additive sharing mod 2^k as in Cramer et al. 2018 (SPDZ2k), without MACs",
        ),
        Protocol(
            "aby3",
            (3, 3),
            False,
            "Honest majority: any two of the three, together, can open everything; one alone learns nothing.",
            "little traffic, a third machine",
            "three organisations, or two and a helper, of whom no two collude",
            "Mohassel and Rindal 2018",
        ),
        Protocol(
            "cheetah",
            (2, 2),
            False,
            "Nobody else is needed: neither of the two learns the other's data (lattice assumptions, oblivious "
            "transfer).",
            "much traffic and computing: products go through homomorphic encryption",
            "two organisations that find no third one to trust",
            "Huang et al. 2022",
        ),
    )
}


def protocol_table() -> list[dict]:
    """One object a protocol, for pages and notebooks."""
    return [dataclasses.asdict(protocol) for protocol in PROTOCOLS.values()]


def listed(name: str, value, kind: type) -> tuple:
    """``value`` as a tuple, if it is a list or tuple of objects of ``kind``.

    Raises:
        InputError: naming the argument; a set or a mapping, whose order means nothing, is none.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(one, kind) for one in value):
        of = "names" if kind is str else f"{kind.__name__} objects"
        raise InputError(f"Expected {name} to be a list or tuple of {of}, in their order, got {name}={value!r:.80}.")
    return tuple(value)


def party_names(value) -> tuple[str, ...]:
    """``value`` as a tuple, if it can name parties: in jobs, in certificates and in addresses.

    Raises:
        InputError: naming what does not fit.
    """
    names = listed("parties", value, str)
    if not all(name.isascii() and name.isidentifier() and len(name) <= 63 for name in names):
        raise InputError(
            "Expected parties to be different names of ASCII letters, digits and _, no digit first, of at most 63 "
            f"characters, got {names!r:.200}."
        )
    if len(set(names)) != len(names):
        raise InputError(f"Expected parties to be different names, got {names!r:.200}.")
    if {"public", "shares"} & set(names):
        raise InputError(
            f"Expected parties not to be named public or shares, which a job's initial takes for what they mean, got "
            f"{names!r:.200}; choose another name."
        )
    return names


@dataclasses.dataclass(frozen=True)
class World:
    """Who computes, and by which protocol.

    Attributes:
        protocol: A key of :data:`PROTOCOLS`.
        parties: Names of all who compute, whether they hold data or not.
        dealer: Under semi2k the party who deals the triples, by name, because everyone must know whom they trust;
            None under the others.

    Raises:
        InputError: naming what does not fit the protocol.

    Guarantee: see :meth:`trust`. Not covered: parties who do not follow the protocol, and what revealed
    results tell about inputs.
    """

    protocol: str
    parties: tuple[str, ...]
    dealer: str | None = None

    def __post_init__(self):
        check_choice("protocol", self.protocol, tuple(PROTOCOLS))
        settle(self, parties=party_names(self.parties))
        least, most = self.kind.sizes
        if not least <= len(self.parties) <= most:
            count = f"{least}" if least == most else f"{least} to {most}"
            raise InputError(f"Expected {count} parties under {self.protocol}, got {len(self.parties)}.")
        if self.kind.dealer and self.dealer not in self.parties:
            raise InputError(
                f"Expected dealer to name the party who deals the triples under {self.protocol}, one of "
                f"{', '.join(self.parties)}, got dealer={self.dealer!r}."
            )
        if not self.kind.dealer and self.dealer is not None:
            raise InputError(f"Expected no dealer under {self.protocol}, got dealer={self.dealer!r}.")

    @property
    def kind(self) -> Protocol:
        """The protocol's row."""
        return PROTOCOLS[self.protocol]

    @property
    def ranks(self) -> tuple[str, ...]:
        """Names in the engine's order: its dealer is always the first."""
        if self.dealer is None:
            return self.parties
        return (self.dealer, *(name for name in self.parties if name != self.dealer))

    def rank(self, name: str) -> int:
        """The engine's number for a party.

        Raises:
            InputError: if it is not one of the parties.
        """
        return self.ranks.index(check_choice("party", name, self.parties))

    def trust(self, holders: tuple[str, ...] = ()) -> str:
        """One sentence on who must be trusted, given which parties hold data."""
        if self.dealer is None:
            return self.kind.trust
        if self.dealer in holders:
            return (
                f"{self.dealer} deals the triples and holds data: {self.dealer} can recover every other party's "
                "input. Take a dealer who wants none of it, aby3 or cheetah."
            )
        return (
            f"{self.dealer} deals the triples and holds no data: the others are safe from each other as long as "
            f"{self.dealer} does not look and tells nobody."
        )


def check_world(value) -> World:
    """``value`` if it is a :class:`World`.

    Raises:
        InputError: with how to make one.
    """
    if not isinstance(value, World):
        raise InputError(
            f"Expected world to be a World, as World('aby3', ('alice', 'bob', 'carol')), got {value!r:.80}."
        )
    return value
