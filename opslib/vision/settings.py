"""What the environment may set: the OPSLIB_* variables, checked so that a misspelt one is not silently ignored."""

from collections.abc import Mapping

from opslib.errors import ConfigurationError

URL_HOSTS = "OPSLIB_URL_HOSTS"
"""Hosts, separated by commas, that the model may fetch photos from; none if unset."""

_PREFIX = "OPSLIB_"
_OF_OTHER_PROGRAMS = frozenset({"OPSLIB_REHEARSAL_HOME"})


def url_hosts(environment: Mapping[str, str]) -> frozenset[str]:
    """Return the hosts that photos may be fetched from, in lower case.

    Raises:
        ConfigurationError: A variable that begins with OPSLIB_ is unknown, or a host is written as a URL.
    """
    known = _OF_OTHER_PROGRAMS | {URL_HOSTS}
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
