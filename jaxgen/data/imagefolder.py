"""A folder of pictures (PNG, JPEG, WebP; sub-folders too) with captions, read as it is.

Captions come from `metadata.jsonl` files in the Hugging Face form ({"file_name": …, "text": …}),
or else from NAME.txt beside NAME.png, one caption a line, or else from the name of the folder that
holds the picture. Labels are the names of the folders that hold the pictures.

A tenth of the pictures, picked by a hash of their paths, is the split `test`; a folder of fewer
than ten holds none out.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxgen.data.picture import UnreadableError, decode
from jaxgen.data.source import Source, digest, fits_in_memory, suggestion
from jaxgen.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CAPTION_KEYS = ("text", "caption", "captions", "texts")
SPLITS = ("train", "test")
FORMAT = 2  # of what is remembered of a folder too large for memory


def read(
    path: str,
    split: str,
    size: int,
    root: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> Source:
    """One split of the folder at `path`, its pictures `size` pixels square.

    Pictures that cannot be decoded and pictures without a caption are skipped, and `notes` of the
    source names them, when they are fewer than 1 % of the folder; else `UserError` does. To find
    them every picture is decoded here: what was found in a folder too large for memory is
    remembered under `root`, for as long as no picture's name, size or time of change is another.
    `progress(done, total)` is called meanwhile.
    """
    if split not in SPLITS:
        hint = suggestion(split, SPLITS)
        raise UserError(f"an image folder has no split {split!r}{hint} It has: train, test")
    folder = Path(path).expanduser()
    files = _pictures(folder)
    captions, faults, notes = _captions(folder, files)
    readable = [name for name in files if name not in faults]
    images, unreadable, digests = _decode_all(folder, readable, size, root, progress)
    faults |= unreadable
    if faults:
        notes.append(_judged(folder, faults, len(files)))

    usable = [name for name in readable if name not in unreadable]
    held_out = _held_out(usable)
    chosen = [name for name in usable if (name in held_out) == (split == "test")]
    if not held_out:
        notes.append(f"{folder} has {len(usable)} pictures, too few to hold any out for a test")
    parents = {name: (folder / name).resolve().parent.name for name in usable}
    labels = sorted(set(parents.values()))
    if images is None:
        pixels = _Decoded(folder, tuple(chosen), size)
        content = digest(repr([digests[name] for name in chosen]).encode())
    else:
        pixels = np.array([images[name] for name in chosen], np.uint8).reshape(-1, size, size, 3)
        content = digest(pixels.tobytes())
    return Source(
        name=f"imagefolder:{path}",
        split=split,
        size=size,
        images=pixels,
        captions=tuple(captions[name] for name in chosen),
        label_ids=np.array([labels.index(parents[name]) for name in chosen], np.int32),
        labels=tuple(labels),
        ids=tuple(chosen),
        content=content,
        notes=tuple(notes),
    )


@dataclasses.dataclass(frozen=True)
class _Decoded:
    folder: Path
    names: tuple[str, ...]
    size: int

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "size size 3"]:
        file = self.folder / self.names[index]
        try:
            return decode(file, self.size)
        except UnreadableError as error:
            raise UserError(f"{file} was readable at the start and is not now: {error}") from error


def _pictures(folder: Path) -> list[str]:
    if not folder.exists():
        raise UserError(f"no image folder at {folder}; check the path after imagefolder:")
    if not folder.is_dir():
        raise UserError(
            f"{folder} is a file; imagefolder: takes the folder that holds the pictures"
        )
    found = (
        file.relative_to(folder)
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and file.is_file()
    )
    names = sorted(
        name.as_posix() for name in found if not any(part.startswith(".") for part in name.parts)
    )
    if not names:
        raise UserError(f"no pictures ({', '.join(SUFFIXES)}) in {folder} or its sub-folders")
    return names


def _captions(
    folder: Path, names: list[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, str], list[str]]:
    tables = sorted(folder.rglob("metadata.jsonl"))
    texts = {name: (folder / name).with_suffix(".txt") for name in names}
    captions, faults, notes = {}, {}, []
    if tables:
        listed: dict[str, list[str]] = {}
        for table in tables:
            for name, own in _listed(folder, table):
                listed.setdefault(name, []).extend(own)
        captions = {name: tuple(listed.get(name, ())) for name in names}
        absent = sorted(listed.keys() - set(names))
        if absent:
            notes.append(f"{_several(absent)} named in {tables[0]} but not in {folder}")
    elif any(file.is_file() for file in texts.values()):
        for name, file in texts.items():
            try:
                lines = file.read_text("utf-8-sig").splitlines() if file.is_file() else []
                captions[name] = _clean(lines)
            except UnicodeDecodeError:
                faults[name] = f"{file.name} is not UTF-8"
    else:
        for name in names:
            parent = (folder / name).resolve().parent.name
            captions[name] = _clean([parent.replace("_", " ").replace("-", " ")])
    faults |= {name: "no caption" for name in names if not captions.get(name, "fault")}
    return captions, faults, notes


def _listed(folder: Path, table: Path) -> list[tuple[str, tuple[str, ...]]]:
    try:
        lines = table.read_text("utf-8-sig").split("\n")  # a JSON string may hold other line ends
    except UnicodeDecodeError as error:
        line = table.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{table}, line {line}: not UTF-8; save the file as UTF-8") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{table}, line {number}: no JSON ({error})") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise UserError(f'{table}, line {number}: no "file_name"')
        value = next((entry[key] for key in CAPTION_KEYS if key in entry), ())
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
            raise UserError(f"{table}, line {number}: a caption is a string or a list of strings")
        name = os.path.normpath(table.parent.relative_to(folder) / entry["file_name"])
        entries.append((Path(name).as_posix(), _clean(values)))
    return entries


def _clean(lines: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text for text in (" ".join(line.split()) for line in lines) if text)


def _decode_all(
    folder: Path,
    names: list[str],
    size: int,
    root: str | Path,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, np.ndarray] | None, dict[str, str], dict[str, str]]:
    """(Pixels by name, or None when they are too many to keep; faults; digests of the files).

    Digests are those of readable pictures too many to keep, and else none.
    """
    keep = fits_in_memory(len(names), size)
    stats = [(name, (folder / name).stat()) for name in names]
    listing = repr([FORMAT, *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)])
    verdict = Path(root) / "imagefolder" / f"{digest(listing.encode())}.json"
    if not keep and verdict.is_file():
        found = json.loads(verdict.read_text("utf-8"))
        return None, found["faults"], found["digests"]

    def attempt(name: str) -> np.ndarray | str | UnreadableError:
        """The pixels, or a digest in the place of pixels that are not kept."""
        try:
            if keep:
                return decode(folder / name, size)
            file = (folder / name).read_bytes()
            decode(file, size)
            return digest(file)
        except UnreadableError as error:
            return error
        except OSError as error:
            return UnreadableError(str(error))

    images, faults, digests = {}, {}, {}
    # Pillow warns of odd metadata that does not matter here.
    with concurrent.futures.ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for done, result in enumerate(pool.map(attempt, names), 1):
            name = names[done - 1]
            if isinstance(result, UnreadableError):
                faults[name] = str(result)
            elif isinstance(result, str):
                digests[name] = result
            else:
                images[name] = result
            if progress:
                progress(done, len(names))
    if keep:
        return images, faults, digests
    verdict.parent.mkdir(parents=True, exist_ok=True)
    partial = verdict.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps({"faults": faults, "digests": digests}), "utf-8")
    partial.replace(verdict)
    return None, faults, digests


def _judged(folder: Path, faults: dict[str, str], total: int) -> str:
    """The note on pictures to skip, or `UserError` when they are 1 % of the folder or more."""
    few = _several([f"{name} ({reason})" for name, reason in sorted(faults.items())])
    if 100 * len(faults) < total:
        return f"skipped {len(faults)} of {total} pictures in {folder}: {few}"
    raise UserError(
        f"{len(faults)} of {total} pictures in {folder} cannot be used, and only fewer than 1 % "
        f"may be skipped: {few}; repair or remove them"
    )


def _several(items: list[str]) -> str:
    rest = len(items) - 3
    return ", ".join(items[:3]) + (f" and {rest} more" if rest > 0 else "")


def _held_out(names: list[str]) -> frozenset[str]:
    if len(names) < 10:
        return frozenset()
    hashes = {
        name: int(hashlib.sha256(f"imagefolder {name}".encode()).hexdigest(), 16) for name in names
    }
    held_out = frozenset(name for name in names if hashes[name] % 10 == 0)
    # Small folders may have none by chance, or all.
    if not held_out or len(held_out) == len(names):
        return frozenset({min(names, key=hashes.__getitem__)})
    return held_out
