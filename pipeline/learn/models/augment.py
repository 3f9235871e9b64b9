"""Augmentation of steps: in training, a model reads other steps than those of the features."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.learn.models.draws import Draws
from pipeline.learn.models.steps import ClipSteps
from pipeline.learn.models.summaries import full_lengths
from pipeline.settings.model import AugmentConfig


@dataclass(frozen=True)
class Changes:
    """Changes of a batch's steps that its targets follow."""

    frames: Tensor | None = None  # (B, T) int64: the frame that is shown at each place; None: its own
    partners: Tensor | None = None  # (B,) int64: the clip that is mixed into each; None: nothing is
    partner_share: Tensor | None = None  # of these clips in the mixture, a number


class Augment(Draws):
    """Changes the steps of clips in training, as its settings say; after that, `changes` has what was drawn.

    Steps are standardised, so that 0 is the mean of each channel.
    """

    def __init__(self, config: AugmentConfig) -> None:
        super().__init__()
        self.config = config
        self.mixes = False  # clips; whoever sets it mixes their targets, too
        self.changes = Changes()

    def forward(self, steps: ClipSteps) -> ClipSteps:
        """Other steps, of the same shape and lengths; the same steps where nothing is to be done."""
        config = self.config
        if not self.training or config == AugmentConfig():
            return steps
        values = steps.values  # (B, T, S, D)
        num_clips, num_frames = values.shape[:2]
        lengths = full_lengths(values) if steps.lengths is None else steps.lengths
        lengths = lengths.to(values.device)
        valid = torch.arange(num_frames, device=values.device) < lengths[:, None]  # (B, T)
        frames = partners = share = None
        if config.time_warp:
            draws = self._uniform(values, num_clips, 2)
            frames = warped_frames(lengths, draws, num_frames=num_frames, largest=config.time_warp)
            values = values[torch.arange(num_clips, device=values.device)[:, None], frames]
        if config.frame_dropout:
            kept = self._uniform(values, num_clips, num_frames) >= config.frame_dropout
            kept |= ~(kept & valid).any(dim=1, keepdim=True)  # a clip of which nothing is left keeps all
            values = values * kept[..., None, None]
        if config.mixup and self.mixes:
            partners = torch.randperm(num_clips, generator=self.generator, device=values.device)
            share = config.mixup * self._uniform(values)
            others = values.masked_fill(~valid[..., None, None], 0)[partners]
            values = (1 - share) * values + share * others
        if config.noise:
            values = values + config.noise * torch.empty_like(values).normal_(generator=self.generator)
        self.changes = Changes(frames, partners, share)
        return ClipSteps(values, steps.lengths)

    def _uniform(self, values: Tensor, *shape: int) -> Tensor:
        return values.new_empty(shape).uniform_(generator=self.generator)


def warped_frames(lengths: Tensor, draws: Tensor, *, num_frames: int, largest: float) -> Tensor:
    """The frame (B, T) int64 that each of T places shows after a warp of time; padding shows itself.

    A place of the clip, chosen at random, shows a frame that is up to `largest` times the clip's length
    earlier or later. Time runs evenly from there to the clip's ends, as in SpecAugment (arXiv 1904.08779),
    and each place shows the nearest frame. `lengths` (B,) are frames, `draws` (B, 2) are from 0 to 1.
    """
    last = (lengths - 1).clamp(min=1)[:, None].to(draws.dtype)  # (B, 1)
    place = draws[:, :1] * last
    shown = (place + (2 * draws[:, 1:] - 1) * largest * lengths[:, None]).clamp(min=0).minimum(last)
    places = torch.arange(num_frames, device=lengths.device).expand(len(lengths), -1)  # (B, T)
    before = places * (shown / place.clamp(min=1e-6))
    after = last - (last - places) * ((last - shown) / (last - place).clamp(min=1e-6))
    warped = torch.where(places <= place, before, after).round().long()
    return torch.where(places < lengths[:, None], warped.minimum(lengths[:, None] - 1).clamp(min=0), places)
