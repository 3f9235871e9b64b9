"""The list of networks, and of one network's taps."""

from pathlib import Path

import pytest

from pipeline.backbone.networks import inspect_network
from stages import networks
from stages.networks import tap_rows
from tests.support.in_process import run_main


def test_a_networks_taps_come_with_shapes_and_costs_and_the_suggested_are_marked() -> None:
    rows = {row["tap"]: row for row in tap_rows(inspect_network("resnet18"), (64, 64), deepest_level=2)}
    assert [tap for tap, row in rows.items() if row[""]] == [
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "avgpool",
    ]
    assert rows["layer2"] == {
        "": "*",
        "tap": "layer2",
        "module": "Sequential",
        "layout": "chw",
        "map": "128x8x8",
        "KB": "16",
        "GMAC": "0.08",
    }
    assert "conv1" not in rows  # bn1 is folded into it
    assert "layer1.0.conv2" not in rows


@pytest.mark.slow
def test_what_shapes_do_not_tell_is_shown() -> None:
    rows = {
        row["tap"]: row for row in tap_rows(inspect_network("mvit_v2_s"), (16, 224, 224), deepest_level=1)
    }
    assert rows["norm"]["layout"] == "1+8x7x7 or 1+2x14x14"
    assert rows["blocks.15"]["layout"] == "1+8x7x7"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18", "--crop=-3"], "--crop: -3 is not above 0"),
        (["r3d_18", "--frames=0"], "--frames: 0 is not above 0"),
        (
            ["vit_b_16", "--crop=100"],
            "images of this size: Wrong image height! Expected 224 but got 100. Give",
        ),
        (["s3d", "--frames=1", "--crop=64"], "Give another --crop or --frames."),
    ],
)
def test_sizes_that_a_network_does_not_take_are_one_sentence(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    status, _, stderr = run_main(networks.main, tmp_path, *arguments)
    assert status != 0
    assert message in stderr
