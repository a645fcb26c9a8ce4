"""A study's bundle: read whole by the program that it is for, and by no other."""

import json
import zipfile
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.study.audited_study import audit_of, audited_manifest
from support.study.federation import small_manifest, small_study

from grandrounds.common.audit.named import name_of
from grandrounds.common.crypto.identity import Identity, canonical_json, sha256
from grandrounds.common.errors import StudyError
from grandrounds.common.study.about import AboutSection
from grandrounds.common.system.package_hash import running_sha256
from grandrounds.deploy.enrolment.bundle import Bundle, Flower, SiteCard, checked_audit, connection_sha256, described

OTHER = "12" * 32
ADDRESS = "server.example:9092"


def a_bundle(public=None, audit=None, **changes):
    identities = {f"site-{i}": Identity.generate() for i in range(1, 6)}
    changes = {"connection_sha256": connection_sha256(ADDRESS, b"PEM"), **changes}
    data = {} if public is None else {"public": f"sha256:{sha256(public)}", "public_units": 1}
    about = AboutSection(audit=None if audit is None else name_of(audit))
    study = small_study(data=data).model_copy(update={"about": about})
    manifest = small_manifest(study, identities, Identity.generate(), dimension=7, **changes)
    flower = Flower(address=ADDRESS)
    beside = {"public": public, "audit": audit}
    return Bundle(manifest=manifest, frozen_adapter=b"A", certificates=b"PEM", flower=flower, **beside)


def written(bundle, tmp_path, **fields):
    """The bundle's file, with other fields in the manifest."""
    path = tmp_path / "study.zip"
    bundle.write(path)
    if fields:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        parts["study.json"] = canonical_json(bundle.manifest.model_dump(mode="json") | fields)
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in parts.items():
                archive.writestr(zipfile.ZipInfo(name), data)
    return path


def test_a_bundle_is_read_as_it_was_written(tmp_path):
    for public in (None, b'{"patient_id": 1, "text": "a term"}'):
        bundle = a_bundle(public, audit=public)
        assert Bundle.read(written(bundle, tmp_path)) == bundle


def test_an_audit_of_another_study_is_shown_to_no_site():
    manifest = audited_manifest()

    def shown(audit):
        found = checked_audit(manifest.study, audit, package_sha256=manifest.package_sha256)
        return described(manifest, audit=found)["audit"]

    assert "by 60 planted gradient canaries" in shown(audit_of(manifest))
    assert "audit" not in described(manifest)
    with pytest.raises(StudyError, match="max_attempts is 2 there and 3 here"):
        shown(audit_of(audited_manifest(attempts=2)))
    invented = json.loads(audit_of(manifest))
    for bound in invented["bounds"]:
        bound["epsilon"] = 0.0
    with pytest.raises(StudyError, match="scores"):
        shown(json.dumps(invented).encode())


@pytest.mark.parametrize("public, instead", [(b"a", b"b"), (b"a", None), (None, b"a")])
def test_other_public_records_or_another_audit_than_the_manifest_s_are_refused(tmp_path, public, instead):
    with pytest.raises(StudyError, match="no study's bundle"):
        Bundle.read(written(replace(a_bundle(public), public=instead), tmp_path))
    with pytest.raises(StudyError, match="no study's bundle"):
        Bundle.read(written(replace(a_bundle(audit=public), audit=instead), tmp_path))


@pytest.mark.parametrize(
    "fields",
    [
        {"package_sha256": OTHER},
        {"package_version": "9.9"},
        {"package_version": "9.9", "package_sha256": OTHER, "a_field_of_version_9": [1]},
    ],
)
def test_a_bundle_for_another_program_is_refused_as_that(tmp_path, fields):
    with pytest.raises(StudyError, match=f"and installed here is .* with files of {running_sha256()}"):
        Bundle.read(written(a_bundle(), tmp_path, **fields))


@pytest.mark.parametrize(
    "fields", [{"app_sha256": None}, {"app_sha256": "ab"}, {"another": 1}, {"connection_sha256": None}]
)
def test_a_manifest_that_no_site_can_take_part_with_is_no_bundle(tmp_path, fields):
    with pytest.raises(StudyError, match=r"study\.zip is no study's bundle"):
        Bundle.read(written(a_bundle(), tmp_path, **fields))


# Where a member's entry in the archive's directory says what it is: version, flags, method, size.
ODD = {
    "encrypted": (8, b"\x01\x00"),
    "patched": (8, b"\x20\x00"),
    "strongly encrypted": (8, b"\x41\x00"),
    "of a later version": (6, b"\xff\x00"),
    "compressed": (10, b"\x08\x00"),
    "compressed in another way": (10, b"\x63\x00"),
    "longer than it is": (20, b"\xff\xff\x00\x00\xff\xff\x00\x00"),
    "elsewhere": (42, b"\xff\xff\xff\x7f"),
}


def test_a_path_at_which_there_is_no_file_is_told_as_that(tmp_path):
    for read in (Bundle.read, SiteCard.read):
        with pytest.raises(StudyError, match=r"nowhere cannot be read \(No such file"):
            read(tmp_path / "nowhere")
        with pytest.raises(StudyError, match=r"cannot be read \(Is a directory"):
            read(tmp_path)


@pytest.mark.parametrize("odd", ODD)
def test_a_bundle_with_an_archive_that_nobody_writes_is_refused_like_any_other(tmp_path, odd):
    path, (offset, value) = written(a_bundle(), tmp_path), ODD[odd]
    archive = bytearray(path.read_bytes())
    start = archive.index(b"PK\x01\x02") + offset
    archive[start : start + len(value)] = value
    path.write_bytes(archive)
    with pytest.raises(StudyError, match=r"study\.zip is no study's bundle"):
        Bundle.read(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A bundle, its file, and the file's content."""
    bundle = a_bundle()
    path = written(bundle, tmp_path_factory.mktemp("bundle"))
    return bundle, path, path.read_bytes()


@given(st.data())
def test_whatever_lies_in_its_place_is_the_bundle_or_is_refused(whole, data):
    bundle, path, content = whole
    changed = bytearray(content)
    # The directory and what follows it; what is in a member is covered by its checksum.
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(content.index(b"PK\x01\x02"), len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    try:
        assert Bundle.read(path) == bundle
    except StudyError as refused:
        assert "is no study's bundle" in refused.what


@pytest.mark.parametrize("other", [{"certificates": b"another"}, {"flower": Flower(address="server.example:9093")}])
def test_where_sites_connect_and_to_whom_is_under_the_manifest_s_hash(tmp_path, other):
    with pytest.raises(StudyError, match=r"study\.zip is no study's bundle"):
        Bundle.read(written(replace(a_bundle(), **other), tmp_path))


def test_the_program_is_shown_to_who_decides():
    assert described(a_bundle(package_sha256=OTHER).manifest)["program"].endswith(f"SHA-256 {OTHER}")


def test_whose_adapter_training_begins_with_is_shown_to_who_decides():
    assert "begins" not in described(a_bundle().manifest)
    manifest = a_bundle().manifest
    changed = {"first_adapter": f"sha256:{OTHER}", "first_text": "(4.00, 0.0005)-DP", "first_study": OTHER}
    model = manifest.study.model.model_copy(update=changed)
    stage = manifest.model_copy(update={"study": manifest.study.model_copy(update={"model": model})})
    assert f"whose manifest is {OTHER}: (4.00, 0.0005)-DP" in described(stage)["begins"]
