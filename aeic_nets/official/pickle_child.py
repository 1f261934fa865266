"""The child process that opens an untrusted pickle, under limits, for tensors and plain containers. Writes safetensors.

    python -m aeic_nets.official.pickle_child FILE OUT SECONDS BYTES

Names are prefixed with the keys of the dictionaries, separated by slashes. It imports none of our packages, so that it
starts quickly.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SEPARATOR = "/"


def flatten(value: Any, path: str, out: dict[str, Tensor], seen: set[int]) -> None:
    """Puts every tensor in ``value`` into ``out`` under its path; anything else is left out."""
    if isinstance(value, Tensor):
        tensor, memory = value.detach().contiguous(), value.untyped_storage()
        if memory.data_ptr() in seen or memory.nbytes() != tensor.nbytes:
            tensor = tensor.clone()  # safetensors refuses tensors that share memory
        seen.add(memory.data_ptr())
        out[path] = tensor
    elif isinstance(value, Mapping):
        for key, child in value.items():
            flatten(child, f"{path}{SEPARATOR}{key}" if path else str(key), out, seen)


def main(source: str, target: str, seconds: int, size: int) -> None:
    """Exit 1 with one line on stderr if the file is refused."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # every error here has its cause in the file
        print(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}", file=sys.stderr)
        raise SystemExit(1) from None
    tensors: dict[str, Tensor] = {}
    flatten(loaded, "", tensors, set())
    save_file(tensors, target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
