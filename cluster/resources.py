"""What Ray's workers get: memory settings of their processes."""

MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""How glibc manages memory in an encoder's process. Two heaps: Ray calls the encoder on ever new threads, and each
would fill a heap of its own, by 100 MB per chunk up to 2.9 GB (measured). Freed memory is kept: a batch's tensors of a
few megabytes would otherwise go back to the kernel and be faulted in again, 5 % of the time (measured)."""
