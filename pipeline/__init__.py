"""framecache: frozen CNN features, computed once, kept in a chunked store, streamed into RNNs.

Axis letters used throughout:

    N  rows of a feature store         L  steps of a sequence
    T  frames of a clip                D  features of a step
    C  channels of a feature map       B  batch
    H  height of a map or image        K  classes
    W  width of a map or image         V  vocabulary
"""

__version__ = "0.1.0"
