"""A study whose sites join and leave: by the commands of its operators, signed, trained and verified to its end."""

import pytest
from support.study.carried_study import carried

from grandrounds.client.site.folder import SiteFolder
from grandrounds.common.errors import StudyError
from grandrounds.deploy.bench.loopback import LoopbackFederation
from grandrounds.deploy.enrolment.bundle import Bundle
from grandrounds.deploy.server_ops import bundling
from grandrounds.deploy.server_ops import commands as server_operator
from grandrounds.deploy.server_ops import follow as server_run
from grandrounds.deploy.site_ops import commands as site_operator
from grandrounds.deploy.verify.claims import verify
from grandrounds.server.run.progress_file import Finished

FIRST = ("north", "south", "west")
EAST = '[[sites]]\nname = "east"\nnominal_units = 20\n'


class Amended(LoopbackFederation):
    """A federation whose sites join what the server amends."""

    def amend(self, *sites):
        bundling.amend(self.folder)
        self.sites, self.bundle = sites, Bundle.read(self.folder.bundle)
        for site in sites:
            self._join(site)

    def state(self, text, instead=""):
        """study.toml with ``text`` in the place of ``instead``, or at its end."""
        path = self.folder.study_toml
        stated = path.read_text()
        path.write_text(stated.replace(instead, text) if instead else stated + text)


def amended(path):
    return Amended(path, sites=FIRST, rounds=3, max_attempts=6)


@pytest.fixture
def federation(tmp_path):
    return amended(tmp_path)


@pytest.fixture(scope="module")
def unbegun(tmp_path_factory):
    """A federation that no test changes."""
    return amended(tmp_path_factory.mktemp("unbegun"))


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """One whose study has begun, and whose folders stay as they are but for study.toml."""
    federation = amended(tmp_path_factory.mktemp("begun"))
    carried(federation, rounds=1)
    return federation


def test_a_site_joins_and_another_leaves_and_the_claim_is_that_of_the_one_schedule(federation):
    carried(federation, rounds=1)
    first = federation.bundle.manifest
    federation._found("east", 9099)
    federation._enroll("east")
    federation.state(EAST)
    federation.amend(*FIRST, "east")
    carried(federation, rounds=2)
    server_operator.dismiss(federation.folder, "west")
    federation.state("", '[[sites]]\nname = "west"\nnominal_units = 20\n')
    federation.amend("north", "south", "east")
    run = carried(federation)
    last = federation.bundle.manifest
    assert (last.version, last.study_id, last.schedule) == (3, first.study_id, first.schedule)
    assert [record.survivors for record in run.ledger.verified.rounds] == [
        FIRST,
        (*FIRST, "east"),
        ("north", "south", "east"),
    ]
    assert run.ledger.verified.closing_signatures == {"north", "south", "east"}
    verdict = verify(federation.folder.study.path, manifest_hash=last.sha256)
    assert verdict.holds, verdict
    assert list(server_run.run(federation.folder)) == [Finished()], "without a server, since nothing is left to do"
    server = federation.folder
    assert bundling.bundle(server)[-1] == f"next: grandrounds server report {server.path}"
    federation.state("rounds = 4", "rounds = 3")
    with pytest.raises(StudyError, match=r"training\.rounds is 4, and in the study 3") as refused:
        bundling.bundle(server)
    assert f"grandrounds server study new {server.path} NAME" in refused.value.fix


def test_a_site_that_left_takes_part_in_nothing_more(federation):
    carried(federation, rounds=1)
    west = SiteFolder(federation.path / "west")
    said = "\n".join(site_operator.leave(west, west.study()))
    assert "server's operator" in said
    with pytest.raises(StudyError, match="no study"):
        west.study()


def test_amending_again_is_the_same_and_another_amendment_waits_for_the_signatures(federation):
    carried(federation, rounds=1)
    federation._found("east", 9099)
    federation._enroll("east")
    federation.state(EAST)
    federation.amend(*FIRST, "east")
    before = federation.folder.bundle.read_bytes()
    bundling.amend(federation.folder)
    assert federation.folder.bundle.read_bytes() == before
    federation.state("deadline_s = 90", "deadline_s = 60")
    with pytest.raises(StudyError, match="version 2 of the manifest is fixed already"):
        bundling.amend(federation.folder)
    assert federation.folder.study.manifest() == federation.bundle.manifest


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("target_epsilon = 5.0", "target_epsilon = 4.0"),
        ("rounds = 4", "rounds = 3"),
        ("max_tokens = 32", "max_tokens = 16"),
    ],
)
def test_what_the_claim_rests_on_is_not_amended(begun, text, instead):
    begun.state(text, instead)
    with pytest.raises(StudyError, match=f"{text.split()[0]} is .*, and in the study") as refused:
        bundling.bundle(begun.folder)
    assert f"grandrounds server amend {begun.folder.path}" in refused.value.fix
    with pytest.raises(StudyError, match="the study has begun"):
        bundling.bundle_anew(begun.folder)
    with pytest.raises(StudyError, match=f"it changes .*{text.split()[0]}"):
        bundling.amend(begun.folder)
    begun.state(instead, text)
    assert begun.folder.study.manifest() == begun.bundle.manifest


def test_a_study_that_has_not_begun_is_not_amended(unbegun):
    with pytest.raises(StudyError, match="has not begun"):
        bundling.amend(unbegun.folder)


def test_only_who_is_enrolled_is_dismissed(unbegun):
    with pytest.raises(StudyError, match="east is not enrolled"):
        server_operator.dismiss(unbegun.folder, "east")
