"""What the environment may set: the OPSLIB_* variables, checked so that a misspelt one is not silently ignored."""

from collections.abc import Mapping
from pathlib import Path

from opslib.errors import ConfigurationError

URL_HOSTS = "OPSLIB_URL_HOSTS"
"""Hosts, separated by commas, that the model may fetch photos from; none if unset."""

CACHE_HOME = "OPSLIB_CACHE_HOME"
"""Folder of what is worth keeping between runs, such as the features of photos; ~/.cache/opslib if unset."""

_PREFIX = "OPSLIB_"
_OF_OTHER_PROGRAMS = frozenset({"OPSLIB_REHEARSAL_HOME"})


def cache_home(environment: Mapping[str, str]) -> Path:
    """Return the folder that `OPSLIB_CACHE_HOME` names, or `opslib` in the user's cache folder.

    Raises:
        ConfigurationError: The folder is not an absolute path.
    """
    users = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(environment.get(CACHE_HOME) or users / "opslib")
    if not folder.is_absolute():
        raise ConfigurationError(f"{folder} is not an absolute path", hint=f"set {CACHE_HOME} to one")
    return folder


def url_hosts(environment: Mapping[str, str]) -> frozenset[str]:
    """Return the hosts that photos may be fetched from, in lower case.

    Raises:
        ConfigurationError: A variable that begins with OPSLIB_ is unknown, or a host is written as a URL.
    """
    known = _OF_OTHER_PROGRAMS | {URL_HOSTS, CACHE_HOME}
    unknown = sorted(name for name in environment if name.startswith(_PREFIX) and name not in known)
    if unknown:
        raise ConfigurationError(f"unknown variable {', '.join(unknown)}", hint=f"known: {', '.join(sorted(known))}")
    hosts = frozenset(host.strip().lower() for host in environment.get(URL_HOSTS, "").split(",") if host.strip())
    for host in hosts:
        if not all(char.isalnum() or char in "-." for char in host):
            raise ConfigurationError(
                f"{URL_HOSTS} holds {host!r}", hint="write host names only: example.com,cdn.example.com"
            )
    return hosts
