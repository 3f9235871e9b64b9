"""The features of several views of the same frames, in folders beside each other."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.contract import CENTER, FrameView
from pipeline.errors import ConfigError, ContractError
from pipeline.store import FeatureView, open_view, view_folder


@contextmanager
def open_views(features: Path, views: Iterable[FrameView]) -> Iterator[dict[FrameView, FeatureView]]:
    """The features of the centre view, which are in the folder `features`, and of `views`, by view.

    Raises what `open_view` does, ConfigError when the folder has another view, and ContractError for a view
    whose features were made otherwise.
    """
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
