"""The decoder process: ``python -m cloud_decoder.inference.subprocess_child CONTROL INBOX OUTBOX``.

The arguments are inherited file descriptors; :mod:`.subprocess_backend` is the other side. Three more of the same kind
may follow. They are for entropy decoding, which has a separate thread.

The process loads one generator and answers messages until the control socket closes. An exception of the generator is
reported in the answer. If the device works no more, that answer is the last, and the process ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aeic.bundle import Bundle
from aeic.errors import BitstreamError
from aeic_service import logs
from cloud_decoder.inference.backend import (
    GeneratorBackend,
    is_out_of_memory,
    out_of_memory_message,
    release_memory,
)
from cloud_decoder.inference.devices import build_entropy, build_generator
from cloud_decoder.inference.subprocess_backend import DEVICE_FAILED, Control, SharedBuffer

if TYPE_CHECKING:
    from aeic_nets.runtime.device_entropy import DeviceEntropy

log = logging.getLogger(__name__)

DEVICE_EXIT = 70
"""Exit status after an error that the device does not survive."""
IDLE_SECONDS = 10.0
"""After so long without a message the memory that is kept for the next one is returned to the system."""


class Child:
    """Answers the messages of the service with one generator."""

    def __init__(self, inbox: SharedBuffer, outbox: SharedBuffer) -> None:
        self._inbox, self._outbox = inbox, outbox
        self._generator: GeneratorBackend | None = None
        self._entropy: DeviceEntropy | None = None
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
            elif self._generator is not None and not self._generator.usable:
                failed = DEVICE_FAILED
        # Outside the handler: the exception's traceback would keep the tensors alive.
        if failed == "memory":
            release_memory(self._device)
        return {"failed": failed, "what": what}

    def _load(self, message: dict[str, Any]) -> dict[str, Any]:
        if message.get("log"):
            logs.set_up(**message["log"], child=True)
        self._device = message["device"]
        self._generator = build_generator(Path(message["bundle"]), self._device, message["threads"])
        if "check_every" in message:
            bundle = Bundle.load(message["bundle"], verify=False)  # the service has verified it
            self._entropy = build_entropy(
                bundle, self._device, message["threads"], message["check_every"], message["kernels"]
            )
        return {"loaded": True, "entropy": self._entropy is not None}

    def _warm_up(self, message: dict[str, Any]) -> dict[str, Any]:
        room = self._loaded.warm_up(message["warm_up"], message.get("pixels"))
        return {"room": room, "runtime": self._loaded.runtime}

    def _run(self, message: dict[str, Any]) -> dict[str, Any]:
        generator, y_hat = self._loaded, self._inbox.view(tuple(message["shape"]))
        pictures: NDArray[Any] = generator.pictures(y_hat) if message["pictures"] else generator(y_hat)
        self._outbox.write(pictures)
        figures = {"parts": generator.parts, "memory": generator.memory, "counts": generator.take_counts()}
        return {"shape": list(pictures.shape), **figures}

    def release(self) -> None:
        """Return memory to the system, since no message has come for a while. Where that fails, it is kept."""
        try:
            if self._generator is not None:
                self._generator.release()
        except Exception as error:  # the next batch shows whether the device still works
            log.warning("an idle decoder could not return its memory: %s", error)

    def decode_entropy(self, message: dict[str, Any], inbox: SharedBuffer, outbox: SharedBuffer) -> dict[str, Any]:
        """The answer to frames of these lengths, which lie one behind the other in ``inbox``; or as :meth:`answer`."""
        try:
            return self._decode_frames(message["frames"], inbox, outbox)
        except Exception as error:  # whatever is not answered would be waited for, and end this process
            failed = type(error).__name__
            if self._generator is not None and not self._generator.usable:
                failed = DEVICE_FAILED
            return {"failed": failed, "what": str(error)}

    def _decode_frames(self, lengths: list[int], inbox: SharedBuffer, outbox: SharedBuffer) -> dict[str, Any]:
        assert self._entropy is not None, "the first message asked for it"
        ends = np.cumsum(lengths)
        data = inbox.view((int(ends[-1]),), np.uint8).tobytes()
        outcomes = self._entropy.decode_many([data[end - n : end] for end, n in zip(ends, lengths, strict=True)])
        described: list[dict[str, Any]] = []
        latents: list[NDArray[np.float32]] = []
        for outcome in outcomes:
            if isinstance(outcome, BitstreamError):
                described.append({"failed": type(outcome).__name__, "what": str(outcome)})
            else:
                described.append({"shape": list(outcome.y_hat.shape), "digest": outcome.digest})
                latents.append(outcome.y_hat.ravel())
        if latents:
            outbox.write(np.concatenate(latents))
        counts = {f"entropy_{name}": count for name, count in vars(self._entropy.take_tally()).items()}
        return {"outcomes": described, "counts": counts, "reason": self._entropy.reason}

    @property
    def _loaded(self) -> GeneratorBackend:
        assert self._generator is not None, "the first message is the bundle"
        return self._generator


def main(arguments: list[str]) -> int:
    """Answer messages until the service is gone."""
    control, inbox, outbox, *entropy = map(int, arguments)
    line = Control(socket.socket(fileno=control))
    child = Child(SharedBuffer(inbox), SharedBuffer(outbox))
    if entropy:
        buffers = SharedBuffer(entropy[1]), SharedBuffer(entropy[2])
        second = Control(socket.socket(fileno=entropy[0]))
        answer = _answering(child, *buffers)
        Thread(target=_serve, args=(second, answer), name="entropy", daemon=True).start()
    _serve(line, child.answer, child.release)
    return 0


def _answering(child: Child, inbox: SharedBuffer, outbox: SharedBuffer) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda message: child.decode_entropy(message, inbox, outbox)


def _serve(
    line: Control, answer: Callable[[dict[str, Any]], dict[str, Any]], idle: Callable[[], None] = lambda: None
) -> None:
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        while (message := _next(line, idle)) is not None:
            reply = answer(message)
            line.send(reply)
            if reply.get("failed") == DEVICE_FAILED:
                os._exit(DEVICE_EXIT)  # at once: interpreters may hang on a device that has failed


def _next(line: Control, idle: Callable[[], None]) -> dict[str, Any] | None:
    try:
        return line.receive(IDLE_SECONDS)
    except TimeoutError:
        idle()
        return line.receive()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
