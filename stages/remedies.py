"""The way out of each error in this project's words. The library's errors state facts alone."""

from pipeline.errors import (
    CheckClipError,
    CheckpointError,
    DamagedError,
    ExperimentError,
    FolderTreeError,
    ForeignFeaturesError,
    ForeignWeightsError,
    JournalError,
    KeptManifestError,
    LeakError,
    MissingClipError,
    MissingFeaturesError,
    MissingManifestError,
    MissingNetworkError,
    MissingTapError,
    NonFiniteFeaturesError,
    OutOfMemoryError,
    PipelineError,
    QuestionsError,
    TooFewFramesError,
    TornGroupError,
    UnequalCheckpointsError,
    UnequalClipsError,
    UnknownTimesError,
    WeightsFileError,
)

# One entry an error class; a subclass without one has its parent's. `console.run` prints it.
REMEDIES: dict[type[PipelineError], str] = {
    CheckClipError: "Name a video, an image or a folder of images: --clip SOURCE.",
    CheckpointError: "Run `dvc repro train` to make it, or `dvc pull`.",
    DamagedError: "Run `python -m stages.store repair`, then `dvc repro`.",
    ExperimentError: "A sweep with --no-experiments needs none.",
    FolderTreeError: "Or name clips and labels in a CSV: `python -m stages.manifest folder --labels`.",
    ForeignFeaturesError: "Imported features can be trained on and evaluated.",
    ForeignWeightsError: (
        "Set weights.source in params.yaml to this file and run `python -m stages.weights`, which makes a"
        " weights file of it."
    ),
    JournalError: (
        "FRAMECACHE_JOURNAL=/another/folder keeps features elsewhere; those that DVC has are taken over."
    ),
    KeptManifestError: "--fresh keeps nothing of this manifest.",
    LeakError: (
        "Give clips that show the same one group: `python -m stages.manifest folder --group` makes splits of"
        " whole groups."
    ),
    MissingClipError: (
        "The clip may be quarantined (see quarantine.csv beside the taps), or newer than the features: then"
        " run `dvc repro extract`."
    ),
    MissingFeaturesError: "Run `dvc repro extract` to make them, or `dvc pull`.",
    MissingManifestError: (
        "Build it with `python -m stages.manifest`, or correct corpus.manifest in params.yaml."
    ),
    MissingNetworkError: (
        "In params.yaml, set weights.arch and weights.source to that network, and run"
        " `python -m stages.weights`. To predict or export, --weights FILE names a file that is elsewhere."
    ),
    MissingTapError: (
        "In params.yaml, set train.tap to a tap that is there, or add this one to extract.taps and run"
        " `dvc repro`."
    ),
    NonFiniteFeaturesError: (
        "Extract them again (with extract.dtype: float32 if it is float16), or take these clips out of the"
        " manifest."
    ),
    OutOfMemoryError: "Lower batch_size in machine.yaml, then run again to go on.",
    QuestionsError: "Give --question TEXT for a model that answers questions, and for no other.",
    TooFewFramesError: "Keep more frames (extract.sampling), or set train.task to captioning.",
    TornGroupError: "`python -m stages.manifest folder --group` makes splits of whole groups.",
    UnequalCheckpointsError: "Train both: `dvc repro`, or `python -m stages.train`.",
    UnequalClipsError: "--common compares on the clips that all runs were asked the same about.",
    UnknownTimesError: "Give their rate: --fps.",
    WeightsFileError: "Run `python -m stages.weights` to make it.",
}


def remedy_of(error: PipelineError) -> str | None:
    """The remedy of the error's class, or of its nearest parent that has one."""
    return next((REMEDIES[kind] for kind in type(error).__mro__ if kind in REMEDIES), None)
