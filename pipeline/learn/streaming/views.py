"""The features of several views of the same frames, in folders beside each other; and of several streams."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.contract import CENTER, FrameView
from pipeline.errors import ConfigError, ContractError
from pipeline.learn.streaming.features import Features
from pipeline.learn.streaming.streams import FusedFeatures
from pipeline.store import FeatureView, open_view, stream_folder, view_folder


@contextmanager
def open_views(
    features: Path, views: Iterable[FrameView], streams: Sequence[str] = ()
) -> Iterator[dict[FrameView, Features]]:
    """The features of the centre view, which are in the folder `features`, and of `views`, by view.

    With `streams`, taps as in `stream_folder`, they are `FusedFeatures` of the folder's and of these.

    Raises what `open_view` does, ConfigError when a folder has another view, and ContractError for a view
    whose features were made otherwise.
    """
    folders = [features, *(stream_folder(features, name) for name in streams)]
    with ExitStack() as stack:
        found = [stack.enter_context(_open_tap(folder, views)) for folder in folders]
        yield {
            view: FusedFeatures([tap[view] for tap in found]) if streams else found[0][view]
            for view in found[0]
        }


@contextmanager
def _open_tap(features: Path, views: Iterable[FrameView]) -> Iterator[dict[FrameView, FeatureView]]:
    with ExitStack() as stack:
        center = stack.enter_context(open_view(features))
        if center.contract.view != CENTER:
            raise ConfigError(
                f"{features} has the view {center.contract.view.name!r}. Give the features of the centre"
                " view: those of others are found beside them."
            )
        found = {CENTER: center}
        for view in views:
            if view not in found:
                other = stack.enter_context(open_view(view_folder(features, view)))
                if differing := set(center.contract.differences(other.contract)) - {"view"}:
                    raise ContractError(
                        f"{other.path} was made otherwise than {features}: they differ in"
                        f" {', '.join(sorted(differing))}. Extract both in one run."
                    )
                found[view] = other
        yield found
