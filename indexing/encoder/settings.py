"""How to run an encoder, and what one call did. No torch here, so that planning stays light."""

from dataclasses import dataclass
from typing import Literal, get_args

from indexing.errors import ConfigError

Dtype = Literal["auto", "float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Raises ConfigError where a value can never work, whatever the model."""

    model: str
    """A folder, file://, s3://bucket/prefix, package://package/folder, or the name of a model on the hub."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""
    dtype: Dtype = "auto"
    """auto (bfloat16 where the device is fast at it, float16 on V100 and T4), float32 or bfloat16."""
    max_tokens: int = 128
    """Longest text in tokens, special tokens included; the model's own limit applies where it is lower."""
    batch_tokens: int | None = None
    """Tokens of one batch, padding included; None is the device's default, on GPUs what there is memory for."""
    dim: int | None = None
    """Keep the first dim dimensions (Matryoshka); None is the model's own."""

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda") and not self.device.removeprefix("cuda:").isdigit():
            raise ConfigError(f"encoder.device: expected auto, cpu, cuda or cuda:N, got {self.device!r}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"encoder.dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        for name, minimum in (("max_tokens", 3), ("batch_tokens", 1), ("dim", 1)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ConfigError(f"encoder.{name}: expected at least {minimum}, got {value}")


@dataclass(frozen=True, kw_only=True)
class EncodeStats:
    """What one `Encoder.encode` did."""

    num_texts: int = 0
    num_tokens: int = 0
    """Tokens the model saw: after truncation, special tokens included, padding not."""
    num_truncated: int = 0
    """Texts that lost tokens to max_tokens, or characters to the limit on what is tokenised at all."""
    num_oom_splits: int = 0
    """Batches that were halved because the device ran out of memory."""
