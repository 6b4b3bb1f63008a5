"""The keys that a server needs for one image: bytes, and which rotations they are for."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class EvaluationKeys:
    """Public keys of a client: they let anyone compute on its ciphertexts, and nobody decrypt.

    Attributes:
        steps: The rotations there is a key for.
        rotation: SEAL's Galois keys, uncompressed.
        relinearisation: SEAL's relinearisation keys, uncompressed.
    """

    steps: tuple[int, ...]
    rotation: bytes
    relinearisation: bytes

    @property
    def bytes(self) -> int:
        """Length of both."""
        return len(self.rotation) + len(self.relinearisation)
