"""What a stage knows of the project that it runs in: its git repository and its DVC cache."""

from pathlib import Path

FEATURES = Path("features")  # the view, an out of DVC
