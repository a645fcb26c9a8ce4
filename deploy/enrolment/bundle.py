"""What the server's operator and the sites hand each other as files: a site's keys one way, the study the other."""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from ...common.audit.named import name_of, require_sound
from ...common.crypto.identity import GivenKey, Name, canonical_json, sha256
from ...common.errors import StudyError, reason
from ...common.schema import Address, Section, Words
from ...common.study.artefacts import AUDIT, MANIFEST
from ...common.study.first_adapter import BY_HASH
from ...common.study.manifest import Manifest
from ...common.study.study import Study
from ...common.system.code_pin import check_code_of
from ...common.system.files import write_atomically
from ...server.report.audit import Audited
from ...server.report.claim import at_least, began_with, count
from .node_keys import check_node_key

SITE_FORMAT: Final = "grandrounds/site/v1"
_STUDY, _ADAPTER, _CA, _FLOWER = MANIFEST, "frozen-adapter.bin", "ca.crt", "flower.json"
_NAMES: Final = frozenset((_STUDY, _ADAPTER, _CA, _FLOWER))
_PUBLIC: Final = "public.jsonl"
_NAMED: Final = frozenset((_PUBLIC, AUDIT))  # where the study names such
CONNECTION_LABEL: Final = b"grandrounds/connection/v1\n"
_LARGEST: Final = {_ADAPTER: 1 << 32, _PUBLIC: 1 << 30, AUDIT: 1 << 26}
_LARGEST_OTHER: Final = 1 << 24
_NOT_STATED: Final = "not stated"
_UNREADABLE: Final = (FileNotFoundError, PermissionError, IsADirectoryError)
_WHY: Final = "every site runs exactly this study, and speaks to this server alone"


class SiteCard(Section):
    """What a site sends to the server's operator once: its name, its key, and its node's key (OpenSSH).

    ``minimised`` are the rules by which it takes something out of its records, for the study's author.
    """

    format: Literal["grandrounds/site/v1"] = SITE_FORMAT
    name: Name
    public_key: GivenKey
    node_key: str
    minimised: tuple[Words, ...] = Field(default=(), max_length=20, strict=False)

    @classmethod
    def read(cls, path: Path) -> "SiteCard":
        """The card in a file. Raises StudyError."""
        try:
            card = cls.model_validate_json(path.read_bytes())
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error
        except (OSError, ValidationError, ValueError, RecursionError) as error:
            raise StudyError(
                f"{path} is no site's card",
                why="the server knows a site by the keys in it",
                fix="ask the site for the file site.json that `grandrounds client init` wrote",
            ) from error
        check_node_key(card.node_key)
        return card


class Flower(Section):
    """Where a site's node finds the server (host:port)."""

    address: Address


_WHO_AUDITED: Final = "so says whoever audited, and audit.json in study.zip has the scores"


def connection_sha256(address: str, certificates: bytes) -> str:
    """The hash in the manifest of where a site's node finds the server, and of the authority (PEM) that it trusts."""
    stated = {"address": address, "certificates": sha256(certificates)}
    return sha256(CONNECTION_LABEL + canonical_json(stated))


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A study as a site joins it: ``frozen_adapter`` is float32, ``certificates`` the server's authority in PEM.

    ``public`` are the bytes of its public records, ``audit`` those of its audit, where it has such.
    """

    manifest: Manifest
    frozen_adapter: bytes
    certificates: bytes
    flower: Flower
    public: bytes | None = None
    audit: bytes | None = None

    def write(self, path: Path) -> None:
        """Write the bundle, the same bytes each time. Raises StorageError."""
        parts = {
            _STUDY: self.manifest.canonical,
            _ADAPTER: self.frozen_adapter,
            _CA: self.certificates,
            _FLOWER: canonical_json(self.flower.model_dump(mode="json")),
        }
        named = {_PUBLIC: self.public, AUDIT: self.audit}
        parts |= {name: data for name, data in named.items() if data is not None}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in parts.items():
                archive.writestr(zipfile.ZipInfo(name), data)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> "Bundle":
        """The bundle in a file. Raises StudyError unless it is one for this program, whole and nothing else."""
        try:
            parts = _parts(path)
            check_code_of(parts[_STUDY])
            manifest = Manifest.parse(parts[_STUDY])
            if manifest.app_sha256 is None:
                raise ValueError("a simulation's manifest, which has no Flower app")
            flower = Flower.model_validate_json(parts[_FLOWER])
            if manifest.connection_sha256 != connection_sha256(flower.address, parts[_CA]):
                raise ValueError("another address or authority than the one that is hashed")
            public, audit = parts.get(_PUBLIC), parts.get(AUDIT)
            if manifest.study.data.public != (None if public is None else f"{BY_HASH}{sha256(public)}"):
                raise ValueError("other public records than those that are hashed")
            if manifest.study.about.audit != (None if audit is None else name_of(audit)):
                raise ValueError("another audit than the one that is hashed")
            return cls(
                manifest=manifest,
                frozen_adapter=parts[_ADAPTER],
                certificates=parts[_CA],
                flower=flower,
                public=public,
                audit=audit,
            )
        except StudyError:
            raise
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error
        except Exception as error:  # zipfile raises what it likes over flags and lengths that nobody writes
            raise StudyError(
                f"{path} is no study's bundle ({reason(error)})",
                why=_WHY,
                fix="ask the server's operator for the file study.zip again",
            ) from error


def _unreadable(path: Path, error: OSError) -> StudyError:
    return StudyError(
        f"{path} cannot be read ({error.strerror})",
        why="server and sites hand each other keys and study as files",
        fix="check the path, and who may read the file",
    )


def _parts(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(set(names)) != len(names) or set(names) - _NAMED != _NAMES:
            raise ValueError("other files than a bundle's")
        for member in members:
            # Stored, so that a small file cannot unpack to any size.
            largest = _LARGEST.get(member.filename, _LARGEST_OTHER)
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > largest:
                raise ValueError("compressed, or too large")
        return {member.filename: archive.read(member) for member in members}


def checked_audit(study: Study, audit: bytes | None, *, package_sha256: str) -> Audited | None:
    """What the audit found that a complete ``study`` names, if it names one, computed again: it takes seconds.

    Raises StudyError where it is of another study or program than that with the given hash, or refutes the claim.
    """
    require_sound(audit, study, package_sha256=package_sha256)
    return None if audit is None else Audited.of(audit)


def described(manifest: Manifest, *, audit: Audited | None = None) -> dict[str, Any]:
    """A study in plain words, with its ``checked_audit`` where it names one, for whoever decides about joining it."""
    study = manifest.study
    about, privacy, training = study.about, study.privacy, study.training
    strength = f"ε = {privacy.target_epsilon:g} at δ = {manifest.delta:g}" if privacy.noise else "NO PRIVACY"
    must_answer = at_least(manifest.threshold, of=len(study.sites))
    began = began_with(study.model)
    return {
        "title": about.title or _NOT_STATED,
        "purpose": about.purpose or _NOT_STATED,
        "contact": about.contact or _NOT_STATED,
        "sites": f"{', '.join(site.name for site in study.sites)}; {must_answer} must answer",
        "model": f"{study.model.name} in {study.model.precision}, SHA-256 {manifest.model_sha256}",
        "protects": f"each {privacy.unit}, {strength}, over at most {count(manifest.max_attempts, 'attempt')}",
        "against": f"the server with {count(privacy.corrupt_sites, 'other site')} ({privacy.trust} trust)",
        **({} if began is None else {"begins": began}),
        "training": f"{count(training.rounds, 'round')}; a {privacy.unit} takes part in one with probability "
        f"{privacy.sampling_probability:.4g}",
        "reads": f"at most {count(study.data.records_per_unit, 'window')} of a {privacy.unit} in a step, "
        f"{study.data.max_tokens} tokens each"
        + (f"; {study.data.public_units} of public records beside" if study.data.public else ""),
        **({} if audit is None else {"audit": f"{audit.in_brief}; {_WHO_AUDITED}"}),
        "program": f"grandrounds {manifest.package_version}, SHA-256 {manifest.package_sha256}",
        "manifest": manifest.sha256,
    }
