"""SHA-256 of every file of a checkpoint: written before it has its name, checked before it is read.

`digests.json` lies in the checkpoint and covers its arrays and what describes them (`default/`):
a bit that was lost on a disk or on the way is an error, and not a slightly other model. It is no
signature: who can write the checkpoint can write the digests. To know that nobody has, keep

    sha256sum RUN/checkpoints/STEP/digests.json

somewhere else, and compare. A file is read at the speed of a disk or of SHA-256 (about 2 GB/s a
core with its instructions); several are read at once.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAME = "digests.json"
COVERED = "default"
"""What Orbax calls the only item of a checkpoint; it goes on writing beside it."""

THREADS = 8


class Damaged(Exception):
    """A checkpoint that is not what was saved."""


def write(checkpoint: Path) -> None:
    """Writes the digests of a checkpoint that is complete but for its name."""
    files = [path for path in (checkpoint / COVERED).rglob("*") if path.is_file()]
    names = sorted(str(path.relative_to(checkpoint)) for path in files)
    digests = dict(zip(names, _of(checkpoint, names), strict=True))
    (checkpoint / NAME).write_text(json.dumps({"sha256": digests}, indent=2) + "\n")


def check(checkpoint: Path, part: int = 0, parts: int = 1) -> bool:
    """Whether a checkpoint has digests; if so, the `part` of its files out of `parts` is theirs.

    Raises Damaged where a file is missing or has another digest.
    """
    try:
        digests = json.loads((checkpoint / NAME).read_text())["sha256"]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"its {NAME} cannot be read ({error})") from None
    names = sorted(digests)[part::parts]
    try:
        found = _of(checkpoint, names)
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).relative_to(checkpoint)} is missing") from None
    for name, digest in zip(names, found, strict=True):
        if digest != digests[name]:
            raise Damaged(f"{name} is not what was saved: its SHA-256 is {digest[:12]}...")
    return True


def _of(checkpoint: Path, names: list[str]) -> list[str]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda name: _digest(checkpoint / name), names))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
