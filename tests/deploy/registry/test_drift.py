"""Drift and attacks on a release read a site's records as the site does: minimised, and without who opted out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.study.site_study import SiteStudy
from support.study.tiny_models import save_tiny_model

from grandrounds.client.budget.policy import POLICY
from grandrounds.client.site.folder import SiteFolder
from grandrounds.common.audit.membership import FEWEST
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.data.tokenisation import Tokenisation
from grandrounds.common.errors import DataError, StudyError
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.sources.source import DataSource
from grandrounds.common.study.manifest import Manifest
from grandrounds.deploy.adapter.finished import FinishedAdapter
from grandrounds.deploy.attacks.release import attack_release
from grandrounds.deploy.registry.drift import FEWEST_PATIENTS, measure, source_of
from grandrounds.server.report.findings import Findings


class Released:
    """An adapter on its model, of a study of hospitals, one of which has the folder ``site``."""

    def __init__(self, folder: Path) -> None:
        study = SiteStudy(save_tiny_model(folder / "llama"))
        federation = study.federation()
        self.manifest: Manifest = federation.manifest
        self.site: SiteFolder = study.initialised(folder / "site", federation)
        lora = replace(federation.manifest.study.model.lora, kind="lora")
        self.model = LanguageModel.load(study.base, lora, seed=1)
        self.tokenisation = Tokenisation.load(str(study.base), vocabulary_size=self.model.vocabulary_size)
        self.adapter = FinishedAdapter(
            tensors=self.model.tensors,
            lora=lora,
            base=str(study.base),
            precision="float32",
            base_sha256=None,
            published="",
            license="",
            origin="",
            weights_sha256="",
            case=None,
        )

    def attacked(self, members: DataSource, others: DataSource, **changed: Any) -> list[Findings]:
        manifest = changed.pop("manifest", self.manifest)
        return attack_release(
            self.model,
            self.tokenisation,
            self.adapter,
            manifest,
            members=members,
            others=[others],
            tell=lambda doing: None,
            **changed,
        )


@pytest.fixture
def released(tmp_path: Path) -> Released:
    return Released(tmp_path)


def records(path: Path, *patients: str, count: int) -> DataSource:
    """Of so many patients, and of those of these names."""
    names = [*patients, *(f"{path.stem} {number}" for number in range(count))]
    rows = [json.dumps({"patient_id": name, "text": "no complaints"}) for name in names]
    path.write_text("\n".join(rows), encoding="utf-8")
    return source_of(path, patient=None, text=None)


OPTED_OUT = "Patient-01"  # as the site's list has it, in another spelling


def test_of_a_site_s_records_nobody_is_measured_who_opted_out_there(released: Released, tmp_path: Path) -> None:
    later = records(tmp_path / "later.jsonl", OPTED_OUT, count=FEWEST_PATIENTS)
    found = measure(released.model, released.tokenisation, later, site=released.site)
    assert found.patients == FEWEST_PATIENTS
    assert measure(released.model, released.tokenisation, later).patients == FEWEST_PATIENTS + 1


def test_of_a_site_s_records_nobody_is_attacked_who_opted_out_there(released: Released, tmp_path: Path) -> None:
    members = records(tmp_path / "member.jsonl", OPTED_OUT, count=FEWEST)
    others = records(tmp_path / "other.jsonl", OPTED_OUT, count=FEWEST + 1)
    (found,) = released.attacked(members, others, site=released.site)
    assert (found.members, found.others) == (FEWEST, FEWEST + 1)
    with pytest.raises(DataError, match=f"{FEWEST - 1} patients were trained on"):
        few = records(tmp_path / "few.jsonl", OPTED_OUT, count=FEWEST - 1)
        released.attacked(few, others, site=released.site)


def test_what_is_read_of_a_site_s_records_is_minimised(released: Released, tmp_path: Path) -> None:
    with (released.site.path / POLICY).open("a") as policy:
        policy.write('[minimise]\nreplace = [{ pattern = "no .*", with = "" }]\n')
    later = records(tmp_path / "later.jsonl", count=FEWEST)
    with pytest.raises(DataError, match="nothing is left of it after minimisation"):
        measure(released.model, released.tokenisation, later, site=released.site)
    with pytest.raises(DataError):
        released.attacked(records(tmp_path / "member.jsonl", count=FEWEST), later, site=released.site)


def test_members_of_a_study_between_institutions_are_a_site_s(released: Released, tmp_path: Path) -> None:
    """Before a record is read: the files are not there."""
    missing = DataSource(files=(tmp_path / "missing.jsonl",))
    with pytest.raises(StudyError, match="which site its members are patients of is not said") as refused:
        released.attacked(missing, missing)
    assert "--site DIR" in refused.value.fix
    strangers = {name: Identity.generate().public_key for name in released.manifest.site_keys}
    others = released.manifest.model_copy(update={"site_keys": strangers})
    with pytest.raises(StudyError, match="is the folder of no site of the release's study") as refused:
        released.attacked(missing, missing, manifest=others, site=released.site)
    assert "--site DIR" in refused.value.fix
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        released.attacked(missing, missing, site=released.site)
    simulated = released.manifest.model_copy(update={"app_sha256": None, "connection_sha256": None})
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        released.attacked(missing, missing, manifest=simulated)
