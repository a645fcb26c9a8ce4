"""Two studies of the same sites at once: on one budget, in one state, each with a worker, a lock and results."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from support.study.carried_study import carried, opened

from grandrounds.client.site.folder import SiteFolder
from grandrounds.client.state.database import DATABASE
from grandrounds.common.errors import PrivacyError, StorageError
from grandrounds.deploy.bench.loopback import LoopbackFederation
from grandrounds.deploy.site_ops import commands as site_operator
from grandrounds.deploy.verify.claims import verify

SITES = ("north", "south", "west")
SHAPE: dict[str, Any] = {"sites": SITES, "rounds": 1, "max_attempts": 2}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return LoopbackFederation(tmp_path_factory.mktemp("f"), **SHAPE)


@pytest.fixture(scope="module")
def both(first):
    """Two studies, each of half of the budget, whose rounds were carried at the same time."""
    studies = [first, LoopbackFederation(first.path / "second", **SHAPE, beside=first)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(carried, studies))
    return studies


def test_each_is_verified_and_paid_for_in_the_one_state_of_each_site(both):
    for study in both:
        verdict = verify(study.folder.study.path, manifest_hash=study.bundle.manifest.sha256)
        assert verdict.holds, verdict
        assert all(study.study_of(site).results.is_dir() for site in SITES)
    for site in SITES:
        with sqlite3.connect(both[0].home / site / "state" / DATABASE) as state:
            paid = state.execute("SELECT study, epsilon / 1000000000000 FROM reservations").fetchall()
            charged = state.execute("SELECT DISTINCT study FROM attempts WHERE charged").fetchall()
        assert paid == [(study.bundle.manifest.study_id, 4) for study in both]
        assert {study for (study,) in charged} == {study.bundle.manifest.study_id for study in both}


def test_each_has_a_folder_a_port_and_a_lock_of_its_own(both):
    folder = SiteFolder(both[0].home / "north")
    studies = folder.joined()
    assert {study.name for study in studies} == {each.bundle.manifest.study_id[:12] for each in both}
    assert len({study.node.settings().runtime_port for study in studies}) == 2
    holding = [closing(opened(study, "north")) for study in both]
    with holding[0], holding[1], pytest.raises(StorageError, match="another worker holds"):
        opened(both[0], "north")


def test_a_third_that_would_overdraw_the_budget_is_refused_and_leaves_nothing(both, tmp_path):
    with pytest.raises(PrivacyError, match="asks for ε = 4 of data asset patients, and 0 is left"):
        LoopbackFederation(tmp_path / "third", **SHAPE, beside=both[0])
    assert len(SiteFolder(both[0].home / "north").joined()) == 2


def test_one_is_left_while_the_worker_of_the_other_runs(both):
    folder = SiteFolder(both[0].home / "west")
    with closing(opened(both[0], "west")):
        site_operator.leave(folder, both[1].study_of("west"))
    assert folder.joined() == [both[0].study_of("west")]
