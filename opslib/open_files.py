"""How many files and connections a process may have open."""

import resource

ENOUGH = 8192
"""Connections of hundreds of requests under way at once, on both sides; 256 and 1,024 are usual limits of shells."""


def allow_open_files(count: int = ENOUGH) -> None:
    """Raise this process's own limit of open files to `count`, or as far as the system lets it; never lower it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
