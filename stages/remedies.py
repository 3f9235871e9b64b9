"""The way out of each error in this project's words. The library's errors state facts alone."""

from pipeline.errors import (
    DamagedError,
    ForeignWeightsError,
    JournalError,
    MissingClipError,
    MissingFeaturesError,
    MissingTapError,
    MissingWeightsError,
    PipelineError,
)

# One entry an error class; a subclass without one has its parent's. `console.run` prints it.
REMEDIES: dict[type[PipelineError], str] = {
    DamagedError: "Run `python -m stages.store repair`, then `dvc repro`.",
    ForeignWeightsError: (
        "Set weights.source in params.yaml to this file and run `python -m stages.weights`, which makes a"
        " weights file of it."
    ),
    JournalError: (
        "FRAMECACHE_JOURNAL=/another/folder keeps features elsewhere; those that DVC has are taken over."
    ),
    MissingClipError: (
        "The clip may be quarantined (see quarantine.csv beside the taps), or newer than the features: then"
        " run `dvc repro extract`."
    ),
    MissingFeaturesError: "Run `dvc repro extract` to make them, or `dvc pull`.",
    MissingTapError: (
        "In params.yaml, set train.tap to a tap that is there, or add this one to extract.taps and run"
        " `dvc repro`."
    ),
    MissingWeightsError: "Run `python -m stages.weights` to make it.",
}


def remedy_of(error: PipelineError) -> str | None:
    """The remedy of the error's class, or of its nearest parent that has one."""
    return next((REMEDIES[kind] for kind in type(error).__mro__ if kind in REMEDIES), None)
