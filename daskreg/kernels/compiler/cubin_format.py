"""A compiled CUDA kernel as bytes: a line of JSON, and its cubins as the device takes them.

Nothing in it is executed on the host. What only serves to compile again (LLVM's and PTX's text) is left out, because a cubin is
kept for the kind of device that it was compiled for. Types of arguments are those that the caller asks for.
"""

from __future__ import annotations

import json
from typing import Any

LEFT_OUT: dict[str, Any] = {"llvm_strs": [], "ptx_cache": {}, "linkerinfo_cache": {}, "codegen": None}
PLAIN = bool, int, float, str, type(None)


def encode(kernel: Any) -> bytes:
    """A kernel of numba-cuda. Raises ValueError where it consists of more than plain values and cubins."""
    states = dict(kernel._reduce_states())
    library = dict(states.pop("codelibrary")._reduce_states())
    if states.get("debug") or states.get("extensions"):
        raise ValueError("it can raise exceptions of Python, or converts arguments by a function")
    for name in ("signature", "call_helper", "extensions"):
        states.pop(name, None)
    cubins = library.pop("cubin_cache")
    for name in LEFT_OUT:
        library.pop(name, None)
    _require_plain(states | library | library.get("nvvm_options", {}))
    described = [_described(cc, cubin) for cc, cubin in cubins.items()]
    if not cubins:
        raise ValueError("it has no machine code yet")
    header = {"kernel": states, "library": library, "cubins": [item for item, _ in described]}
    return json.dumps(header).encode() + b"\n" + b"".join(code for _, code in described)


def decode(data: bytes, types: Any) -> Any:
    """A kernel for arguments of some types. Raises ValueError, KeyError and TypeError for a file of another version."""
    from numba.cuda import dispatcher
    from numba.cuda.codegen import CUDACodeLibrary
    from numba.cuda.core import sigutils

    line, _, code = data.partition(b"\n")
    header = json.loads(line)
    cubins, start = {}, 0
    for item in header["cubins"]:
        part = code[start : start + item["bytes"]]
        if len(part) != item["bytes"]:
            raise ValueError("the file is shorter than it says")
        cubins[tuple(item["cc"])] = _object(part, item) if item["object"] else part
        start += len(part)
    library = CUDACodeLibrary._rebuild(**LEFT_OUT, **header["library"], cubin_cache=cubins)
    arguments = sigutils.normalize_signature(types)[0]
    signature = vars(dispatcher)["typing"].signature(vars(dispatcher)["types"].void, *arguments)
    return dispatcher._Kernel._rebuild(
        **header["kernel"], signature=signature, codelibrary=library, call_helper=None, extensions=[]
    )


def _described(cc: Any, cubin: Any) -> tuple[dict[str, Any], bytes]:
    """What JSON says of a cubin, and its bytes. numba-cuda holds it as an object of cuda-core."""
    code = cubin if isinstance(cubin, bytes) else cubin.code
    if not isinstance(code, bytes) or getattr(cubin, "symbol_mapping", None):
        raise ValueError("its machine code is not a plain cubin")
    return {"cc": list(cc), "bytes": len(code), "object": not isinstance(cubin, bytes), "name": getattr(cubin, "name", "")}, code


def _object(code: bytes, item: dict[str, Any]) -> Any:
    from numba.cuda.cudadrv import driver

    return vars(driver)["ObjectCode"].from_cubin(code, name=item["name"])


def _require_plain(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if name != "nvvm_options" and not isinstance(value, PLAIN):
            raise ValueError(f"{name} is no plain value but {type(value).__name__}")
