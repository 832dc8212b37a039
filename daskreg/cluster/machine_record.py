"""What a rank records of the machine that it ran on, and of the memory that its process took."""

from __future__ import annotations

import platform
import socket
from dataclasses import replace
from typing import Any

from daskreg import machine
from daskreg.cluster.process_size import running_bytes, start_bytes
from daskreg.kernels.compiler.host_launch import thread_count
from daskreg.kernels.device import Device, Kind
from daskreg.planning import Plan


def machine_record(device: Device) -> dict[str, Any]:
    """Host, processor and threads, and the peak memory of the process and of the GPU."""
    gpu = {"gpu": device.name, "gpu_peak_bytes": device.record_peak()} if device.kind == "cuda" else {}
    return gpu | {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": thread_count(),
        "peak_bytes": machine.peak_bytes(),
    }


def memory_record(plan: Plan, device: Kind) -> dict[str, int]:
    """Resident size of this process before it allocates, and its projected peak from there; the plan's projection on a GPU."""
    if device == "cuda":
        return {"start_bytes": machine.resident_bytes(), "projected_bytes": plan.peak_bytes}
    start = start_bytes()
    projected = replace(plan, process=running_bytes(start)).peak_bytes
    earlier = machine.peak_bytes()  # of a previous run, or of the caller's work in this process
    return {"start_bytes": start, "projected_bytes": max(projected, earlier)}
