"""Checkpoints -> test metrics: the recurrent model, the same on shuffled frames, and the baseline."""

import os

# Torch's threads sleep while they wait: spinning, two runs on the same cores take nine times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import logging
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from tqdm import tqdm

from pipeline.errors import ConfigError, DecodeError, ManifestError, error_text
from pipeline.learn.checkpoint import Checkpoint, check_contract, load_checkpoint
from pipeline.learn.evaluation import Score, comparison_table, order_sentence, predict, score
from pipeline.learn.models import MODELS, RecurrentModel
from pipeline.learn.models.captioning import CaptionModel
from pipeline.learn.models.summaries import Attention
from pipeline.learn.streaming import Batch, make_loader, with_features
from pipeline.learn.tasks import Captioning, Predictions, Task
from pipeline.learn.training import resolve_monitor
from pipeline.manifest import Clip, read_manifest
from pipeline.report.drawings import AttentionBars, draw_attention, draw_comparison
from pipeline.report.plots import NUM_DRAWN, write_plots
from pipeline.store import FeatureView, open_view
from pipeline.system.devices import DeviceName, resolve_device
from pipeline.system.files import write_atomically, write_json
from stages import console
from stages.params import CorpusConfig, load_section

log = logging.getLogger(__name__)

PLOTS = Path("plots")
_NUM_CAPTIONED = 6  # clips on the page of captions


class EvaluateConfig(BaseModel):
    """How the checkpoints are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Literal["train", "val", "test"] = "test"
    num_resamples: PositiveInt = 1000  # draws of the clips for the confidence intervals
    seed: Annotated[int, Field(ge=0)] = 0  # of the draws, and of the order of shuffled frames
    beam_size: PositiveInt | None = None  # of captions; null: train.words.beam_size
    length_power: Annotated[float, Field(ge=0)] | None = None  # null: train.words.length_power
    batch_size: PositiveInt = 32
    device: DeviceName = "auto"
    num_threads: PositiveInt = 2  # that read features


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m stages.evaluate",
        description=__doc__,
        epilog="Reads corpus.manifest and evaluate.* from params.yaml, the manifest, checkpoints/ and the"
        " features that they were trained on; writes metrics/evaluate.json (metrics with their 95 % bootstrap"
        " intervals over clips), what DVC draws of the recurrent model's answers, plots/, and the table that"
        " it prints, reports/evaluate.txt.",
    ).parse_args()
    config = load_section("evaluate", EvaluateConfig)
    manifest_path = Path(load_section("corpus", CorpusConfig).manifest)
    clips = read_manifest(manifest_path).clips(split=config.split)
    checkpoints = {name: _decoding(load_checkpoint(Path("checkpoints") / name), config) for name in MODELS}
    recurrent = checkpoints["recurrent"]
    with open_view(Path("features") / recurrent.config.tap) as view:
        for checkpoint in checkpoints.values():
            check_contract(checkpoint.contract, view.contract, path=view.path)
        found = with_features(clips, view)
        if not found:
            raise ManifestError(f"{manifest_path} has no {config.split} clips with features.")
        recurrent.task.check(found)
        scores = {
            "recurrent": _score(recurrent, view, found, config, plots=PLOTS),
            "shuffled": _score(recurrent, view, found, config, shuffle_seed=config.seed),
            "baseline": _score(checkpoints["baseline"], view, found, config),
        }
    metrics = {name: score.as_json() for name, score in scores.items()}
    write_json(Path("metrics/evaluate.json"), metrics)
    cell = recurrent.config.cell
    model = {"transformer": "transformer", "none": "no recurrence"}.get(cell, cell.upper())
    labels = {
        "recurrent": model,
        "shuffled": f"{model}, frames shuffled",
        "baseline": recurrent.task.baseline,
    }
    named = {labels[name]: score for name, score in scores.items()}
    report = comparison_table(named)
    draw_comparison(PLOTS / "images/comparison.png", {name: s.metrics for name, s in named.items()})
    monitor, sign = resolve_monitor(recurrent.task, recurrent.config)
    report += "\n\n" + order_sentence(
        scores["recurrent"],
        scores["shuffled"],
        metric=monitor,
        sign=sign,
        monitored=recurrent.task.monitored,
    )
    write_atomically(Path("reports/evaluate.txt"), (report + "\n").encode())
    print(report)


def _decoding(checkpoint: Checkpoint, config: EvaluateConfig) -> Checkpoint:
    """The checkpoint, decoding as `config` says where it does."""
    options = {"beam_size": config.beam_size, "length_power": config.length_power}
    changes = {name: value for name, value in options.items() if value is not None}
    task = checkpoint.task
    if not changes:
        return checkpoint
    if not isinstance(task, Captioning):
        raise ConfigError(
            f"evaluate.{next(iter(changes))} is for captions, and the model's task is"
            f" {checkpoint.config.task}. Set it to null."
        )
    return replace(checkpoint, task=replace(task, config=task.config.model_copy(update=changes)))


def _score(
    checkpoint: Checkpoint,
    view: FeatureView,
    clips: list[Clip],
    config: EvaluateConfig,
    *,
    shuffle_seed: int | None = None,
    plots: Path | None = None,
) -> Score:
    """Answer, measure, and leave the answers' plots in the folder `plots`."""
    device = resolve_device(config.device)
    changes = {"batch_size": config.batch_size, "num_threads": config.num_threads}
    loader = make_loader(view, clips, checkpoint.config.model_copy(update=changes), device=device)
    name = checkpoint.network if shuffle_seed is None else "shuffled"
    predictions = predict(
        checkpoint.model.to(device),
        tqdm(loader.epoch(), total=len(loader), desc=name, unit="batch"),
        task=checkpoint.task,
        device=device,
        shuffle_seed=shuffle_seed,
    )
    if plots:
        write_plots(plots, predictions, task=checkpoint.task)
        model = checkpoint.model
        if isinstance(model, RecurrentModel) and isinstance(model.summary, Attention) and not model.per_frame:
            batch = next(loader.epoch())
            _draw_attention(plots / "images/attention.png", model, batch, task=checkpoint.task)
        if checkpoint.config.task == "captioning":
            _draw_captions(plots / "images/captions.png", predictions, checkpoint)
    return score(predictions, task=checkpoint.task, num_resamples=config.num_resamples, seed=config.seed)


@torch.inference_mode()
def _draw_attention(path: Path, model: RecurrentModel, batch: Batch, *, task: Task) -> None:
    """How much each frame of some clips counts in the model's answer."""
    weights = model.attention(batch.maps, batch.lengths).sum(dim=2).cpu()  # (B, T)
    outputs = task.outputs(model, batch).cpu()
    rows = zip(batch.clips, batch.lengths.tolist(), batch.frame_seconds, weights, outputs, strict=True)
    clips = []
    for clip, length, seconds, frame_weights, output in islice(rows, NUM_DRAWN):
        answer = ", ".join(map(str, task.render(output, seconds)[0].values()))
        clips.append(
            AttentionBars(clip.clip_id, seconds[:length].numpy(), frame_weights[:length].numpy(), answer)
        )
    draw_attention(path, clips)


def _draw_captions(path: Path, predictions: Predictions, checkpoint: Checkpoint) -> None:
    """The page of some clips' captions; with their frames, where the corpus is at hand."""
    from pipeline.deploy.end_to_end import clip_pixels  # torchvision takes seconds
    from pipeline.report.caption_page import write_caption_page

    model = checkpoint.model
    assert isinstance(model, CaptionModel)
    root = Path(load_section("corpus", CorpusConfig).root)
    frames = {}
    shown = zip(predictions.clips, predictions.frame_seconds, strict=True)
    for clip, seconds in islice(shown, _NUM_CAPTIONED):
        try:
            pieces = clip_pixels(clip, root=root, contract=checkpoint.contract)
            read = torch.cat([pixels for pixels, _ in pieces]).permute(0, 2, 3, 1).numpy()  # (T, H, W, 3)
            if len(read) != len(seconds):
                raise DecodeError(f"it has {len(read)} frames now, and its features are of {len(seconds)}")
            frames[clip.clip_id] = read
        except (DecodeError, OSError) as error:
            log.warning("%s is drawn without the frames of %s: %s", path, clip.clip_id, error_text(error))
    write_caption_page(
        path,
        predictions,
        scan="frames" if checkpoint.config.frame_net else checkpoint.config.scan,
        map_size=model.clip.steps.map_size,
        frames=frames,
        num_clips=_NUM_CAPTIONED,
    )


if __name__ == "__main__":
    console.run(main)
