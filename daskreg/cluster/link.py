"""The link between the ranks of a run: which transport, and why not a faster one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

from daskreg.comm import Abilities, Transport, abilities
from daskreg.errors import InputError
from daskreg.kernels.device import Kind, gpus

log = logging.getLogger("daskreg")
TransportChoice = Transport | Literal["auto", "nccl"]
COST = "an iteration on GPUs takes several times as long (measured: 75 ms in place of 10, 512^3 a GPU)"
EXTRA = "install the extra 'ucx' there (pip install 'daskreg[ucx]')"
INSTALL = f"{EXTRA}, or use --comm nccl on one machine"
DEVICE_COPY, DEVICE_LINK = "cuda_copy", "cuda_ipc"  # UCX's transports to and from a GPU, and from one GPU to another


def choose_transport(
    found: Mapping[str, Abilities],
    choice: TransportChoice,
    device: Kind = "cpu",
    *,
    encrypted: bool = False,
) -> Transport:
    """The transport asked for. Where that is left open UCX, if every worker has it and the cluster does not encrypt; else TCP.

    found: by worker;  encrypted: whether what ranks send must be encrypted, which UCX cannot. Warns where GPUs get a slower link
    than they could have. Raises InputError where a worker lacks the transport asked for. Beside ``nccl`` either will do.
    """
    if choice == "nccl":
        return "ucx" if all("ucx" in one.transports for one in found.values()) and not encrypted else "tcp"
    lacking = [(worker, reason) for worker, one in found.items() if (reason := shortcoming(one, device))]
    if choice == "ucx":
        return _asked_for_ucx(lacking, encrypted=encrypted)
    if choice == "tcp" or encrypted:
        if choice == "auto" and device == "cuda":
            log.warning(
                "ranks send planes of their GPUs over TCP, because this cluster encrypts its connections (TLS) and UCX does "
                "not: %s; --comm ucx sends them in the clear.", COST,
            )  # fmt: skip
        return "tcp"
    usable = all("ucx" in one.transports and (device == "cpu" or DEVICE_COPY in one.links) for one in found.values())
    if lacking and device == "cuda":
        route = "through the memory of the host" if usable else "over TCP"
        log.warning("ranks send planes of their GPUs %s: worker %s: %s. %s; %s.", route, *lacking[0], COST, remedy(lacking[0][1]))
    return "ucx" if usable else "tcp"


def require_nccl(lacking: Mapping[str, str], device: Kind, *, same_memory: bool) -> None:
    """Raises InputError where NCCL cannot move the arrays of GPUs.

    lacking: by worker, why it has no NCCL, empty where it has;  same_memory: whether the ranks share one machine's memory, which
    NCCL needs here: it knows no authentication
    """
    if device == "cpu":
        raise InputError("--comm nccl: the ranks work on CPUs, and NCCL connects GPUs; use --comm auto.")
    if not same_memory:
        raise InputError("--comm nccl: the ranks do not share one machine's memory; between machines use --comm ucx.")
    for worker, reason in lacking.items():
        if reason:
            raise InputError(f"--comm nccl: {worker}: {reason}; install nvidia-nccl-cu13 (or -cu12) there, or use --comm auto.")


def nccl_shortcoming() -> str:
    """Why this process cannot use NCCL; empty where it can."""
    from daskreg.comm.nccl import shortcoming

    return shortcoming()


def _asked_for_ucx(lacking: list[tuple[str, str]], *, encrypted: bool) -> Transport:
    if lacking:
        worker, reason = lacking[0]
        raise InputError(f"--comm ucx: not every worker can: {worker}: {reason}; {remedy(reason)}, or use --comm tcp.")
    if encrypted:
        log.warning(
            "--comm ucx: this cluster encrypts its connections (TLS) and UCX does not: ranks send voxels and displacements in "
            "the clear; use --comm tcp to encrypt them."
        )
    return "ucx"


def shortcoming(found: Abilities, device: Kind) -> str:
    """Why a process cannot use UCX, or not from GPU to GPU; empty where it can."""
    if found.missing:
        return found.missing
    if device == "cuda" and DEVICE_LINK not in found.links:
        return f"UCX lacks {DEVICE_LINK} (it has {', '.join(found.links) or 'no transport'})"
    return ""


def remedy(reason: str) -> str:
    """What to do about it."""
    if DEVICE_LINK in reason:
        return "use a UCX that was built with CUDA (libucx-cu13 or libucx-cu12), and unset UCX_TLS"
    return INSTALL


def local_link(device: Kind) -> str:
    """How workers on this machine would communicate, and what is in the way of a faster link; nothing is measured."""
    if device == "cuda" and not gpus():
        return "not known, because it has no GPU"
    found = abilities()
    reason = shortcoming(found, device)
    usable = "ucx" in found.transports and (device == "cpu" or DEVICE_COPY in found.links)
    transport: Transport = "ucx" if usable else "tcp"
    if reason and device == "cuda":
        return f"{transport}: {reason}; {remedy(reason)}"
    return describe_link(transport, {"this machine": found}, device)


def describe_link(transport: Transport, found: Mapping[str, Abilities], device: Kind, *, nccl: bool = False) -> str:
    """For the log: the transport, and what matters of it."""
    if nccl:
        return f"nccl, from GPU to GPU (and {transport})"
    if transport == "ucx" and device == "cuda":
        direct = all(DEVICE_LINK in one.links for one in found.values())
        return "ucx, from GPU to GPU (cuda_ipc)" if direct else "ucx, through the memory of the host"
    missing = sorted({one.missing for one in found.values() if one.missing})
    return f"{transport} ({missing[0]})" if missing and transport == "tcp" else transport
