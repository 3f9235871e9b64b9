"""The formats of exported files: how a traced program becomes a file, and a file a function.

.onnx    ONNX, for ONNX Runtime and others
.pt2     torch.export, for PyTorch: torch.export.load(path).module()
"""

import importlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.deploy.export_recurrence import onnx_translations
from pipeline.errors import ConfigError, extra

METADATA_NAME = "framecache.json"  # an entry of ONNX's metadata, an extra file in a .pt2

Answer = Callable[..., Any]  # of frames (B, T, 3, H, W) uint8, see FramesToAnswer


def load_pt2(path: Path) -> Answer:
    """A .pt2 file as a function of its inputs, run by PyTorch."""
    with path.open("rb") as file:
        module: Answer = torch.export.load(file).module()
    return module


def load_onnx(path: Path) -> Answer:
    """An .onnx file as a function of its inputs, run by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads sleep
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*inputs: Tensor) -> Any:
        values = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        outputs = [torch.from_numpy(output) for output in session.run(None, values)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return run


def _save_pt2(
    program: torch.export.ExportedProgram,
    path: Path,
    metadata: str,
    *,
    inputs: Sequence[str],  # noqa: ARG001 (a .pt2 has the names of forward's parameters)
    outputs: Sequence[str],  # noqa: ARG001
) -> None:
    # Not by name: torch insists on the suffix .pt2. In memory: torch hides a full disk in a RuntimeError.
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_NAME: metadata})
    path.write_bytes(buffer.getbuffer())


def _save_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    metadata: str,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    exported: Any = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=inputs,
        output_names=outputs,
        custom_translation_table=onnx_translations(),
    )
    exported.model.metadata_props[METADATA_NAME] = metadata
    exported.save(path, external_data=False)


@dataclass(frozen=True)
class Format:
    """How a traced program becomes a file, and a file a function."""

    save: Callable[..., None]  # see `_save_pt2`
    load: Callable[[Path], Answer]
    packages: tuple[str, ...] = ()


FORMATS: dict[str, Format] = {
    ".onnx": Format(_save_onnx, load_onnx, packages=("onnx", "onnxscript", "onnxruntime")),
    ".pt2": Format(_save_pt2, load_pt2),
}


def find_format(path: Path) -> Format:
    """The format of the path's suffix. Raises ConfigError for another suffix, MissingPackageError."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"Can't export to {path}. Available: {', '.join(FORMATS)}.")
    form = FORMATS[path.suffix]
    for package in form.packages:
        with extra("export", use="ONNX, unlike .pt2,"):
            importlib.import_module(package)
    return form
