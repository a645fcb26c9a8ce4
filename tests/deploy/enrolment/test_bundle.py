"""A study's bundle: read whole by the program that it is for, and by no other."""

import zipfile

import pytest
from support.study.federation import small_manifest, small_study

from grandrounds.common.crypto.identity import Identity, canonical_json
from grandrounds.common.errors import StudyError
from grandrounds.common.system.package_hash import running_sha256
from grandrounds.deploy.enrolment.bundle import Bundle, Flower, described

OTHER = "12" * 32


def a_bundle(**changes):
    identities = {f"site-{i}": Identity.generate() for i in range(1, 6)}
    manifest = small_manifest(small_study(), identities, Identity.generate(), dimension=7, **changes)
    return Bundle(
        manifest=manifest, frozen_adapter=b"A", certificates=b"PEM", flower=Flower(address="server.example:9092")
    )


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
    bundle = a_bundle()
    assert Bundle.read(written(bundle, tmp_path)) == bundle


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


@pytest.mark.parametrize("fields", [{"app_sha256": None}, {"app_sha256": "ab"}, {"another": 1}])
def test_a_manifest_that_no_site_can_take_part_with_is_no_bundle(tmp_path, fields):
    with pytest.raises(StudyError, match=r"study\.zip is no study's bundle"):
        Bundle.read(written(a_bundle(), tmp_path, **fields))


def test_the_program_is_shown_to_who_decides():
    assert described(a_bundle(package_sha256=OTHER).manifest)["program"].endswith(f"SHA-256 {OTHER}")
