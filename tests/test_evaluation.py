import torch

from pipeline.evaluation import comparison_table, predict
from pipeline.models import ModelConfig, build_model
from pipeline.streaming import Loader
from pipeline.tasks import Classification
from tests.toy import make_features, order_task


def test_predictions_do_not_depend_on_the_batch():
    clips, maps = order_task(7)
    features, task = make_features(maps), Classification(("first", "second"))
    model = build_model("recurrent", ModelConfig(hidden_size=4), map_shape=(2, 1, 1), num_outputs=2)
    device = torch.device("cpu")
    alone = predict(model, Loader(features, clips, 1, 1).epoch(), task=task, device=device)
    together = predict(model, Loader(features, clips, 7, 1).epoch(), task=task, device=device)
    assert alone.clip_ids == together.clip_ids == tuple(maps)
    assert together.targets.tolist() == [0, 1, 0, 1, 0, 1, 0]
    torch.testing.assert_close(alone.outputs, together.outputs)
    for i, values in enumerate(maps.values()):
        expected = model(torch.from_numpy(values)[None], torch.tensor([len(values)]))[0]
        torch.testing.assert_close(together.outputs[i], expected)


def test_the_table_has_a_row_a_model_and_a_column_a_metric():
    table = comparison_table(
        {
            "LSTM": {"loss": 0.25, "macro_f1": 1.0, "num_clips": 150},
            "mean-pool + linear": {"loss": 12.5, "macro_f1": 0.56789, "num_clips": 150},
        }
    )
    assert table.splitlines() == [
        "                       loss  macro f1  num clips",
        "LSTM                 0.2500    1.0000        150",
        "mean-pool + linear  12.5000    0.5679        150",
    ]
