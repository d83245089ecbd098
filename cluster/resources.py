"""What Ray's workers get: memory settings of their processes."""

MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""How glibc keeps memory in an encoder's process. Two heaps: Ray calls it on ever new threads, and each would fill a
heap of its own, by 100 MB a chunk to 2.9 GB (measured). What is freed stays: a batch's tensors of some megabytes would
otherwise go back to the kernel and be faulted in anew, 5 % of the time (measured)."""
