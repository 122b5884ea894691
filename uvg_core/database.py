"""One SQLite file that is the pack's own: whose it is stands in its head, and what goes wrong is said in words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import UniViGUError
from .io import require_writable

_WAIT = 60.0  # seconds for another process that writes


class Database:
    """A file with tables, made where there is none; several processes may use it, and a killed one leaves it whole.

    Args:
        path: the file. versions: SQL that makes the tables, for each version of the file what it needs beyond the one
            before; files of earlier versions are brought up to the last one. Without semicolons inside of statements.
        application: a number that tells the file from others'. what: what it is, e.g. ``an index of clips``.
        remedy: what a user can do where the file cannot be used.

    Raises UniViGUError, here and in blocks of ``explained``, for a file that is damaged, somebody else's, or cannot be
    read or written.
    """

    def __init__(self, path: Path, versions: Sequence[str], application: int, what: str, remedy: str) -> None:
        self.path, self._what, self._remedy = path, what, remedy
        try:
            require_writable(path)
        except UniViGUError as error:
            raise UniViGUError(f"{error}. Or {remedy}") from None
        with self.explained():
            self._db = sqlite3.connect(path, timeout=_WAIT, isolation_level=None)
            try:
                self("PRAGMA trusted_schema = OFF")  # others may have put the file there
                self._prepare(versions, application)
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        self._db.close()

    def __call__(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """Run a statement."""
        return self._db.execute(sql, values)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """All changes of a block, or none of them."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What SQLite refuses in a block, in words."""
        try:
            yield
        except sqlite3.Error as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise UniViGUError(
                    f"{self.path}: {self._what} cannot be used ({error}); check that it can be written and the disk "
                    f"has room, wait for other runs, or {self._remedy}"
                ) from None
            raise UniViGUError(
                f"{self.path}: not {self._what}, or a damaged one ({error}); delete it to have it made anew"
            ) from None

    def _prepare(self, versions: Sequence[str], application: int) -> None:
        if self._version(application, len(versions)) == len(versions):
            return
        with self.changing():
            for script in versions[self._version(application, len(versions)) :]:  # asked again: others may be quicker
                for statement in script.split(";"):
                    self(statement)
            self(f"PRAGMA application_id = {application}")
            self(f"PRAGMA user_version = {len(versions)}")

    def _version(self, application: int, newest: int) -> int:
        """That of the file, 0 for a new one. Raises UniViGUError for another program's and for a later one."""
        whose, made = (self(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        if self("SELECT count(*) FROM sqlite_master").fetchone()[0] and whose != application:
            raise UniViGUError(f"{self.path}: found another program's database, expected {self._what}; {self._remedy}")
        if made > newest:
            raise UniViGUError(f"{self.path}: was made by a later version of this pack; update the pack, or delete it")
        return int(made)
