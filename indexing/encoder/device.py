"""Which device, which number format, how many tokens at once."""

from pathlib import Path

import torch

from indexing.errors import ConfigError

OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",  # torch.AcceleratorError, which stands for other errors of a device, too
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # cuBLAS found no memory for its handle
    "CUDNN_STATUS_ALLOC_FAILED",
)
CPU_FLAGS = {"avx512_bf16", "amx_bf16"}


def pick_device(name: str) -> torch.device:
    """Raises ConfigError when this machine has no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"encoder.device: expected {name} on this machine, got {torch.cuda.device_count()} CUDA devices"
        )
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto is bfloat16 only where the hardware supports it, since emulated it is slower than float32; float16 on GPUs
    with tensor cores for that alone (V100, T4).
    """
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        generation = torch.cuda.get_device_capability(device)[0]
        return torch.bfloat16 if generation >= 8 else torch.float16 if generation == 7 else torch.float32
    return torch.bfloat16 if CPU_FLAGS & cpu_flags() else torch.float32


def is_out_of_memory(error: RuntimeError) -> bool:
    """torch has a class for its own allocator alone; the CPU's, CUDA and cuBLAS say it in a message."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


def dtype_here(name: str, device: str) -> str | None:
    """What `pick_dtype` returns on this machine: float32 or bfloat16; None where it has no such device.

    float16 counts as float32, whose vectors are nearest: other machines are to encode queries for them.
    """
    is_here = not device.startswith("cuda") or int(device[5:] or 0) < torch.cuda.device_count()
    if name == "auto" and not is_here:
        return None
    dtype = pick_dtype(name, pick_device(device if is_here else "cpu"))
    return str(torch.float32 if dtype == torch.float16 else dtype).removeprefix("torch.")


def cpu_flags() -> set[str]:
    """The processor's features as Linux lists them; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def default_batch_tokens(device: torch.device) -> int:
    """Padded tokens of one batch. On a CPU measured with a 6-layer BERT in bfloat16, one thread of Zen 4: 6,796
    tokens/s with batches of 256, 7,173 with 512, 7,359 with 1,024; 2,048 gives 2 % more on two cores, 4,096 less. For
    CUDA it is an estimate, not measured."""
    return 32_768 if device.type == "cuda" else 2_048
