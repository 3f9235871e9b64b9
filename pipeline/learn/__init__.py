"""From cached features to trained models: sequences, streaming, models, tasks, training, evaluation."""
