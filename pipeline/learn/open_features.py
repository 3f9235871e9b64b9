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


def open_features(path: str | Path, *, cache: str | Path | None = None, cache_mb: int = 4096) -> OpenFeatures:
    """Open the features of one tap, such as features/layer4. Close them, or use `with`.

    A `path` such as s3://bucket/features/layer4 is read from an object store by ranges. What was read last
    is kept in the folder `cache`, up to `cache_mb` MB for all that use it; None: the user's cache folder.

    Raises MissingFeaturesError when there are none or files are missing, StoreError when they are damaged or
    of a newer version; of an object store also RemoteError when it can't be read, and MissingPackageError.
    """
    if "://" not in str(path):
        return OpenFeatures(partial(Folder, Path(path)))
    from pipeline.store.remote import RemoteFolder, default_cache

    folder = default_cache() if cache is None else Path(cache)
    return OpenFeatures(partial(RemoteFolder, str(path), cache=folder, cache_bytes=cache_mb << 20))
