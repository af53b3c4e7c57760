"""What the service remembers: JSON documents in one SQLite table.

In WAL mode a committed write survives `kill -9` of the process at any moment. A document has a kind ("training-job"),
a name unique within it, and may have a parent (a trial's tuning job, a step's execution).
"""

import json
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Document = dict[str, Any]


class Exists(Exception):
    """A document of this kind and name is there already."""


class Store:
    """Documents by kind and name; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = normal")
        self._db.execute("pragma busy_timeout = 10000")
        self._db.execute(
            "create table if not exists document (id integer primary key, kind text not null, name text not null,"
            " parent text not null, body text not null, unique (kind, name))"
        )
        self._db.execute("create index if not exists document_parent on document (kind, parent)")

    def create(self, kind: str, name: str, document: Document, parent: str = "") -> None:
        """Add a document; CreationTime and LastModifiedTime are set to now.

        Raises:
            Exists: there is one of this kind and name.
        """
        document.setdefault("CreationTime", time.time())
        document.setdefault("LastModifiedTime", document["CreationTime"])
        with self._lock:
            try:
                self._db.execute(
                    "insert into document (kind, name, parent, body) values (?, ?, ?, ?)",
                    (kind, name, parent, json.dumps(document)),
                )
            except sqlite3.IntegrityError:
                raise Exists(f"{kind} {name}") from None

    def find(self, kind: str, name: str) -> Document | None:
        """The document, or None."""
        with self._lock:
            row = self._db.execute("select body from document where kind = ? and name = ?", (kind, name)).fetchone()
        return json.loads(row[0]) if row else None

    def get(self, kind: str, name: str) -> Document:
        """The document of something that is known to exist."""
        document = self.find(kind, name)
        if document is None:
            raise KeyError(f"{kind} {name}")
        return document

    def change(self, kind: str, name: str, edit: Callable[[Document], object]) -> Document:
        """Read, edit in place and write back as one step; returns what is then stored."""
        with self._lock:
            document = self.get(kind, name)
            edit(document)
            document["LastModifiedTime"] = time.time()
            self._db.execute(
                "update document set body = ? where kind = ? and name = ?", (json.dumps(document), kind, name)
            )
        return document

    def update(self, kind: str, name: str, **fields: Any) -> Document:
        """Set fields of a document."""
        return self.change(kind, name, lambda document: document.update(fields))

    def list(self, kind: str, parent: str | None = None) -> list[Document]:
        """All documents of a kind, oldest first."""
        query, values = "select body from document where kind = ?", [kind]
        if parent is not None:
            query, values = query + " and parent = ?", [kind, parent]
        with self._lock:
            rows = self._db.execute(query + " order by id", values).fetchall()
        return [json.loads(row[0]) for row in rows]

    def delete(self, kind: str, name: str) -> None:
        """Forget a document; one that is not there is no error."""
        with self._lock:
            self._db.execute("delete from document where kind = ? and name = ?", (kind, name))

    def close(self) -> None:
        """Write the log back into the database file and close it."""
        with self._lock:
            self._db.close()
