"""What has to be equal on all hosts of a run: code, versions, command."""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

Identity = dict[str, str]


def identity(command: list[str]) -> Identity:
    """Versions by name, `code` by digest, and the command."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    found["code"] = _digest_of_code()
    found["command"] = " ".join(command)
    return found


def difference(of: str, one: Identity, other_host: str, other: Identity) -> str | None:
    """A sentence about the first thing in which host `of` differs; None where nothing does."""
    for name in other:
        if one.get(name) == other[name]:
            continue
        what = {"code": "the code of research/", "command": "the command"}.get(name, name)
        return (
            f"host {of} has another {what.removeprefix('the ')} than host {other_host} "
            f"({one.get(name, 'none')} and {other[name]}): make them the same on every host"
        )
    return None


def _digest_of_code() -> str:
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
