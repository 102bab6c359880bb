"""What a user may choose when a spec is compiled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Backend = Literal["torch", "triton"]


class Options(BaseModel):
    """sizes: values for sizes that are compiled in or for other defaults. chunk_size: tokens per chunk of the chunkwise form.

    backend: what kernels are printed in, PyTorch, or Triton as well.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sizes: tuple[tuple[str, Annotated[int, Field(gt=0, le=1 << 20)]], ...] = ()
    chunk_size: Annotated[int, Field(ge=1, le=1024)] = 32
    backend: Backend = "torch"
