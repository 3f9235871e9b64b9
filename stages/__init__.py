"""Entry points of the pipeline: each reads its settings, calls the library and prints."""
