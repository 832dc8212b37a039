"""The workers of one run, as client and workers know them."""

from __future__ import annotations

from dataclasses import dataclass, field

from daskreg.comm import Secret, Transport

ENCRYPTED = "tls://", "wss://"  # addresses of workers


@dataclass(frozen=True)
class RankGroup:
    """The ranks of one run and where they are.

    run: a name that no other run has;  addresses, hosts, cores: of each rank's worker, its machine, the cores it may use;
    transport: how ranks communicate;  deadline: seconds after which a silent rank counts as lost;  same_memory: whether all
    ranks share the memory of one machine;  nccl: whether NCCL moves the arrays of GPUs;  secret: what only the ranks of this
    run know.
    """

    run: str
    addresses: tuple[str, ...]
    hosts: tuple[str, ...]
    cores: tuple[int, ...]
    transport: Transport
    deadline: float
    same_memory: bool = False
    nccl: bool = False
    secret: Secret = field(default_factory=Secret)

    @property
    def encrypted(self) -> bool:
        """Whether the cluster encrypts its connections."""
        return all(address.startswith(ENCRYPTED) for address in self.addresses)

    @property
    def link(self) -> str:
        """How arrays of GPUs are moved, of which most of the traffic is; on CPUs the transport."""
        return "nccl" if self.nccl else self.transport

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.addresses)

    def name(self, rank: int) -> str:
        """Where a rank is, for messages."""
        return f"{self.hosts[rank]}, worker {self.addresses[rank]}"

    @property
    def names(self) -> tuple[str, ...]:
        """Where each rank is, for messages."""
        return tuple(self.name(r) for r in range(self.size))
