"""How much memory there is, on a device and on the machine."""

import os
import pathlib

import jax

# Where Linux says how much the processes of a container may use, of both generations.
LIMITS = '/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'


def of_machine() -> int:
    """Bytes of this machine, or of the container that this process is in."""
    found = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
    for path in LIMITS:
        try:
            found.append(int(pathlib.Path(path).read_text()))
        # No such file, or the word max.
        except (OSError, ValueError):
            continue
    return min(found)


def of_device(device: jax.Device) -> int:
    """Bytes that arrays may take on a device of this process; CPU devices share those of the machine."""
    stats = device.memory_stats() or {}
    return stats.get('bytes_limit') or of_machine() // jax.local_device_count()
