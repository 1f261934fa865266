"""What ``aeic doctor`` runs in a separate process: ``python -m aeic_tools.doctor_probe onnxruntime|torch [BUNDLE]``.

Prints one line of JSON, the last. A library that crashes or hangs ends this process only.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

LIBRARIES = {
    "cublas": ("libcublasLt.so.13", "libcublasLt.so.12"),
    "cudart": ("libcudart.so.13", "libcudart.so.12"),
    "cudnn": ("libcudnn.so.9",),
    "cufft": ("libcufft.so.12", "libcufft.so.11"),
}
"""What ONNX Runtime's CUDA provider links, by the names of CUDA 13 and 12."""
TOLERANCE = 0.02
IGNORED = ("CPUExecutionProvider", "AzureExecutionProvider")


def onnxruntime_report(bundle: str) -> dict[str, Any]:
    """``providers``: the problem of each that is listed, empty if it works; ``libraries`` that do not load."""
    import numpy as np
    import onnxruntime

    from aeic.bundle import default_bundle_path
    from aeic.runtime import cuda

    available = onnxruntime.get_available_providers()
    wanted = [name for name in available if name not in IGNORED]
    graph = (Path(bundle) if bundle else default_bundle_path()) / "analysis.onnx"
    image = np.linspace(-1, 1, 3 * 64 * 128, dtype=np.float32).reshape(1, 3, 64, 128)
    cpu = onnxruntime.InferenceSession(str(graph), providers=[cuda.CPU])
    (expected,) = cpu.run(None, {"image": image})
    report: dict[str, Any] = {"version": onnxruntime.__version__, "providers": {}, "libraries": []}
    if cuda.CUDA in wanted:
        cuda.prepare()
        report["libraries"] = [name for name, files in LIBRARIES.items() if not any(map(_loads, files))]
    for name in wanted:
        report["providers"][name] = _problem(onnxruntime, name, graph, image, expected)
    return report


def _problem(onnxruntime: Any, name: str, graph: Path, image: Any, expected: Any) -> str:
    import numpy as np

    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(graph), options, providers=[name, "CPUExecutionProvider"])
        used = session.get_providers()[0]
        if used != name:
            return f"listed, but ONNX Runtime gave {used}"
        (got,) = session.run(None, {"image": image})
    except Exception as error:
        return str(error).splitlines()[0][:200]
    worst = float(np.abs(got - expected).max()) / (float(np.abs(expected).max()) or 1.0)
    return "" if worst <= TOLERANCE else f"its answer differs by {worst:.3g} of the largest value"


def _loads(file: str) -> bool:
    try:
        ctypes.CDLL(file)
    except OSError:
        return False
    return True


def torch_report() -> dict[str, Any]:
    """torch's version, and whether each GPU computes a small product."""
    import torch

    from aeic_nets.runtime.precision import cuda_dtype

    cards = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        dtype = cuda_dtype(torch.cuda.get_device_capability(number))
        card: dict[str, Any] = {"name": torch.cuda.get_device_name(number), "dtype": str(dtype).removeprefix("torch.")}
        card |= {"free": 0, "error": ""}
        try:
            card["free"] = torch.cuda.mem_get_info(number)[0]
            ones = torch.ones(64, 64, device=f"cuda:{number}", dtype=dtype)
            if float((ones @ ones).float().sum()) != 64.0**3:
                card["error"] = "a product of ones is wrong"
        except RuntimeError as error:
            card["error"] = str(error).splitlines()[0][:200]
        cards.append(card)
    return {"version": torch.__version__, "cards": cards}


def main(arguments: list[str]) -> int:
    kind, *rest = arguments
    report = torch_report() if kind == "torch" else onnxruntime_report(*rest)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
