"""The size of memory, of a device and of the machine."""

import os
import pathlib

import jax

# Files in which Linux gives the memory limit of a container, by cgroups v2 and v1.
LIMITS = '/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'


def of_machine() -> int:
    """Bytes of this machine, or of the container that this process is in."""
    sizes = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
    for path in LIMITS:
        try:
            sizes.append(int(pathlib.Path(path).read_text()))
        # No such file, or the word max.
        except (OSError, ValueError):
            continue
    return min(sizes)


def of_device(device: jax.Device) -> int:
    """Bytes that arrays may take on a device of this process; CPU devices share those of the machine."""
    stats = device.memory_stats() or {}
    return stats.get('bytes_limit') or of_machine() // jax.local_device_count()
