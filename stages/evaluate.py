"""Checkpoints -> test metrics: the recurrent model, the same on shuffled frames, and the baseline."""

import os

# Torch's threads sleep while they wait: spinning, two runs on the same cores take nine times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
from pathlib import Path

import numpy as np

from pipeline.learn.checkpoint import trained_config
from pipeline.learn.comparison import evaluate
from pipeline.manifest import Clip
from pipeline.report.plots import write_plots
from pipeline.report.tables import write_predictions
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.system.files import write_atomically, write_json
from stages import console
from stages.bars import Bars
from stages.params import CorpusConfig, load_section

CHECKPOINTS = Path("checkpoints")


def main() -> None:
    """Evaluate as params.yaml says; write metrics, plots and the table."""
    argparse.ArgumentParser(
        prog="python -m stages.evaluate",
        description=__doc__,
        epilog="Reads corpus.manifest and evaluate.* from params.yaml, the manifest, checkpoints/ and the"
        " features that they were trained on; writes metrics/evaluate.json (metrics with their 95 % bootstrap"
        " intervals over clips), plots/ (what DVC draws of the recurrent model's answers),"
        " reports/predictions.parquet (every answer of the three models, with its loss) and the table that it"
        " prints, reports/evaluate.txt.",
    ).parse_args()
    config = load_section("evaluate", EvaluateConfig)
    corpus = load_section("corpus", CorpusConfig)
    tap = trained_config(CHECKPOINTS / "recurrent").tap
    with Bars("batch") as bars:
        evaluation = evaluate(
            CHECKPOINTS, Path("features") / tap, corpus.manifest, config=config, on_batch=bars.show
        )

    def frames(clip: Clip) -> np.ndarray:
        from pipeline.deploy.end_to_end import clip_frames  # torchvision takes seconds

        return clip_frames(clip, root=Path(corpus.root), contract=evaluation.checkpoint.contract)

    write_json(Path("metrics/evaluate.json"), evaluation.as_json())
    write_plots(Path("plots"), evaluation, frames=frames)
    write_predictions(Path("reports/predictions.parquet"), evaluation.predictions)
    write_atomically(Path("reports/evaluate.txt"), f"{evaluation.table}\n".encode())
    print(evaluation.table)


if __name__ == "__main__":
    console.run(main)
