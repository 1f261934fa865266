"""The decoder process: ``python -m cloud_decoder.inference.subprocess_child CONTROL INBOX OUTBOX``.

The arguments are inherited file descriptors; :mod:`.subprocess_backend` is the other side.

Loads one generator and answers until the control socket closes. Whatever the generator raises is an answer too; only
what takes the process with it is not.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud_decoder.inference.backend import (
    Generator,
    build_generator,
    is_out_of_memory,
    memory_words,
    pictures_of,
    release_memory,
)
from cloud_decoder.inference.subprocess_backend import Control, SharedBuffer


class Child:
    """One generator, told what to do."""

    def __init__(self, inbox: SharedBuffer, outbox: SharedBuffer) -> None:
        self._inbox, self._outbox = inbox, outbox
        self._generator: Generator | None = None
        self._device = ""

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """What to say to a message: what it asks for, or how that failed."""
        steps: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "bundle": self._load,
            "warm_up": self._warm_up,
            "shape": self._run,
        }
        step = next(step for key, step in steps.items() if key in message)
        try:
            return step(message)
        except Exception as error:
            failed, what = type(error).__name__, str(error)
            if is_out_of_memory(error):
                failed, what = "memory", memory_words(error, message.get("shape", ()), self._device)
        # Outside the handler: the exception's traceback would keep the tensors alive.
        if failed == "memory":
            release_memory(self._device)
        return {"failed": failed, "what": what}

    def _load(self, message: dict[str, Any]) -> dict[str, Any]:
        self._device = message["device"]
        self._generator = build_generator(Path(message["bundle"]), self._device, message["threads"])
        return {"loaded": True}

    def _warm_up(self, message: dict[str, Any]) -> dict[str, Any]:
        prepare = getattr(self._generator, "warm_up", None)
        if prepare is not None:
            prepare(message["warm_up"])
        return {"warm": True}

    def _run(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._generator is not None, "the first message is the bundle"
        y_hat = self._inbox.view(tuple(message["shape"]))
        if message["pictures"]:
            pictures: NDArray[Any] = pictures_of(self._generator, y_hat)
        else:
            pictures = np.asarray(self._generator(y_hat), np.float32)
        self._outbox.write(pictures)
        told = {name: dict(getattr(self._generator, name, {})) for name in ("parts", "memory")}
        return {"shape": list(pictures.shape), **told}


def main(arguments: list[str]) -> int:
    """Answer until the other side is gone."""
    control, inbox, outbox = map(int, arguments)
    line = Control(socket.socket(fileno=control))
    child = Child(SharedBuffer(inbox), SharedBuffer(outbox))
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        while (message := line.receive()) is not None:
            line.send(child.answer(message))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
