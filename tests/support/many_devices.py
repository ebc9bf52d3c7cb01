"""The environment of a process in which the CPU counts as several devices."""

_PATIENT = (
    "--xla_cpu_collective_call_terminate_timeout_seconds=1200 --xla_cpu_collective_call_warn_stuck_timeout_seconds=1200"
)
"""Many devices on two cores may wait long for each other beside other work."""
_THREADS = 8


def environment(count: int) -> dict[str, str]:
    """Returns the variables that give a process this many CPU devices, to be added to its others.

    XLA has as many threads as devices or cores, and a thread waits in a collective until all devices are there. Devices
    may begin independent collectives in different orders, so that with one thread a device all wait for ever. NPROC
    gives each device several.
    """
    return {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count} {_PATIENT}", "NPROC": str(_THREADS * count)
    }  # fmt: skip
