"""Where a trained model looks in clips: its attention, for the answer as a whole or for each word."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.contract import CENTER
from pipeline.learn.checkpoint import check_features, load_checkpoint
from pipeline.learn.comparison import as_asked
from pipeline.learn.models import SequenceModel
from pipeline.learn.models.captioning import CaptionModel
from pipeline.learn.streaming import Loader, make_loader, open_views, with_features
from pipeline.learn.tasks import Task
from pipeline.learn.tasks.captions import Caption
from pipeline.manifest import Clip
from pipeline.report.page import Look
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.machine import Machine
from pipeline.settings.model import ModelConfig
from pipeline.settings.scans import SCANS
from pipeline.system.devices import resolve_device


@torch.inference_mode()
def find_looks(
    checkpoint: Path,
    features: Path,
    clips: Sequence[Clip],
    *,
    config: EvaluateConfig = EvaluateConfig(),
    machine: Machine = Machine(),
) -> dict[str, Look]:
    """Where the model in the folder `checkpoint` looks in each clip, by clip id.

    `features` are those of its tap, and `config` says how captions are searched. Nothing where no attention
    chooses among frames; clips without features are left out. Raises as `evaluate` does.
    """
    trained, device = as_asked(load_checkpoint(checkpoint), config), resolve_device(machine.device)
    model = trained.model.to(device)
    with open_views(features, (), trained.streams) as views:
        view = views[CENTER]
        check_features(trained, view)
        loader = make_loader(
            view, with_features(clips, view), trained.config, device=device, num_threads=machine.num_readers
        )
        if isinstance(model, SequenceModel) and model.has_attention:
            return _of_answers(model, loader, trained.config)
        if isinstance(model, CaptionModel):
            return dict(_of_words(model, loader, trained.task, trained.config))
        return {}


def _of_answers(model: SequenceModel, loader: Loader, config: ModelConfig) -> dict[str, Look]:
    """For each clip, the mean over its windows, as its answer is the mean of theirs."""
    windows: dict[str, list[Look]] = defaultdict(list)
    for batch in loader.epoch():
        weights = model.attention(batch.maps, batch.lengths).cpu().numpy()  # (B, T, P)
        rows = zip(batch.clips, batch.lengths.tolist(), weights, batch.frame_seconds.numpy(), strict=True)
        for clip, length, values, seconds in rows:
            maps = _placed(values[None, :length], config, model.steps.map_size)
            windows[clip.clip_id].append(Look(("",), maps, seconds[:length]))
    return {clip: _mean(looks) for clip, looks in windows.items()}


def _mean(windows: Sequence[Look]) -> Look:
    """The mean of a clip's windows: a frame has no weight in windows that it is not in."""
    seconds = np.unique(np.concatenate([look.frame_seconds for look in windows]))
    maps = np.zeros((1, len(seconds), *windows[0].maps.shape[2:]), np.float32)
    for look in windows:
        maps[:, np.searchsorted(seconds, look.frame_seconds)] += look.maps / len(windows)
    return Look(windows[0].words, maps, seconds)


def _of_words(
    model: CaptionModel, loader: Loader, task: Task, config: ModelConfig
) -> Iterator[tuple[str, Look]]:
    for batch in loader.epoch():
        captions: list[Caption] = task.answers(model, batch)
        rows = zip(batch.clips, batch.lengths.tolist(), captions, batch.frame_seconds.numpy(), strict=True)
        for clip, length, caption, seconds in rows:
            if caption.attention is not None and caption.words:
                maps = _placed(caption.attention.cpu().numpy(), config, model.clip.steps.map_size)
                yield clip.clip_id, Look(caption.words, maps, seconds[:length])


def _placed(weights: np.ndarray, config: ModelConfig, map_size: tuple[int, int]) -> np.ndarray:
    """Weights (S, T, P) of the steps of each frame as maps (S, T, h, w); 1 x 1 where steps have no place."""
    scan = SCANS["frames" if config.frame_net else config.scan]
    shape = scan.grid(weights.shape[2], map_size=map_size)
    if shape == (1, 1):
        weights = weights.sum(axis=2)
    return weights.reshape(*weights.shape[:2], *shape)
