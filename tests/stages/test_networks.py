"""The list of networks, and of one network's taps."""

import pytest

from pipeline.backbone.networks import inspect_network
from stages.networks import tap_rows


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
