"""A server has several studies, each in a folder of its own, under the keys that sites compared once."""

import pytest
from support.study.enrolled_server import SITES, write_study

from grandrounds.common.errors import StudyError
from grandrounds.common.study.study import read_study
from grandrounds.deploy.server_ops import commands as server_operator
from grandrounds.deploy.server_ops.studies import list_studies, new_study, studies_of
from grandrounds.server.run.server_folder import ServerFolder


@pytest.fixture
def second(folder):
    new_study(folder, "second")
    return ServerFolder(folder.path / "studies" / "second")


def contents(folder):
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_another_study_has_the_server_s_keys_and_sites_and_ports_of_its_own(folder, second):
    assert second.identity().public_key == folder.identity().public_key
    assert (second.certificates / "ca.crt").read_bytes() == (folder.certificates / "ca.crt").read_bytes()
    assert {name: site.public_key for name, site in second.sites().items()} == {
        name: site.public_key for name, site in folder.sites().items()
    }
    assert all(site.node_id is None for site in second.sites().values())
    first, own = folder.settings(), second.settings()
    assert len({first.port, first.superlink_port, own.port, own.superlink_port}) == 4
    assert (own.host, own.evaluation, own.bind) == (first.host, first.evaluation, first.bind)
    assert (second.path / "server.key").stat().st_mode & 0o777 == 0o600
    assert second.path.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in (second.path / "units").iterdir()} >= {
        "grandrounds-server-second.service",
        "grandrounds-study-second.service",
    }


def test_making_it_again_changes_nothing_and_it_begins_no_study_below_itself(folder, second):
    before = contents(second)
    new_study(folder, "second")
    assert contents(second) == before
    new_study(second, "third")
    assert [folder.path.name for folder in studies_of(folder)] == ["server", "second", "third"]


def test_a_server_s_folder_that_lies_in_one_of_that_name_is_no_study_of_another(tmp_path):
    assert ServerFolder(tmp_path / "studies" / "server").home.path == tmp_path / "studies" / "server"


def test_each_study_is_listed_with_where_it_stands_and_what_comes_next(folder, second):
    first, other, *_ = list_studies(second)
    assert first == (f"{folder.path}  {folder.settings().address}  fixed; next: grandrounds server start {folder.path}")
    assert f"{second.path}  {second.settings().address}  not fixed yet; next: grandrounds server " in other


def test_it_begins_as_the_server_s_first_dated_today(folder):
    write_study(folder)
    with_about = folder.study_toml.read_text() + '[about]\ntitle = "Letters"\ndated = "2020-01-01"\n'
    folder.study_toml.write_text(with_about)
    new_study(folder, "second")
    first, other = read_study(folder.study_toml), read_study(folder.path / "studies" / "second" / "study.toml")
    assert other.about.title == "Letters" and str(other.about.dated) > "2026"
    assert other.model_copy(update={"about": first.about}) == first


def test_the_study_that_a_plan_wrote_begins_it(folder, tmp_path):
    write_study(ServerFolder(tmp_path))
    planned = tmp_path / "study.toml"
    planned.write_text(planned.read_text() + '[simulation]\ndropouts = ["none"]\n')
    said = new_study(folder, "planned", study=planned)
    assert said[-1] == f"next: grandrounds server bundle {folder.path / 'studies' / 'planned'}"
    planned.write_text(planned.read_text().replace("rounds = 1", "rounds = 2"))
    with pytest.raises(StudyError, match="is there, and is another study than"):
        new_study(folder, "planned", study=planned)


@pytest.mark.parametrize("name", ["../first", "", "Two words"])
def test_a_name_that_is_no_folder_s_is_refused(folder, name):
    with pytest.raises(StudyError, match="name"):
        new_study(folder, name)


def test_a_site_is_dismissed_from_one_study_alone(folder, second):
    server_operator.dismiss(second, "west")
    assert (set(second.sites()), set(folder.sites())) == (set(SITES[:2]), set(SITES))
