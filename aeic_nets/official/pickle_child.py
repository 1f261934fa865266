"""The child process that opens an untrusted pickle, under limits, for its tensors. Writes safetensors.

    python -m aeic_nets.official.pickle_child FILE OUT SECONDS BYTES

Files of PyTorch Lightning hold objects of other packages: callbacks, settings, optimisers. Each class
that torch's loader does not know is replaced by :class:`Inert`, so that nothing of it is imported or run. Classes and
functions of modules that torch blocks (``os``, ``sys``) are refused.

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
from torch import Tensor, _weights_only_unpickler

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


class Inert(dict[Any, Any]):
    """Stands for an object of a class that is not loaded. It takes whatever the file gives it, and does nothing."""

    def __new__(cls, *arguments: Any, **options: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""

    def __hash__(self) -> int:  # type: ignore[override]  # some files use objects as keys
        return id(self)

    def append(self, item: Any) -> None:
        """As an item of a list."""

    def extend(self, items: Any) -> None:
        """As items of a list."""


def unknown_classes(source: str) -> list[str]:
    """Names of classes and functions in the file that torch's loader does not know; none for files of old formats."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(source)
    except (ValueError, RuntimeError):
        return []


def _stub(name: str) -> type[Inert]:
    """A class of its own for each name: torch's loader asks which class an object has."""
    return type(name, (Inert,), {})


def accept_inert(loader: Any) -> None:
    """Let torch's ``loader`` give items to :class:`Inert` objects. It does so for plain containers only otherwise.

    A version of torch without these checks refuses files with such objects, as it would without this.
    """

    def accepting(check: Any, target: Any) -> Any:
        return lambda self, *rest: None if isinstance(target(self, *rest), Inert) else check(self, *rest)

    if hasattr(loader, "_check_set_item_target") and hasattr(loader, "_check_append_target"):
        loader._check_set_item_target = accepting(loader._check_set_item_target, lambda self, _: self.stack[-1])
        loader._check_append_target = accepting(loader._check_append_target, lambda _, target: target)


def main(source: str, target: str, seconds: int, size: int) -> None:
    """Exit 1 with one line on stderr if the file is refused."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    accept_inert(_weights_only_unpickler.Unpickler)
    try:
        with torch.serialization.safe_globals([(_stub(name), name) for name in unknown_classes(source)]):
            loaded = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # every error here has its cause in the file
        print(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}", file=sys.stderr)
        raise SystemExit(1) from None
    tensors: dict[str, Tensor] = {}
    flatten(loaded, "", tensors, set())
    save_file(tensors, target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
