"""Settings: all that can be asked for, with its default, and which of it matters when. Imports no torch.

Each module has the settings of one stage; `machine` has those that change no result.
"""
