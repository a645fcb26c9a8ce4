"""An audit that a study names: by its file, and once it is fixed by its hash."""

from pathlib import Path

import pytest
from support.study.audited_study import audit_of, audited_manifest

from grandrounds.common.audit.named import name_of, named_audit, require_sound, with_pinned_audit, without_audit
from grandrounds.common.errors import StudyError
from grandrounds.common.study.study import Study

MANIFEST = audited_manifest()
AUDIT = audit_of(MANIFEST)


def study(audit: object) -> Study:
    about = MANIFEST.study.about.model_copy(update={"audit": str(audit)})
    return MANIFEST.study.model_copy(update={"about": about})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "found.json").write_bytes(AUDIT)
    return tmp_path / "found.json"


def test_a_study_that_names_the_file_of_an_audit_has_its_hash_once_it_is_fixed(file: Path) -> None:
    fixed = with_pinned_audit(study(file))
    assert fixed.about.audit == name_of(AUDIT) and with_pinned_audit(fixed) == fixed
    assert named_audit(study(file)) == named_audit(fixed, file) == AUDIT
    assert without_audit(fixed) == MANIFEST.study == with_pinned_audit(MANIFEST.study)
    assert named_audit(MANIFEST.study) is None


def test_another_file_none_or_no_more_than_a_hash_is_refused(file: Path) -> None:
    fixed = with_pinned_audit(study(file))
    with pytest.raises(StudyError, match=r"by the hash sha256:.* alone"):
        named_audit(fixed)
    file.write_bytes(AUDIT + b"\n")
    with pytest.raises(StudyError, match="and not sha256:"):
        named_audit(fixed, file)
    file.unlink()
    with pytest.raises(StudyError, match="cannot be read: No such file"):
        with_pinned_audit(study(file))


def test_sites_are_given_an_audit_of_their_parameters_and_program_that_refutes_nothing() -> None:
    pinned = MANIFEST.package_sha256
    require_sound(None, MANIFEST.study, package_sha256=pinned)
    require_sound(AUDIT, MANIFEST.study, package_sha256=pinned)
    with pytest.raises(StudyError, match="ran files of SHA-256"):
        require_sound(AUDIT, MANIFEST.study, package_sha256="ab" * 32)
    with pytest.raises(StudyError, match="max_attempts is 3 there and 2 here"):
        require_sound(AUDIT, audited_manifest(attempts=2).study, package_sha256=pinned)
    bold = audited_manifest(target_epsilon=0.5)
    with pytest.raises(StudyError, match="names an audit that refutes it"):
        require_sound(audit_of(bold, seen=20.0), bold.study, package_sha256=pinned)
    with pytest.raises(StudyError, match="follows from the scores"):
        require_sound(AUDIT.replace(b'"epsilon":', b'"epsilon":1', 1), MANIFEST.study, package_sha256=pinned)
