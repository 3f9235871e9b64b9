"""Evaluation: a model's outputs for clips, and how models compare."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.streaming import Batch
from pipeline.tasks import Classification


@dataclass(frozen=True)
class Predictions:
    """Outputs and targets of clips, in the order of the batches, on the CPU."""

    clip_ids: tuple[str, ...]
    outputs: Tensor  # (N, K)
    targets: Tensor  # (N,)


@torch.inference_mode()
def predict(
    model: nn.Module, batches: Iterable[Batch], *, task: Classification, device: torch.device
) -> Predictions:
    """The model's outputs in eval mode."""
    model.eval()
    clip_ids, outputs, targets = [], [], []
    for batch in batches:
        clip_ids += [clip.clip_id for clip in batch.clips]
        outputs.append(model(batch.maps.to(device), batch.lengths).cpu())
        targets.append(task.targets(batch.clips))
    return Predictions(tuple(clip_ids), torch.cat(outputs), torch.cat(targets))


def comparison_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Aligned text: a row a model, a column a metric. All models have the metrics of the first."""
    columns = list(next(iter(metrics.values())))
    cells = [["", *(name.replace("_", " ") for name in columns)]]
    for model, values in metrics.items():
        cells.append([model, *(_number(values[name]) for name in columns)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    )


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}"
