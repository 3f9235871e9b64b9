"""Values that can't be stored: which clips and taps are set aside, and that another dtype tries again."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.backbone import Backbone, Weights, preprocess
from pipeline.backbone.weights import save_weights
from pipeline.contract import Pooling, Preprocessing, Sampling, StoredDtype
from pipeline.errors import PipelineError
from pipeline.extraction import make_plan, make_targets, publish_view
from pipeline.extraction import runners as extract_runners
from pipeline.frames import read_frames
from pipeline.manifest import Clip
from pipeline.settings.extract import ExtractConfig
from pipeline.store import Journal, open_view
from pipeline.store.format import finite
from tests.support.extraction import extract, make_backbone, random_weights, sources_of
from tests.support.features import make_contract
from tests.support.media import write_video
from tests.support.project import NAMES, Project

CLIPS = [Clip(clip_id=name, sources=(f"{name}.mp4",), split="train") for name in ("low", "high")]


def scaled_weights(**factors: float) -> Weights:
    """resnet18 with the last BatchNorm of some layers scaled: these taps' values grow about as much."""
    weights = random_weights()
    scaled = {f"{tap}.1.bn2.weight": factor for tap, factor in factors.items()}
    state = {name: value * scaled.get(name, 1) for name, value in weights.state.items()}
    return replace(weights, sha256=f"{hash(tuple(factors.items())):064x}"[-64:], state=state)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    write_video(root / "low.mp4", num_frames=6, size=(48, 64))
    write_video(root / "high.mp4", num_frames=3, size=(32, 32), first_index=40)
    return root


def plain_maps(source: Path, weights: Weights, tap: str) -> np.ndarray:
    """(T, C, H, W) float32, frame by frame and without the engine."""
    backbone = Backbone(weights, taps=[tap], device=torch.device("cpu"))
    (batch,) = read_frames([source], sampling=Sampling())
    frames = torch.from_numpy(batch.pixels)
    options = Preprocessing(resize=32, crop=32)
    return np.concatenate([backbone(preprocess(frame[None], options))[tap].numpy() for frame in frames])


def test_every_pooling_and_dtype_of_a_contract_has_its_entry() -> None:
    assert set(extract_runners.POOLINGS) == set(get_args(Pooling))
    assert set(finite._LIMITS) == set(get_args(StoredDtype))


def quarantine_csv(features: Path) -> list[list[str]]:
    return list(csv.reader((features / "quarantine.csv").read_text().splitlines()[1:]))


@pytest.mark.slow
def test_a_clip_that_overflows_float16_is_set_aside_for_that_tap_and_computed_as_float32(
    root: Path, tmp_path: Path
) -> None:
    weights = scaled_weights(layer4=1.26e5)
    plain = {name: plain_maps(root / f"{name}.mp4", weights, "layer4") for name in ("low", "high")}
    assert plain["low"].max() < 65504 < 65520 < plain["high"].max()
    options = {"taps": ["layer3", "layer4"], "batch_size": 4}
    result, features = extract(CLIPS, root, weights, tmp_path, **options)
    assert (result.num_clips, result.num_quarantined, result.failed) == (2, 1, {})
    first = int((plain["high"].max(axis=(1, 2, 3)) > 65520).argmax())
    value = float(plain["high"][first].max())
    reason = (
        f"layer4 at {first / 25:.3f} s has a value of magnitude {value:.6g}, and float16 ends at 65504."
        " Choose dtype float32."
    )
    assert quarantine_csv(features) == [["high", "high.mp4", reason, "0", "drop"]]
    with open_view(features / "layer3") as view:
        assert view.clip_ids() == ["high", "low"]
    with open_view(features / "layer4") as view:
        assert view.clip_ids() == ["low"]
        np.testing.assert_allclose(view.read("low"), plain["low"], rtol=2e-3, atol=0.5)

    again, _ = extract(CLIPS, root, weights, tmp_path, **options)
    assert again.num_clips == again.num_frames == 0
    wide, features = extract(CLIPS, root, weights, tmp_path, dtype="float32", **options)
    assert (wide.num_clips, wide.num_quarantined) == (2, 0)
    assert quarantine_csv(features) == []
    with open_view(features / "layer4") as view:
        np.testing.assert_allclose(view.read("high"), plain["high"], rtol=1e-5, atol=0.5)


@pytest.mark.slow
def test_a_mean_that_fits_is_stored_where_its_maps_do_not(root: Path, tmp_path: Path) -> None:
    weights = scaled_weights(layer3=4e4)
    plain = plain_maps(root / "low.mp4", weights, "layer3")
    assert plain.mean(axis=(2, 3)).max() < 65504 < 65520 < plain.max(axis=(1, 2, 3)).min()
    for pooling, num_clips in (("none", 0), ("max", 0), ("avg", 1)):
        result, features = extract(CLIPS[:1], root, weights, tmp_path, taps=["layer3"], pooling=pooling)
        assert (result.num_clips, result.num_quarantined) == (num_clips, 1 - num_clips)
        with open_view(features / "layer3") as view:
            assert len(view) == num_clips
    with open_view(features / "layer3") as view:
        np.testing.assert_allclose(view.read("low")[:, :, 0, 0], plain.mean(axis=(2, 3)), rtol=2e-3)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_the_network_itself_makes_infinite_is_not_blamed_on_the_dtype(
    root: Path, tmp_path: Path, dtype: str
) -> None:
    result, features = extract(CLIPS, root, scaled_weights(layer4=float("nan")), tmp_path, dtype=dtype)
    assert (result.num_clips, result.num_quarantined) == (0, 2)
    for _, _, reason, *_ in quarantine_csv(features):
        assert reason.startswith(
            "layer4 at 0.000 s: the network itself gives nan, which no dtype can store. Look at the"
        )


@pytest.mark.slow
def test_more_unfit_clips_than_the_share_allows_end_the_stage_with_their_reasons(
    root: Path, tmp_path: Path
) -> None:
    weights = scaled_weights(layer4=1.26e5)
    extract(CLIPS, root, weights, tmp_path)
    fields = {"preprocessing": {"resize": 32, "crop": 32}}
    config = ExtractConfig.model_validate(fields)
    targets = make_targets(config, weights, make_backbone(weights, config))
    journal = Journal(tmp_path / "journal")
    sources = sources_of(CLIPS, root=root, digests=journal.digest_cache())
    todo = make_plan(CLIPS, sources=sources, targets=targets, journal=journal)
    assert (todo.num_unchanged, todo.num_quarantined, todo.to_extract) == (1, 1, ())
    with pytest.raises(PipelineError, match=r"1 of 2 clips .*\n  high: layer4 at .* dtype float32"):
        publish_view(
            todo.keys, targets=targets, journal=journal, path=tmp_path / "other", max_failed_share=0.4
        )
    assert not (tmp_path / "other").exists()


@given(
    rows=hnp.arrays(np.float32, (3, 2, 1, 2), elements=st.floats(width=32, allow_subnormal=False)),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_rows_are_unfit_exactly_when_casting_them_leaves_what_is_not_finite(
    rows: np.ndarray, dtype: str
) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        fits = bool(np.isfinite(rows.astype(dtype)).all())
    peaks = finite.row_peaks(rows)
    np.testing.assert_array_equal(extract_runners.map_peaks(torch.from_numpy(rows)).numpy(), peaks)
    assert (finite.why_unfit(peaks, np.arange(3.0), make_contract(dtype=dtype)) is None) == fits


@pytest.mark.parametrize(("value", "fits"), [(65519.0, True), (65520.0, False), (-65520.0, False)])
def test_float16_holds_what_is_rounded_to_its_largest_value(value: float, fits: bool) -> None:
    assert np.isfinite(torch.tensor(value).half().item()) == fits
    peaks = finite.row_peaks(np.full((1, 1, 1, 1), value, np.float32))
    assert (finite.why_unfit(peaks, np.zeros(1), make_contract()) is None) == fits


def test_the_stage_fails_beyond_the_allowed_share_and_tries_again_when_it_is_asked_or_the_dtype_is_another(
    project: Project,
) -> None:
    """In the real stage: all clips overflow float16."""
    save_weights(scaled_weights(layer4=1e6), path=project.path / "weights/resnet18.safetensors")
    output = project.run("python", "-m", "stages.extract", check=False)
    assert "8 of 8 clips can't be used, more than max_failed_share (0.5) allows:" in output
    assert output.count("Clip clip0 is quarantined: layer4 at 0.000 s has a value of magnitude") == 1
    assert output.count("and float16 ends at 65504. Choose dtype float32.") == 16  # log, and the error
    again = project.extract_here("--retry-quarantined", check=False)
    assert "8 quarantined before, tried again" in again
    assert again.count("is quarantined: layer4 at 0.000 s") == 8
    project.set({"extract.dtype": "float32"})
    project.extract_here()
    with open_view(project.path / "features/layer4") as view:
        assert view.clip_ids() == NAMES
        assert view.read("clip0").max() > 65520
