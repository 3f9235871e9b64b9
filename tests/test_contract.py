import pytest
from pydantic import ValidationError

from pipeline.contract import FeatureContract, FrameView, Preprocessing, Sampling
from tests.support.features import make_contract


def test_the_digest_survives_json_and_names_the_value_not_the_object() -> None:
    contract = make_contract(sampling={"every": 2})
    again = FeatureContract.model_validate_json(contract.model_dump_json())
    assert again == contract
    assert again.digest() == contract.digest()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"weights_sha256": "1" * 64}, "weights_sha256"),
        ({"sampling": {"fps": 5.0}}, "sampling"),
        ({"preprocessing": {"resize": 64, "crop": 32}}, "preprocessing.resize"),
        ({"mean": (0.5, 0.0, 0.0)}, "mean"),
        ({"revision": 999}, "revision"),
        ({"tap": "layer3"}, "tap"),
        ({"dtype": "float32"}, "dtype"),
        ({"precision": "bfloat16"}, "precision"),
        ({"backend": "inductor"}, "backend"),
        ({"view": "flip"}, "view"),
        ({"windows": {"frames": 4, "stride": 2}}, "windows"),
    ],
)
def test_every_field_changes_the_digest_and_is_named(change: dict[str, object], field: str) -> None:
    one, other = make_contract(), make_contract(**change)
    assert one.digest() != other.digest()
    assert list(one.differences(other)) == [field]


def test_taps_of_one_pass_share_the_forward_digest() -> None:
    passes = {
        make_contract(**change).forward_digest()
        for change in ({}, {"tap": "layer3"}, {"dtype": "float32"}, {"pooling": "avg"}, {"view": "flip"})
    }
    assert len(passes) == 1
    assert make_contract(sampling={"every": 2}).forward_digest() not in passes


def test_fields_that_are_younger_than_stores_change_no_digest_of_theirs() -> None:
    contract = make_contract()
    assert not {"view", "windows"} & contract.model_dump().keys()
    assert contract.digest() == "1130765b48bf96377af8657513254c0b7c70741d6c969daff643bacb8b4c8d5f"
    assert contract.forward_digest() == "264fc81fb4a01172cf049e6686728a128fcc7a3271d49a5db40a6c6768bcee46"
    older = FeatureContract.model_validate_json(contract.model_dump_json())
    assert (older.view, older.name) == (FrameView(), "layer4")


@pytest.mark.parametrize(
    ("view", "name"),
    [
        ("center", "center"),
        ({}, "center"),
        ("flip", "flip"),
        ("bottom_right", "bottom_right"),
        ({"scale": 0.8}, "scale0.8"),
        ({"flip": True, "scale": 0.5, "corner": "top_left"}, "top_left-scale0.5-flip"),
    ],
)
def test_a_view_has_a_name_that_stands_for_it_and_names_its_features(view: object, name: str) -> None:
    found = FrameView.model_validate(view)
    assert found.name == found.model_dump() == name
    assert FrameView.model_validate(name) == found
    contract = make_contract(view=view)
    assert contract.name == ("layer4" if name == "center" else f"layer4@{name}")
    assert FeatureContract.model_validate_json(contract.model_dump_json()) == contract


@pytest.mark.parametrize(
    "view", ["left", "flip-center", "scale", {"scale": 0.05}, {"scale": 1.2}, {"zoom": 2}]
)
def test_impossible_views_are_refused(view: object) -> None:
    with pytest.raises(ValidationError):
        FrameView.model_validate(view)


def test_sampling_reads_and_writes_its_short_forms() -> None:
    for form in ("all", {"every": 3}, {"fps": 2.5}, {"count": 8}):
        assert Sampling.model_validate(form).model_dump() == form


@pytest.mark.parametrize("form", [{"every": 2, "fps": 1}, {"every": 0}, {"fps": -1}, {"each": 2}, "some"])
def test_impossible_sampling_is_refused(form: object) -> None:
    with pytest.raises(ValidationError):
        Sampling.model_validate(form)


def test_a_crop_larger_than_the_resized_frame_is_refused() -> None:
    with pytest.raises(ValidationError, match="resize 128 is smaller than crop 224"):
        Preprocessing(resize=128)
    assert Preprocessing(resize=(240, 320), crop=(224, 320)).crop_size == (224, 320)
