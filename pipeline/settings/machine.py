"""Machine: what a run takes of the machine that it runs on. No setting here changes a result."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

DeviceName = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


class DaskConfig(BaseModel):
    """The workers of an extraction: `local: n` processes on this machine, or the address of a scheduler."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    local: PositiveInt | None = None  # they share the cores; each has a GPU, if there are any
    scheduler: Annotated[str, Field(pattern=r"^(tcp|tls|ucx)://")] | None = None  # tcp://host:8786

    @model_validator(mode="before")
    @classmethod
    def _accept_an_address(cls, value: Any) -> Any:
        return {"scheduler": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.local is None) == (self.scheduler is None):
            raise ValueError("give null, 'local: n', or a scheduler's address, 'tcp://host:8786'")
        return self


class Machine(BaseModel):
    """Device, threads, memory and workers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: DeviceName = "auto"  # or cpu, cuda, cuda:1; auto: the GPU if there is one
    num_readers: PositiveInt = 2  # threads that read features for training and evaluation
    resident_mb: NonNegativeInt = 2048  # training keeps features in memory up to this size
    resident_gpu_mb: NonNegativeInt | None = None  # same on a GPU; null: half of what is free
    num_trainings: PositiveInt = 1  # processes of a sweep, each with features of its own; for GPUs
    batch_size: PositiveInt | None = None  # frames that extraction computes at once; null: GPU 256, CPU 32
    num_decoders: PositiveInt | None = (
        None  # threads that decode for extraction; null: by the number of cores
    )
    num_writers: PositiveInt | None = None  # threads that write features; null: GPU up to 4, CPU 1
    dask: DaskConfig | None = None  # workers of extraction; null: this process
    stall_seconds: PositiveFloat = 300.0  # an extraction without progress for so long is restarted
    commit_seconds: PositiveFloat = 20.0  # a crash of extraction loses at most this much work
