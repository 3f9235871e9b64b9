"""The table of a sweep for people, as JSON and as CSV; its picture."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.learn.metrics import Estimate, Units
from pipeline.learn.sweeps import Ranked, Ranking, contributions
from pipeline.report.sweep_picture import draw_sweep
from pipeline.report.sweeps import SweepResult, Tried, varied_keys

ORANGE = (255, 127, 14)


def member(name: str, size: int, rate: float, seed: int, *losses: float, note: str = "") -> Tried:
    values = {"train.hidden_size": size, "train.learning_rate": rate, "train.seed": seed, "train.epochs": 20}
    return Tried(name, values, f"{size} {rate}", losses, note)


MEMBERS = (
    member("a0", 64, 0.001, 0, 2.0, 0.5),
    member("a1", 64, 0.001, 1, 2.0, 0.3, 0.6),
    member("b0", 128, 0.001, 0, 0.6),
    member("b1", 128, 0.001, 1, 0.8),
    member("c0", 64, 0.01, 0, 0.9, 0.7),
    member("c1", 64, 0.01, 1, 0.9, 0.7),
    member("d0", 128, 0.01, 0, 3.0, note="stopped early"),
    member("d1", 128, 0.01, 1, 5.0, note="stopped early"),
)
RANKING = Ranking(
    (
        Ranked(("a1", "a0"), (0.9, 0.8), 0.85, None),
        Ranked(("b0", "b1"), (0.8, 0.8), 0.8, Estimate(-0.05, -0.1, 0.01)),
        Ranked(("c0", "c1"), (0.5, 0.4), 0.45, Estimate(-0.4, -0.5, -0.3)),
    ),
    units=Units.of([None] * 100),
    optimism=0.0123,
)
FINISHED = [each for each in MEMBERS if not each.note]
RESULT = SweepResult(
    monitor="macro_f1",
    members=MEMBERS,
    ranking=RANKING,
    contributions=contributions(
        [each.values for each in FINISHED], [RANKING.values[each.name] for each in FINISHED]
    ),
    baseline=0.27,
    test={"winner": Estimate(0.83, 0.7, 0.9), "baseline": Estimate(0.25, 0.2, 0.3)},
)


def test_the_table_has_a_row_a_setting_and_says_what_there_is_to_say() -> None:
    assert RESULT.text() == (
        "hidden_size  learning_rate  val macro f1  of each seed    difference                "
        "val loss  epochs\n"
        "64           0.001          0.8500        0.9000, 0.8000  winner                    0.4000    2-3\n"
        "128          0.001          0.8000        0.8000, 0.8000  -0.0500 [-0.100, +0.010]  0.7000    1\n"
        "64           0.01           0.4500        0.5000, 0.4000  -0.4000 [-0.500, -0.300]  0.7000    2\n"
        "128          0.01                                         stopped early             4.0000    1\n"
        "\n"
        "4 settings tried (8 members), 1 indistinguishable from the winner, 1 not trained to the end.\n"
        "\n"
        "key            value  members  mean val macro f1  lowest to highest  range of means\n"
        "learning_rate  0.001  4        0.8250             0.8000 to 0.9000   0.3750\n"
        "               0.01   2        0.4500             0.4000 to 0.5000\n"
        "hidden_size    64     4        0.6500             0.4000 to 0.9000   0.1500\n"
        "               128    2        0.8000             0.8000 to 0.8000\n"
        "seed           0      3        0.7000             0.5000 to 0.8000   0.0000\n"
        "               1      3        0.7000             0.4000 to 0.9000\n"
        "\n"
        "Baseline: val macro f1 0.2700.\n"
        "\n"
        "On the test clips, macro f1: winner 0.8300 [0.700, 0.900], baseline 0.2500 [0.200, 0.300].\n"
        "The winner's val macro f1 is optimistic by about 0.0123: the winner was chosen by it."
    )


def test_many_settings_are_cut() -> None:
    lines = RESULT.text(at_most=2).splitlines()
    assert lines[3].startswith("and 2 more")
    assert lines[5] == RESULT.verdict()


def test_without_seeds_members_are_counted() -> None:
    result = replace(
        RESULT,
        members=(MEMBERS[0], MEMBERS[2]),
        ranking=Ranking(
            (
                Ranked(("a0",), (0.9,), 0.9, None),
                Ranked(("b0",), (0.8,), 0.8, Estimate(-0.1, -0.2, 0.1)),
            ),
            units=Units.of([None] * 100),
            optimism=0.0,
        ),
    )
    assert result.verdict() == "2 tried, 1 indistinguishable from the winner."
    assert "of each seed" not in result.text()
    untrained = replace(result, members=(*result.members, member("e0", 256, 0.1, 0, note="not trained")))
    assert untrained.verdict() == (
        "2 tried, 1 indistinguishable from the winner, 1 of 3 members not trained."
    )


def test_few_clips_give_no_verdict() -> None:
    result = replace(RESULT, ranking=replace(RANKING, units=Units.of([None] * 19)))
    assert "too few val clips to tell them from the winner (19; it takes 20)" in result.verdict()


def test_without_a_test_nothing_is_said_of_it() -> None:
    text = replace(RESULT, test={}, baseline=math.nan).text()
    assert "test clips" not in text
    assert "optimistic" not in text
    assert "Baseline" not in text


def test_csv_and_json_have_a_row_a_member(tmp_path: Path) -> None:
    RESULT.write_csv(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = json.loads(json.dumps(RESULT.as_json(), allow_nan=False))
    assert [row["member"] for row in rows] == ["a1", "a0", "b0", "b1", "c0", "c1", "d0", "d1"]
    assert [row["member"] for row in found["members"]] == [row["member"] for row in rows]
    assert rows[2] == {
        "member": "b0",
        "train.hidden_size": "128",
        "train.learning_rate": "0.001",
        "train.seed": "0",
        "train.epochs": "20",
        "epochs": "1",
        "val_loss": "0.6",
        "val_macro_f1": "0.8",
        "setting_mean": "0.8",
        "difference": "-0.05",
        "low": "-0.1",
        "high": "0.01",
        "is_distinguishable": "False",
        "note": "",
    }
    assert found["members"][0]["difference"] is None
    assert found["members"][6] == {
        "member": "d0",
        "values": MEMBERS[6].values,
        "epochs": 1,
        "val_loss": 3.0,
        "val_macro_f1": None,
        "setting_mean": None,
        "difference": None,
        "low": None,
        "high": None,
        "is_distinguishable": None,
        "note": "stopped early",
    }
    assert found["test"]["winner"] == {"value": 0.83, "low": 0.7, "high": 0.9}
    assert found["winner"] == "a1"
    assert found["contributions"][0]["range"] == pytest.approx(0.375)


def test_keys_that_are_the_same_for_all_and_the_seed_are_no_columns() -> None:
    assert varied_keys(MEMBERS) == ["train.hidden_size", "train.learning_rate"]
    assert varied_keys(MEMBERS[:2]) == []


@pytest.mark.parametrize("members", [MEMBERS, MEMBERS[:2]])
def test_the_picture_has_a_panel_a_key_and_the_winner_in_orange(
    tmp_path: Path, members: tuple[Tried, ...]
) -> None:
    draw_sweep(tmp_path / "picture.png", replace(RESULT, members=members))
    with Image.open(tmp_path / "picture.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    num_keys = len(varied_keys(members))
    assert pixels.shape[1] == pytest.approx(100 * (0.8 + 2.6 * max(1, num_keys)), abs=1)
    is_orange = (np.abs(pixels.astype(int) - ORANGE) < 3).all(axis=2)
    columns = np.flatnonzero(is_orange.any(axis=0))
    assert (np.diff(columns) > 20).sum() + bool(len(columns)) == num_keys
