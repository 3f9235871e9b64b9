"""Frames in, answers out: prediction with a checkpoint, and exported files."""
