"""The release store: a folder or any fsspec URL, in which a release is the directory `{store}/{release_id}`.

What is in a release is the business of `models.artifacts.release`. Torch is imported only to save or load
one.
"""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
from fsspec.implementations.local import LocalFileSystem

from models.artifacts.manifest import MANIFEST_NAME, Manifest, read_manifest
from models.artifacts.release_meta import release_meta
from models.errors import IncompatibleCheckpoint
from services.errors import BackendUnavailable
from services.settings import Settings
from streaming.messages.events import release_id_problem

if TYPE_CHECKING:
    from models.artifacts.release import ReleaseBundle

UNREACHABLE = "unreachable"


class ReleaseStore:
    """Directories of releases under one fsspec URL; `cache` holds copies of what is not local."""

    def __init__(self, url: str, cache: Path) -> None:
        self._fs, self._root = fsspec.url_to_fs(url)
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._cache = cache

    def save(self, bundle: "ReleaseBundle") -> Manifest:
        """Writes a new release, its manifest last: a reader finds all of it or no manifest."""
        from models.artifacts.release import save_release

        require_safe(bundle.meta.release_id)
        if self._is_local:
            return save_release(Path(self._root), bundle)
        with tempfile.TemporaryDirectory() as folder:
            manifest = save_release(Path(folder), bundle)
            source = Path(folder) / bundle.meta.release_id
            target = f"{self._root}/{bundle.meta.release_id}"
            self._fs.makedirs(target, exist_ok=True)
            for name in [*(file.name for file in manifest.files), MANIFEST_NAME]:
                self._fs.put_file(str(source / name), f"{target}/{name}")
        return manifest

    def manifest(self, release_id: str) -> Manifest:
        """A release's manifest, its files not looked at; raises what `load` raises."""
        require_safe(release_id)
        return read_manifest(Path(self._root) / release_id if self._is_local else self._fetched(release_id))

    def problem(self, release_id: str) -> str:
        """Why this version cannot load a release, one line; empty if it can.

        Judged by its manifest and the sizes of its files: their content is verified when it is loaded.
        """
        try:
            require_safe(release_id)
            with tempfile.TemporaryDirectory() as folder:
                place = f"{self._root}/{release_id}"
                self._fs.get_file(f"{place}/{MANIFEST_NAME}", str(Path(folder) / MANIFEST_NAME))
                manifest = read_manifest(Path(folder))
            release_meta(manifest)
            for file in manifest.files:
                size = self._fs.size(f"{place}/{file.name}")
                if size != file.size_bytes:
                    return f"size: {file.name} has {size} bytes, not {file.size_bytes}"
        except IncompatibleCheckpoint as error:
            return f"{error.reason}: {error}"
        except FileNotFoundError as error:
            return f"missing_file: {error.filename or error} is missing"
        except OSError as error:
            return f"{UNREACHABLE}: {error}"
        return ""

    def discard(self, release_id: str) -> None:
        """Removes a release that was never announced, and what a killed writer left of it."""
        require_safe(release_id)
        place = f"{self._root}/{release_id}"
        remains = self._fs.glob(f"{self._root}/.{release_id}.*.tmp") if self._is_local else []
        for path in (place, *remains):
            if self._fs.exists(path):
                self._fs.rm(path, recursive=True)

    def uri(self, release_id: str) -> str:
        """Where a release is, for people."""
        return str(self._fs.unstrip_protocol(f"{self._root}/{release_id}"))

    def load(self, release_id: str) -> "ReleaseBundle":
        """A verified release; raises IncompatibleCheckpoint, or OSError if the store cannot be reached."""
        from models.artifacts.release import load_release

        require_safe(release_id)
        directory = Path(self._root) / release_id if self._is_local else self._fetched(release_id)
        try:
            return load_release(directory)
        except IncompatibleCheckpoint:
            if not self._is_local:
                # A bad copy must not outlive a repaired original.
                shutil.rmtree(directory, ignore_errors=True)
            raise

    def _fetched(self, release_id: str) -> Path:
        copy = self._cache / release_id
        if copy.is_dir():
            return copy
        self._cache.mkdir(parents=True, exist_ok=True)
        source = f"{self._root}/{release_id}"
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=".fetch-") as folder:
            temporary = Path(folder) / release_id
            temporary.mkdir()
            try:
                self._fs.get_file(f"{source}/{MANIFEST_NAME}", str(temporary / MANIFEST_NAME))
                for file in read_manifest(temporary).files:
                    self._fs.get_file(f"{source}/{file.name}", str(temporary / file.name))
            except FileNotFoundError as error:
                raise IncompatibleCheckpoint("missing_file", str(error)) from error
            try:
                temporary.rename(copy)
            except OSError:
                # Another service of this machine fetched it meanwhile.
                if not copy.is_dir():
                    raise
        return copy


def release_store(settings: Settings) -> ReleaseStore:
    """The release store of these settings."""
    return ReleaseStore(settings.store.releases_url, settings.store.root / "release-cache")


def require_safe(release_id: str) -> None:
    """Raises IncompatibleCheckpoint for an id that is no name of a directory of its own."""
    if problem := release_id_problem(release_id):
        raise IncompatibleCheckpoint("unsafe_name", f"{release_id!r} is no name of a release: it {problem}")


def open_release_store(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The store's file system and its path there.

    Raises BackendUnavailable for one that nobody could open, or that each service would have for itself.
    """
    try:
        filesystem, path = fsspec.url_to_fs(url)
    except (OSError, ImportError, ValueError) as error:
        raise BackendUnavailable(
            f"the release store {url} cannot be opened ({error}): set HEADRACE_STORE__RELEASES"
        ) from error
    if "memory" in str(filesystem.protocol):
        raise BackendUnavailable(
            f"the release store {url} is the memory of one process: set HEADRACE_STORE__RELEASES to a place "
            "that all services reach"
        )
    return filesystem, str(path)
