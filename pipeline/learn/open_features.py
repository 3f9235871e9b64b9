"""open_features: a tap's features, to read and to hand on to zarr, h5py, dask, pyarrow and torch."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.store import FeatureView
from pipeline.store.folder import Folder

if TYPE_CHECKING:
    from pipeline.learn.streaming.dataset import ClipDataset


class OpenFeatures(FeatureView):
    """A view that is also handed out as a dataset of PyTorch, which the store does not know."""

    def dataset(self, clip_ids: Sequence[str] | None = None) -> "ClipDataset":
        """These clips as a torch.utils.data.Dataset, one an item; None: all clips, sorted.

        An item is (maps (T, C, H, W), frame_seconds (T,), clip_id). Raises MissingClipError.
        """
        from pipeline.learn.streaming.dataset import ClipDataset  # torch takes seconds to import

        return ClipDataset(self, clip_ids)


def open_features(path: str | Path) -> OpenFeatures:
    """Open the features of one tap, such as features/layer4. Close them, or use `with`.

    Raises MissingFeaturesError when there are none or files are missing, StoreError when they are damaged or
    of a newer version.
    """
    return OpenFeatures(partial(Folder, Path(path)))
