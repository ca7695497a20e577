"""Where a base model's arrays live: in this computer's memory, or on a GPU, as CuPy's arrays.

The text of the specification is the same for both: it computes where its arrays are (`refpeft.arrays`). What is decided from, such
as token ids and their choice, files and checks of what a caller gives, stays on the host.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from refpeft.arrays import Array, register
from refpeft.errors import ConfigError


def mover(device: str) -> Callable[[Array], Array]:
    """A function that copies an array of the host to a device, which becomes this thread's current one; "cpu" copies nothing.

    Args:
        device: "cpu"; "cuda", the current GPU; or "cuda:1", the one of that number.

    Raises:
        ConfigError: the name is none of these; CuPy is not installed; or there is no such GPU.
    """
    match = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", device)
    if match is None:
        raise ConfigError(
            f"device must be 'cpu', 'cuda' or, of several GPUs, one such as 'cuda:1'; not {device!r}."
        )
    if device == "cpu":
        return lambda x: x
    cupy = _cupy(device)
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except RuntimeError as error:  # of CUDA, and what it says of the driver
        raise ConfigError(
            f"device is {device!r}, but CuPy finds no GPU: {error}. Install the GPU's driver, or compute on the 'cpu'."
        ) from error
    if count <= int(match[1] or 0):
        raise ConfigError(
            f"device is {device!r}, but the number of GPUs is {count}. They are counted from 0."
        )
    if match[1]:
        cupy.cuda.Device(int(match[1])).use()
    register(cupy.ndarray, cupy.asnumpy, cupy.asarray)
    return cupy.asarray  # type: ignore[no-any-return]


def _cupy(device: str) -> Any:
    try:
        import cupy
    except ImportError as error:
        raise ConfigError(
            f"device is {device!r}, and arrays on a GPU are CuPy's, which cannot be imported: {error}. Install it with pip "
            "install 'refpeft[gpu]'."
        ) from error
    return cupy
