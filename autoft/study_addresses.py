"""Where a shared study is: what a recipe's ``storage.study`` may say, and which packages are needed to go there."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from autoft.errors import closest, without_passwords

__all__ = ["StudyAddress", "study_address"]

DRIVERS = {
    "postgresql": (("psycopg", "postgresql+psycopg"), ("psycopg2", "postgresql+psycopg2")),
    "mysql": (("pymysql", "mysql+pymysql"), ("MySQLdb", "mysql+mysqldb")),
}
"""By database, the modules that speak to it and what SQLAlchemy calls them, the first of them in autoft's extra."""

SCHEMES = ("postgresql", "mysql", "sqlite", "journal", "grpc")
SAME = {"postgres": "postgresql", "mariadb": "mysql"}


@dataclass(frozen=True)
class StudyAddress:
    """An address of a shared study.

    Attributes:
        scheme: one of :data:`SCHEMES`.
        url: what Optuna is given of a database, with the driver that is installed; with its password.
        path: of a journal file; empty for others.
        host: of a gRPC server.
        port: of a gRPC server.
    """

    scheme: str
    url: str = ""
    path: str = ""
    host: str = ""
    port: int = 0

    @property
    def shown(self) -> str:
        """The address as messages and files may have it."""
        match self.scheme:
            case "journal":
                return f"journal://{self.path}"
            case "grpc":
                return f"grpc://{self.host}:{self.port}"
            case _:
                return without_passwords(self.url)

    @property
    def missing(self) -> str | None:
        """What to do about a package that is not installed; None where all are."""
        if self.scheme == "grpc" and not _installed("grpc"):
            return 'grpc:// needs grpcio; pip install "autoft[grpc]"'
        known: Sequence[tuple[str, str]] = DRIVERS.get(self.scheme, ())
        given = self.url.partition("://")[0].partition("+")[2]
        modules = [module for module, name in known if not given or name.endswith(f"+{given}")]
        if not modules or any(map(_installed, modules)):
            return None
        instead = "" if modules[0] == known[0][0] else f", and leave +{given} out of the address to use {known[0][0]}"
        return f'{self.scheme}:// needs {modules[0]}; pip install "autoft[{self.scheme}]"{instead}'

    def hidden(self, text: str) -> str:
        """Return a message that came of this address without its password, however the message has it."""
        text = without_passwords(text.replace(self.url, self.shown) if self.url else text)
        _, password = _user(self.url.partition("://")[2])
        for secret in {password, unquote(password)} - {""}:
            text = text.replace(secret, "***")
        return text


def _user(rest: str) -> tuple[str, str]:
    """Return what stands behind ``://`` without the password, and the password, as SQLAlchemy finds it."""
    found = re.match(r"([^:/@]*):([^@]*)@", rest)
    return (f"{found[1]}@{rest[found.end() :]}", found[2]) if found else (rest, "")


def _installed(module: str) -> bool:
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None


def study_address(url: str) -> StudyAddress:
    """Return what an address of a recipe means.

    Args:
        url: as ``postgresql://user@host/database``, ``mysql://...``, ``sqlite:///study.db``, ``journal:///shared/study.log``
            or ``grpc://host:13000``.

    Raises:
        ValueError: it is none.
    """
    allowed = ", ".join(f"{scheme}://" for scheme in SCHEMES)
    given, sign, rest = url.partition("://")
    name, plus, driver = given.partition("+")
    scheme = SAME.get(name, name)
    if not sign:
        path = (
            f" For a file write journal://{url if url.startswith('/') else '/' + url}." if url.endswith(".log") else ""
        )
        raise ValueError(f"is no address of a study; it begins with one of {allowed}; given {url!r}.{path}")
    if scheme not in SCHEMES:
        near = closest(scheme, SCHEMES)
        hint = f" Did you mean {near}://?" if near else ""
        raise ValueError(f"unknown kind of study {name + '://'!r}; allowed: {allowed}.{hint}")
    try:
        parts = urlsplit(f"{scheme}://{_user(rest)[0]}")
        port = parts.port
        if scheme in DRIVERS and (f"{parts.netloc}{parts.path}".count("@") > 1 or re.search(r"\s", rest)):
            # The rest of a password would be taken for a host, which messages name.
            raise ValueError
    except ValueError:
        # What urllib says may have a part of a password in it.
        raise ValueError(
            f"cannot be read as an address; it has the form {scheme}://user@host:port/database, and in a password @ is "
            "written as %40, a space as %20"
        ) from None
    match scheme:
        case "journal":
            if parts.netloc or not parts.path.strip("/"):
                raise ValueError("the path of a journal begins with a third slash, as journal:///shared/study.log")
            return StudyAddress(scheme, path=unquote(parts.path))
        case "grpc":
            if not parts.hostname or port is None or parts.path.strip("/"):
                raise ValueError("a gRPC server is named as grpc://host:13000")
            return StudyAddress(scheme, host=parts.hostname, port=port)
        case "sqlite":
            if parts.netloc or not parts.path.strip("/"):
                raise ValueError("a SQLite file is named as sqlite:///study.db, or with four slashes by its whole path")
            return StudyAddress(scheme, url=f"sqlite://{rest}")
        case _:
            if not parts.path.strip("/"):
                raise ValueError(f"names no database, as {scheme}://user@host/autoft")
            found = next((name for module, name in DRIVERS[scheme] if _installed(module)), scheme)
            return StudyAddress(scheme, url=f"{scheme}+{driver}://{rest}" if plus else f"{found}://{rest}")
