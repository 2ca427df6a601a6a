"""Folders on this machine or in a bucket, gs://BUCKET/FOLDER, under one name: a path.

A path in a bucket is etils' (as in Orbax): it has pathlib's methods and costs a request a call. The
functions here are for what differs: an object appears whole or not at all, but it cannot be
renamed, appended to or mapped into memory.
"""

import contextlib
import fcntl
import functools
import importlib.util
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from etils import epath

from jaxgen.errors import Outage, UserError, trouble, unusable

SCHEME = "gs://"
ABANDONED = 600.0  # seconds without a word to a file; not all disks tell of locks elsewhere
SECONDS = 30  # for the first contact with a bucket, and of silence before a request is made anew


def check(name: str, option: str = "") -> None:
    """Raises UserError where no folder can have that name, after `option`; asks no network."""
    if "://" in name:
        if not re.fullmatch(SCHEME + r"[a-z0-9][\w.-]+[a-z0-9](/.*)?", name):
            raise UserError(f"{option}{name}: give a folder of this machine, or {SCHEME}BUCKET/…")
        if importlib.util.find_spec("gcsfs") is None:
            raise UserError(f'{option}{name} needs gcsfs: pip install "jaxgen[gcs]"')
        return
    there = _nearest(Path(name))
    if not there.is_dir():
        raise UserError(f"{option}{name}: {there} is no folder; choose another")


def folder(name: str) -> Path:
    """The path of that name; UserError where it is in a bucket that cannot be used."""
    if not name.startswith(SCHEME):
        return Path(name)
    check(name)
    _reach(name.removeprefix(SCHEME).partition("/")[0])
    return cast(Path, epath.Path(name))


def check_writable(name: str, option: str = "") -> None:
    """Raises UserError where nothing may be made in the folder of that name, there or not yet.

    Of a bucket it asks nothing.
    """
    if not name.startswith(SCHEME):
        there = _nearest(Path(name))
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"{option}{name}: no right to write to {there}; choose another")


def is_remote(path: Path) -> bool:
    """Whether the path is in a bucket."""
    return str(path).startswith(SCHEME)


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` at once when the block has ended well.

    Raises UserError where a bucket does not take it, Outage where it may later.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch) / path.name
            _put(Path(scratch) / path.name, path)
        return
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replaces a file at once."""
    with written(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def local(path: Path) -> Iterator[Path]:
    """The file itself, or a copy of one in a bucket for as long as the block runs."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        _bucket().get_file(str(path), str(Path(scratch) / path.name))
        yield Path(scratch) / path.name


def remove(path: Path) -> None:
    """Removes a folder with all that is in it, if it is there."""
    if is_remote(path):
        cast(epath.Path, path).rmtree(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Removes the unfinished files, `.NAME.partial`, of processes that were killed.

    Those are they that nobody has written to for ten minutes and no living process has locked.
    """
    for partial in folder.glob(".*.partial"):
        with contextlib.suppress(OSError), partial.open("r+b") as file:  # locked, or gone meanwhile
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - partial.stat().st_mtime > ABANDONED:
                partial.unlink()


class Growing:
    """A folder whose files may be appended to: itself, or in the place of a bucket's a local one.

    What is written into the local one is in the bucket after `push`, and only then.
    """

    def __init__(self, folder: Path):
        self._folder, self._pushed = folder, dict[Path, int]()
        self._scratch = tempfile.TemporaryDirectory() if is_remote(folder) else None
        self.path = Path(self._scratch.name) if self._scratch else folder

    @property
    def is_copy(self) -> bool:
        """Whether `push` has something to do."""
        return self._scratch is not None

    def pull(self, name: str) -> None:
        """Brings a file of the bucket's folder, if it is there."""
        if self.is_copy and (self._folder / name).is_file():
            (self.path / name).write_bytes((self._folder / name).read_bytes())

    def push(self) -> None:
        """Writes the files that have grown to the bucket; UserError where it does not take them."""
        for path in sorted(self.path.rglob("*")) if self.is_copy else ():
            size = path.stat().st_size
            if path.is_file() and self._pushed.get(path) != size:
                _put(path, self._folder / path.relative_to(self.path))
                self._pushed[path] = size

    def close(self) -> None:
        """Lets the local folder go."""
        if self._scratch:
            self._scratch.cleanup()


def _nearest(place: Path) -> Path:
    """The path, or what is there of it: the nearest above."""
    place = place.absolute()
    return next(path for path in (place, *place.parents) if path.exists())


@functools.cache
def _reach(bucket: str) -> None:
    """Raises UserError unless the bucket is there and may be looked at, Outage if none answers."""
    from google.api_core import exceptions
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage
    from google.cloud.storage.retry import DEFAULT_RETRY

    name = SCHEME + bucket
    for library in ("google.auth", "gcsfs"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what fails is raised and said once
    try:
        retry = DEFAULT_RETRY.with_timeout(SECONDS)
        storage.Client().get_bucket(bucket, timeout=SECONDS, retry=retry)
    except DefaultCredentialsError:
        raise UserError(
            f"{name}: no Google credentials are set up here; run gcloud auth application-default "
            "login, or set GOOGLE_APPLICATION_CREDENTIALS"
        ) from None
    except exceptions.NotFound:
        raise UserError(
            f"there is no bucket {name}; make it (gcloud storage buckets create {name})"
        ) from None
    except (exceptions.Forbidden, exceptions.Unauthorized):
        raise UserError(
            f"{name} may not be looked at with these credentials; grant them the roles "
            "storage.objectUser and storage.legacyBucketReader on it"
        ) from None
    except Exception as error:  # of the network, of five libraries
        reason = str(error.__cause__ or error)[:80]
        raise Outage(f"{name} cannot be reached ({reason}); see to the network") from None
    _end_silences()


@functools.cache
def _bucket() -> Any:
    """The file system of all buckets, for etils and Orbax too."""
    import aiohttp
    import fsspec.config

    fsspec.config.conf.setdefault("gcs", {}).update(
        # What TensorStore writes, and other hosts, a cache of listings would not see.
        use_listings_cache=False,
        requests_timeout=aiohttp.ClientTimeout(sock_connect=SECONDS, sock_read=SECONDS),
    )
    return fsspec.filesystem("gcs")


def _end_silences() -> None:
    """Neither library does so of itself: their requests would wait for ever."""
    for limit in ("CONNECT_TIMEOUT", "LOW_SPEED_TIME"):
        os.environ.setdefault(f"TENSORSTORE_CURL_{limit}_SECONDS", str(SECONDS))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    _bucket()


def _put(file: Path, path: Path) -> None:
    try:
        _bucket().put_file(str(file), str(path))
    except Exception as error:
        if isinstance(error, FileNotFoundError) and error.errno is None:  # as gcsfs says it
            raise UserError(f"cannot write {path}: its bucket is gone; make it again") from None
        if not (reason := trouble(error)):
            raise
        raise unusable(error, f"cannot write {path} ({reason})") from None
