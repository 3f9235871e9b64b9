"""Frames in, answer out: prediction with a checkpoint, and exported files."""
