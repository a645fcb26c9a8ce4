"""A study's folder: entries that are whole or absent, secrets that stay with their owner, files as written."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from soak.killed_simulation import in_child
from support.study.federation import small_manifest, small_study

from grandrounds.common.crypto.identity import sha256
from grandrounds.common.errors import StorageError
from grandrounds.common.study.artefacts import LEDGER, MANIFEST
from grandrounds.common.study.manifest import Manifest
from grandrounds.deploy.simulation.folder import Keys, Private, SimulationFolder

SITES = [f"site-{number}" for number in range(1, 6)]
KEYS = Keys.generate(SITES)
PRIVATE = Private(keys=KEYS, seed=7, settings={"training": {"rounds": 2}})


@pytest.fixture
def folder(tmp_path: Path) -> SimulationFolder:
    return SimulationFolder.create(tmp_path / "study")


@pytest.fixture
def manifest() -> Manifest:
    return small_manifest(small_study(), KEYS.sites, KEYS.server, dimension=7)


def ledger(folder: SimulationFolder) -> bytes:
    return (folder.path / LEDGER).read_bytes()


# --- the ledger -------------------------------------------------------------------------------------------------------


def test_entries_come_back_in_their_order(folder: SimulationFolder) -> None:
    assert folder.ledger_lines() == []
    for line in (b"one", b"two"):
        folder.append_entry(line)
    assert folder.ledger_lines() == [b"one", b"two"]
    assert ledger(folder) == b"one\ntwo\n"


@pytest.mark.parametrize("torn", [b"t", b"three", b"{" * 10_000])
@pytest.mark.parametrize("whole", [b"", b"one\n", b"one\ntwo\n"])
def test_an_entry_that_was_cut_short_is_dropped_and_the_next_follows_the_last_whole_one(
    folder: SimulationFolder, whole: bytes, torn: bytes
) -> None:
    for line in whole.splitlines():
        folder.append_entry(line)
    (folder.path / LEDGER).parent.mkdir(exist_ok=True)
    (folder.path / LEDGER).write_bytes(whole + torn)
    assert folder.ledger_lines() == whole.splitlines()
    assert ledger(folder) == whole
    folder.append_entry(b"next")
    assert ledger(folder) == whole + b"next\n"


@pytest.mark.parametrize("room", [0, 1, 50, 100])
@pytest.mark.parametrize("size_bytes", [100, 100_000])
def test_an_entry_that_does_not_fit_on_the_disk_leaves_the_ledger_as_it_was(
    folder: SimulationFolder, room: int, size_bytes: int
) -> None:
    folder.append_entry(b"one")
    before = ledger(folder)

    def on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, resource.RLIM_INFINITY))
        with pytest.raises(StorageError, match=r"entries\.jsonl cannot be written: (No space left|File too large)"):
            folder.append_entry(b"x" * size_bytes)

    assert in_child(on_a_full_disk) == 0
    assert ledger(folder) == before
    folder.append_entry(b"two")
    assert folder.ledger_lines() == [b"one", b"two"]


def test_a_ledger_that_cannot_be_read_is_named(folder: SimulationFolder) -> None:
    (folder.path / LEDGER).mkdir(parents=True)
    with pytest.raises(StorageError, match=r"entries\.jsonl is damaged or cannot be read"):
        folder.ledger_lines()
    with pytest.raises(StorageError, match=r"entries\.jsonl cannot be written"):
        folder.append_entry(b"one")


# --- what a study goes on with ----------------------------------------------------------------------------------------


def test_what_a_study_was_begun_with_comes_back(folder: SimulationFolder, manifest: Manifest) -> None:
    folder.begin(manifest, PRIVATE)
    opened = SimulationFolder.open(folder.path)
    assert opened.manifest() == manifest
    private = opened.private()
    assert (private.seed, private.settings) == (PRIVATE.seed, PRIVATE.settings)
    assert private.keys.server.secret == KEYS.server.secret
    assert {site: key.secret for site, key in private.keys.sites.items()} == {
        site: key.secret for site, key in KEYS.sites.items()
    }


def test_keys_are_for_their_owner_alone(folder: SimulationFolder, manifest: Manifest) -> None:
    folder.begin(manifest, PRIVATE)
    for path in (folder.path / "server", folder.path / "server" / "private.json"):
        assert path.stat().st_mode & 0o077 == 0, path
    secrets = [KEYS.server.secret.hex(), *(key.secret.hex() for key in KEYS.sites.values())]
    public = [path for path in folder.path.rglob("*") if path.is_file() and path.parent.name != "server"]
    assert public
    assert not [path for path in public for secret in secrets if secret in path.read_text("utf-8")]


def test_a_study_without_its_manifest_was_not_begun(folder: SimulationFolder, manifest: Manifest) -> None:
    """It is written last, so that whoever finds it finds the keys."""
    folder.begin(manifest, PRIVATE)
    (folder.path / MANIFEST).unlink()
    with pytest.raises(StorageError, match="holds no study that was begun"):
        SimulationFolder.open(folder.path)


WHOLE: dict[str, Any] = {
    "server_key": KEYS.server.secret.hex(),
    "site_keys": {site: key.secret.hex() for site, key in KEYS.sites.items()},
    "seed": 7,
    "settings": {},
}
DAMAGED: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b"\xff",
    "a list": b"[]",
    "a field missing": json.dumps({name: value for name, value in WHOLE.items() if name != "seed"}).encode(),
    "a seed that is none": json.dumps({**WHOLE, "seed": "x"}).encode(),
    "a key cut short": json.dumps({**WHOLE, "server_key": WHOLE["server_key"][:-2]}).encode(),
    "a key that is no hex": json.dumps({**WHOLE, "server_key": "x" * 64}).encode(),
    "keys that are a list": json.dumps({**WHOLE, "site_keys": []}).encode(),
    "deep nesting": b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_keys_are_refused_and_none_is_shown(folder: SimulationFolder, manifest: Manifest, damage: str) -> None:
    folder.begin(manifest, PRIVATE)
    (folder.path / "server" / "private.json").write_bytes(DAMAGED[damage])
    with pytest.raises(StorageError, match=r"private\.json is damaged") as refused:
        folder.private()
    assert KEYS.server.secret.hex()[:16] not in refused.value.diagnostics()


@pytest.mark.parametrize("damage", ["nothing", "no JSON", "no UTF-8", "a list", "deep nesting"])
def test_a_damaged_manifest_is_refused(folder: SimulationFolder, manifest: Manifest, damage: str) -> None:
    folder.begin(manifest, PRIVATE)
    (folder.path / MANIFEST).write_bytes(DAMAGED[damage])
    with pytest.raises(StorageError, match=r"study\.json is damaged"):
        folder.manifest()


def test_what_was_not_finished_is_removed_and_nothing_else(folder: SimulationFolder, manifest: Manifest) -> None:
    folder.begin(manifest, PRIVATE)
    folder.append_entry(b"one")
    (folder.path / "checkpoints").mkdir()
    (folder.path / "checkpoints" / "round-000001.checkpoint").write_bytes(b"whole")
    (folder.site_state("site-1")).mkdir(parents=True)
    (folder.site_state("site-1") / "budget.sqlite-journal").write_bytes(b"SQLite's")
    (folder.path / ".notes-of-mine").write_bytes(b"not the study's")
    before = sorted(folder.path.rglob("*"))
    for unfinished in (".report.json-x1", "checkpoints/.round-000002.checkpoint-x2", "server/.private.json-x3"):
        (folder.path / unfinished).write_bytes(b"half")
    (folder.path / ".adapter-x4" / "adapter").mkdir(parents=True)
    (folder.path / ".adapter-x4" / "adapter" / "README.md").write_bytes(b"half")
    folder.tidy()
    assert sorted(folder.path.rglob("*")) == before


def test_files_are_held_if_each_is_there_as_it_was(folder: SimulationFolder) -> None:
    (folder.path / "one").write_bytes(b"1")
    assert folder.holds({})
    assert folder.holds({"one": sha256(b"1")})
    assert not folder.holds({"one": sha256(b"2")})
    assert not folder.holds({"one": sha256(b"1"), "two": sha256(b"2")})
    assert not folder.holds({".": sha256(b"")})
