"""The secret of a run: what its ranks know and nobody else, and the proof that both ends of a connection know it.

The client draws it and hands it to the workers through the scheduler. A listener that is reached over a network reads nothing
but this proof from a stranger: three messages of fixed length, which are compared and never interpreted.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections.abc import Awaitable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

GREETING = b"daskreg rank 1\n\0"  # the protocol and its version
NONCE_BYTES = PROOF_BYTES = KEY_BYTES = 32
RANK = struct.Struct("<I")
MESSAGE = struct.Struct("<IIQ")  # source rank, destination rank, number of the message


class NotAuthenticated(ConnectionError):
    """The other end of a connection does not know the secret of the run."""


class ByteStream(Protocol):
    """The part of a Tornado stream that a proof needs."""

    def read_bytes(self, num_bytes: int, /) -> Awaitable[bytes]:
        """Exactly so many bytes."""

    def write(self, data: bytes, /) -> Awaitable[None]:
        """Send bytes."""


@dataclass(frozen=True)
class Secret:
    """Random bytes; not part of its text, so that no log and no dashboard shows them."""

    key: bytes = field(repr=False, default_factory=lambda: secrets.token_bytes(KEY_BYTES))

    def tag(self, source: int, destination: int, number: int) -> int:
        """64 bits that name a message: who does not know the secret can neither predict nor occupy them."""
        digest = blake2b(MESSAGE.pack(source, destination, number), digest_size=8, key=self.key).digest()
        return int.from_bytes(digest, "little")

    def _proof(self, role: bytes, run: str, ranks: tuple[int, int], nonces: bytes) -> bytes:
        """HMAC-SHA256 of all that identifies a connection; ``role`` keeps one end from returning the proof of the other."""
        text = b"\0".join([GREETING, role, run.encode(), *map(RANK.pack, ranks)])
        return hmac.digest(self.key, text + nonces, "sha256")

    async def accept(self, stream: ByteStream, run: str, rank: int) -> int:
        """The rank at the other end of a connection that was accepted, once both have proved that they know the secret.

        Raises NotAuthenticated; the stranger gets no answer.
        """
        own = secrets.token_bytes(NONCE_BYTES)
        await stream.write(GREETING + own)
        answer = await stream.read_bytes(RANK.size + NONCE_BYTES + PROOF_BYTES)
        peer = RANK.unpack_from(answer)[0]
        nonces, proof = own + answer[RANK.size : -PROOF_BYTES], answer[-PROOF_BYTES:]
        if not hmac.compare_digest(proof, self._proof(b"connect", run, (peer, rank), nonces)):
            raise NotAuthenticated("a connection was refused: its other end does not know the secret of the run.")
        await stream.write(self._proof(b"accept", run, (peer, rank), nonces))
        return int(peer)

    async def introduce(self, stream: ByteStream, run: str, rank: int, peer: int) -> None:
        """Prove to a rank that was connected to that this is ``rank``, and have it prove that it is ``peer``.

        Raises NotAuthenticated.
        """
        greeting = await stream.read_bytes(len(GREETING) + NONCE_BYTES)
        if not greeting.startswith(GREETING):
            raise NotAuthenticated("its answer is not that of a rank of this version of daskreg")
        own = secrets.token_bytes(NONCE_BYTES)
        nonces = greeting[len(GREETING) :] + own
        await stream.write(RANK.pack(rank) + own + self._proof(b"connect", run, (rank, peer), nonces))
        proof = await stream.read_bytes(PROOF_BYTES)
        if not hmac.compare_digest(proof, self._proof(b"accept", run, (rank, peer), nonces)):
            raise NotAuthenticated("it does not know the secret of the run")
