"""Published files: from `$RESEARCH_DATA`, else the cache, else their publisher; always checked."""

import gzip
import hashlib
import importlib.util
import os
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.errors import UserError

CONNECT_SECONDS = 5
READ_SECONDS = 30


@dataclass(frozen=True)
class PublishedFile:
    """A file as its publisher ships it."""

    name: str
    """File name, inside the folder of its data set."""
    sha256: str
    """Digest of the file, hexadecimal."""
    url: str = ""
    """Where to download it; empty where it is not published as a file of its own."""
    unpacked_sha256: str = ""
    """For a gz file, the digest of what it holds: a file that was packed again passes as well."""


def cache_folder() -> Path:
    """`$RESEARCH_CACHE`, else `~/.cache/reigen`: downloads, vocabularies, tokens, compiled code."""
    chosen = os.environ.get("RESEARCH_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "reigen"


def save_atomically(path: Path, content: bytes) -> None:
    """Writes a file that other processes see whole or not at all.

    Raises `UserError` where the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; set RESEARCH_CACHE to a folder "
            "that can be written and has room"
        ) from error


def packaged(package: str, path: str, sha256: str) -> bytes:
    """The checked content of a data file that an installed package carries.

    Read as a file, without importing the package: `import sklearn` takes 3 to 5 seconds. Raises
    `UserError` where the package, or that very file in it, is missing.
    """
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or []) if found else []:
        if (Path(folder) / path).is_file():
            remedy = f"install {package} again"
            return _checked(Path(folder) / path, PublishedFile(path, sha256), remedy)
    raise UserError(
        f"no installed {package} holds {path}: install the version that requirements/ names"
    )


def find(folder: str, files: Sequence[PublishedFile]) -> list[bytes]:
    """The checked contents of the files of a data set; gz files with `unpacked_sha256` unpacked.

    Looks in `$RESEARCH_DATA/<folder>`, then in the cache, then downloads into the cache. Raises
    `UserError` for a file that is not what was published, and for one that cannot be had.
    """
    return [_find_one(folder, file) for file in files]


def _find_one(folder: str, file: PublishedFile) -> bytes:
    given = os.environ.get("RESEARCH_DATA")
    if given:
        root = Path(given).expanduser()
        if not root.is_dir():
            raise UserError(
                f"RESEARCH_DATA={given} is not a folder: set it to one that holds "
                f"{folder}/{file.name}, or unset it"
            )
        path = root / folder / file.name
        if path.is_file():
            return _checked(path, file)

    path = cache_folder() / "data" / folder / file.name
    if path.is_file():
        return _checked(path, file)
    _download(path, file)
    return _checked(path, file)


def _checked(
    path: Path, file: PublishedFile, remedy: str = "delete it, so that it is fetched again"
) -> bytes:
    """Reads and unpacks; raises `UserError` naming the file and both digests if they differ."""
    content = path.read_bytes()
    expected = file.unpacked_sha256 or file.sha256
    if file.unpacked_sha256:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is not a whole gz file ({error}): {remedy}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        what = "what it unpacks to has" if file.unpacked_sha256 else "it has"
        raise UserError(
            f"{path} is not the published file: {what} sha256 {found}, expected {expected}; "
            f"{remedy}"
        )
    return content


def _download(path: Path, file: PublishedFile) -> None:
    """Downloads into `path` (whole or not at all), or raises one `UserError` with both ways."""
    own_copy = f"set RESEARCH_DATA to a folder that holds {path.parent.name}/{file.name}"
    if not file.url:
        raise UserError(f"{file.name} is not at hand and has no address of its own: {own_copy}")

    import pooch  # brings `requests`: only a download pays for it

    progress = _Progress(file.name) if sys.stderr.isatty() else None
    downloader = pooch.HTTPDownloader(
        progressbar=progress or False, timeout=(CONNECT_SECONDS, READ_SECONDS)
    )
    try:
        pooch.retrieve(
            file.url,
            known_hash=f"sha256:{file.sha256}",
            fname=file.name,
            path=path.parent,
            downloader=downloader,
        )
    except (OSError, ValueError) as error:  # no network, no room; or a wrong digest
        raise UserError(
            f"{file.name} is not at hand and could not be downloaded from {file.url} "
            f"({_reason(error)}): {own_copy}, or run where that address can be reached"
        ) from error
    finally:
        if progress:
            progress.close()


def _reason(error: Exception) -> str:
    """The innermost cause, which names what happened; the outer ones repeat the address."""
    cause: BaseException = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return str(cause) or type(cause).__name__


class _Progress:
    """The four names that pooch asks of a progress bar, on a bar of rich."""

    def __init__(self, description: str):
        self._description = description
        self._bar: Any = None
        self.total = 0  # bytes; set by pooch

    def update(self, size: int) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(self._description, total=self.total)
            self._bar.start()
        self._bar.update(self._task, advance=size)

    def reset(self) -> None:
        """pooch resets the bar before it fills it once more at the end."""
        if self._bar is not None:
            self._bar.reset(self._task, total=self.total)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
