"""One file over HTTP: resumed where it broke off, checked, and in place only when it is whole."""

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from opslib.errors import DownloadError

_CHUNK_BYTES = 256 * 1024
_TIMEOUT_SECONDS = 30
_FRUITLESS_ATTEMPTS = 5
_RESUME_HINT = "run it again: it goes on where it stopped"
_PASSING_STATUSES = frozenset({408, 416, 425, 429, 500, 502, 503, 504})


def download(url: str, path: Path, *, sha256: str = "", pause_seconds: float = 1.0) -> Path:
    """Download a file once, with a progress bar; what was interrupted goes on where it stopped, also in a new process.

    Bytes go to `path` + `.partial`; the server is asked for the rest of the same version (`If-Range`, RFC 9110 13.1.5)
    and sends all of it when it has another. Gives up after five attempts in a row that brought no byte.

    Args:
        url: An http or https address; a redirect from https to http is refused.
        path: Where the file goes; if it is there already (with this checksum, if given), nothing is fetched.
        sha256: Checksum in hex; a file with another one is deleted.
        pause_seconds: Pause after the first fruitless attempt; it doubles with each further one.

    Returns:
        `path`.

    Raises:
        DownloadError: The server refuses, breaks off for good, or sent another file than the checksum says.
    """
    if path.is_file():
        if sha256:
            check_sha256(path, sha256)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    fruitless, size = 0, _size(partial)
    while not _fetch_rest(url, partial, may_retry=fruitless + 1 < _FRUITLESS_ATTEMPTS):
        fruitless = fruitless + 1 if _size(partial) <= size else 0
        if fruitless == _FRUITLESS_ATTEMPTS:
            raise DownloadError(f"{url} breaks off after {_size(partial):,} bytes", hint=_RESUME_HINT)
        size = _size(partial)
        time.sleep(pause_seconds * 2**fruitless / 2)
    _version_file(partial).unlink(missing_ok=True)
    if sha256:
        try:
            check_sha256(partial, sha256)
        except DownloadError:
            partial.unlink()  # going on from wrong bytes would never end right
            raise
    return partial.replace(path)


def check_sha256(path: Path, sha256: str) -> None:
    """Compare a file with its SHA-256 checksum in hex.

    Raises:
        DownloadError: It is another file.
    """
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256.strip().lower():
        raise DownloadError(
            f"{path.name} has the SHA-256 checksum {actual}, not {sha256}",
            hint="the file or the checksum is of another version; delete the file to fetch it again",
        )


def _fetch_rest(url: str, partial: Path, *, may_retry: bool) -> bool:
    """Fetch what is missing; return whether the file is whole now."""
    try:
        with urllib.request.urlopen(_request(url, partial), timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310 - http(s)
            return _receive(response, url, partial)
    except urllib.error.HTTPError as error:
        if error.code not in _PASSING_STATUSES or not may_retry:
            raise DownloadError(f"{url} answered {error.code} {error.reason}", hint="check the address") from error
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.unlink(missing_ok=True)
    except (OSError, http.client.HTTPException) as error:
        if not may_retry:
            raise DownloadError(f"{url} cannot be fetched: {error}", hint=_RESUME_HINT) from error
    return False


def _request(url: str, partial: Path) -> urllib.request.Request:
    request = urllib.request.Request(url, headers={"User-Agent": "opslib"})  # noqa: S310 - callers pass http(s)
    version, offset = _version_file(partial), _size(partial)
    if offset and version.is_file():
        request.add_header("Range", f"bytes={offset}-")
        request.add_header("If-Range", version.read_text(encoding="ascii"))
    return request


def _receive(response: http.client.HTTPResponse, url: str, partial: Path) -> bool:
    if urlsplit(url).scheme == "https" and urlsplit(response.url).scheme != "https":
        raise DownloadError(f"{url} redirects to {response.url}, which is not https")
    offset = _size(partial) if _continues(response, partial) else 0
    _remember_version(response, partial)
    length = response.headers.get("Content-Length")
    total = offset + int(length) if length else None
    with (
        partial.open("ab" if offset else "wb") as file,
        tqdm(desc=partial.stem, total=total, initial=offset, unit="B", unit_scale=True, mininterval=0.5) as bar,
    ):
        while chunk := response.read(_CHUNK_BYTES):
            bar.update(file.write(chunk))
    return total is None or _size(partial) == total


def _continues(response: http.client.HTTPResponse, partial: Path) -> bool:
    content_range = response.headers.get("Content-Range", "")
    return response.status == http.HTTPStatus.PARTIAL_CONTENT and content_range.startswith(f"bytes {_size(partial)}-")


def _remember_version(response: http.client.HTTPResponse, partial: Path) -> None:
    """Keep the validator that `If-Range` needs; weak entity tags do not promise the same bytes."""
    tag = response.headers.get("ETag", "")
    validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
    if validator:
        _version_file(partial).write_text(validator, encoding="ascii", errors="ignore")
    else:
        _version_file(partial).unlink(missing_ok=True)


def _version_file(partial: Path) -> Path:
    return partial.with_name(partial.name + ".version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
