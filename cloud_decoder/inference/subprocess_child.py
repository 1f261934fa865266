"""The decoder process: ``python -m cloud_decoder.inference.subprocess_child CONTROL INBOX OUTBOX``.

The arguments are inherited file descriptors; :mod:`.subprocess_backend` is the other side.

The process loads one generator and answers messages until the control socket closes. An exception of the generator is
reported in the answer.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cloud_decoder.inference.backend import (
    GeneratorBackend,
    is_out_of_memory,
    out_of_memory_message,
    release_memory,
)
from cloud_decoder.inference.devices import build_generator
from cloud_decoder.inference.subprocess_backend import Control, SharedBuffer


class Child:
    """Answers the messages of the service with one generator."""

    def __init__(self, inbox: SharedBuffer, outbox: SharedBuffer) -> None:
        self._inbox, self._outbox = inbox, outbox
        self._generator: GeneratorBackend | None = None
        self._device = ""

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to a message: its result, or ``failed`` with the class of the error and ``what`` with its text."""
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
                failed, what = "memory", out_of_memory_message(error, message.get("shape", ()), self._device)
        # Outside the handler: the exception's traceback would keep the tensors alive.
        if failed == "memory":
            release_memory(self._device)
        return {"failed": failed, "what": what}

    def _load(self, message: dict[str, Any]) -> dict[str, Any]:
        self._device = message["device"]
        self._generator = build_generator(Path(message["bundle"]), self._device, message["threads"])
        return {"loaded": True}

    def _warm_up(self, message: dict[str, Any]) -> dict[str, Any]:
        self._loaded.warm_up(message["warm_up"])
        return {"runtime": self._loaded.runtime}

    def _run(self, message: dict[str, Any]) -> dict[str, Any]:
        generator, y_hat = self._loaded, self._inbox.view(tuple(message["shape"]))
        pictures: NDArray[Any] = generator.pictures(y_hat) if message["pictures"] else generator(y_hat)
        self._outbox.write(pictures)
        return {"shape": list(pictures.shape), "parts": generator.parts, "memory": generator.memory}

    @property
    def _loaded(self) -> GeneratorBackend:
        assert self._generator is not None, "the first message is the bundle"
        return self._generator


def main(arguments: list[str]) -> int:
    """Answer messages until the service is gone."""
    control, inbox, outbox = map(int, arguments)
    line = Control(socket.socket(fileno=control))
    child = Child(SharedBuffer(inbox), SharedBuffer(outbox))
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        while (message := line.receive()) is not None:
            line.send(child.answer(message))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
