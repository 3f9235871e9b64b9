"""CorpusConfig: where the clips are."""

from pydantic import BaseModel, ConfigDict, Field


class CorpusConfig(BaseModel):
    """Where the clips are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest: str = Field(min_length=1)  # CSV or Parquet, one row a clip; see manifests/README.md
    root: str = Field(
        min_length=1
    )  # the folder that the manifest's sources are relative to; relative: in the project's folder
