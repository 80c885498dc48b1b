"""Checkpoints: replaced whole or not at all, continued only by the run that wrote them."""

import hashlib
import io
import os
from pathlib import Path

import torch

from wotlab.training._settings import Words, differences

SEAL = b"\nsha256 "  # at the end of the file, before the digest of all that precedes it


def resume(path: str | Path, parts: dict, run: Words) -> dict:
    """Put what `path` holds into `parts`; the rest of it is returned."""
    body = _opened(Path(path).read_bytes())
    if body is None:
        raise ValueError(
            f"checkpoint {path} is damaged or not one of these; delete it to start anew"
        )
    saved = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    found = differences(saved["run"], run)
    if found:
        raise ValueError(
            f"checkpoint {path} belongs to another run; they differ in {', '.join(found[:5])}. "
            f"Go on with the settings it was begun with, delete it, or name another file"
        )
    for name, part in parts.items():
        part.load_state_dict(saved.pop(name))
    return saved


def save(path: str | Path, parts: dict, rest: dict) -> None:
    """Write beside the old checkpoint, then put it in its place: a kill leaves one of the two."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: part.state_dict() for name, part in parts.items()}
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb+") as file:
            torch.save(state | rest, file)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0, os.SEEK_END)
            file.write(SEAL + digest.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _opened(content: bytes) -> bytes | None:
    """The file without its seal, if that is whole."""
    body, seal, digest = content.rpartition(SEAL)
    whole = seal and digest == hashlib.sha256(body).hexdigest().encode()
    return body if whole else None
