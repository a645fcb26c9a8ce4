"""A site with a study that another version of the program joined: it is named, and hinders no other study."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.study.federation import Federation
from support.study.site_study import SiteStudy, reserved, write_policy
from support.study.tiny_models import save_tiny_model

from grandrounds.client.budget.policy import POLICY
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.site.folder import SiteFolder
from grandrounds.client.site.joined_study import JoinedStudy
from grandrounds.client.state.database import SiteDatabase
from grandrounds.common.crypto.identity import canonical_json, sha256
from grandrounds.common.errors import OtherProgramError, StudyError
from grandrounds.common.study.manifest import MANIFEST_LABEL
from grandrounds.deploy.site_ops import commands as site_operator
from grandrounds.deploy.site_ops.check import check
from grandrounds.deploy.site_ops.known_studies import known_studies
from grandrounds.deploy.site_ops.programs import runnable
from grandrounds.deploy.site_ops.records import prepare

EARLIER = {"package_version": "0.0.9", "package_sha256": "ab" * 32}
NAMED = f"of grandrounds 0.0.9 with files of SHA-256 {'ab' * 32}"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> SiteStudy:
    return SiteStudy(save_tiny_model(tmp_path_factory.mktemp("model") / "llama"))


@pytest.fixture
def first(study: SiteStudy) -> Federation:
    return study.federation()


@pytest.fixture
def site(tmp_path: Path, study: SiteStudy, first: Federation) -> SiteFolder:
    """A site whose one study was joined under an earlier version, in the form of that."""
    folder = study.initialised(tmp_path / "site", first)
    joined(folder, study, first)
    for file, lacked, more in (("study.json", "tensor_sizes", {}), ("node/node.json", "largest_bytes", {"colour": 1})):
        path = folder.study().path / file
        fields: dict[str, Any] = json.loads(path.read_bytes()) | EARLIER | more
        del fields[lacked]  # a field that the other version did not have
        path.write_bytes(canonical_json(fields))
    return folder


def joined(site: SiteFolder, study: SiteStudy, federation: Federation) -> JoinedStudy:
    bundle = study.bundle(federation, site.path / "tls")
    write_policy(site, federation.manifest)
    policy = site.path / POLICY
    policy.write_text(policy.read_text().replace("\ndelta = 1e-3", "\ndelta = 2e-3"))  # of two studies
    site_operator.join_study(site, bundle, agreed=lambda terms: True)
    return site.of(federation.manifest.study_id)


@pytest.fixture
def second(study: SiteStudy, first: Federation) -> Federation:
    """Another study of the same sites, for all that is left."""
    federation = study.federation()
    privacy = federation.study.privacy.model_copy(update={"target_epsilon": 49.0})
    changes = {"study": federation.study.model_copy(update={"privacy": privacy}), "site_keys": first.manifest.site_keys}
    federation.manifest = federation.manifest.model_copy(update=changes)
    return federation


def test_another_study_is_joined_beside_it_prepared_checked_and_run(
    site: SiteFolder, study: SiteStudy, first: Federation, second: Federation
) -> None:
    (old,) = site.joined()
    port = old.node.runtime_port
    other = joined(site, study, second)
    assert other.node.settings().runtime_port != port == site.settings().runtime_port
    said = prepare(site, other, again=False, progress=lambda records, share: None)
    assert f"study {old.name} is {NAMED}, which alone can tell what it reads: so nothing was removed" in " ".join(said)
    assert check(site, other)[0].startswith("key, policy, model and records fit the study")
    told: list[str] = []
    assert runnable(site, say=told.append) == [other]
    assert f"study {old.name} is not started: the study runs grandrounds 0.0.9" in told[0]
    with pytest.raises(StudyError) as refused:
        site.study()
    assert f"{old.name} ({NAMED})" in refused.value.fix and f"{other.name} (" not in refused.value.fix


def test_it_is_listed_with_the_version_that_reads_it(site: SiteFolder) -> None:
    database = SiteDatabase.open(site.state)
    try:
        (known,) = known_studies(site, Reservations(database).statements()).values()
    finally:
        database.close()
    assert (known.title, known.state) == (f"{NAMED}, which alone reads it", "joined, not begun")


def test_its_successor_that_this_version_reads_is_joined(site: SiteFolder, study: SiteStudy, first: Federation) -> None:
    old = site.study()
    with pytest.raises(OtherProgramError, match=r"made by grandrounds 0\.0\.9"):
        old.manifest()
    previous = first.manifest.sha256
    first.manifest = first.manifest.model_copy(update={"version": 2, "previous": previous})
    assert joined(site, study, first) == old
    assert old.manifest().sha256 == first.manifest.sha256 != previous


def test_it_is_left_too_with_the_budget_back(site: SiteFolder) -> None:
    expected = sha256(MANIFEST_LABEL + (site.study().path / "study.json").read_bytes())
    said = " ".join(site_operator.leave(site, site.study()))
    assert "the budget has back what it reserved" in said and expected[:16] in said
    assert "how many of its sites must answer" in said and reserved(site) == []
