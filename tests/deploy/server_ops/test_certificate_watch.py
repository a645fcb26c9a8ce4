"""That certificates end is told while there is time, and as long as a server runs."""

from datetime import UTC, datetime, timedelta

import pytest
from support.network.certificates import reissue
from support.network.loopback import free_ports

from grandrounds.deploy.enrolment.certificates import CERTIFICATE, check_certificates
from grandrounds.deploy.server_ops import commands as server_operator
from grandrounds.deploy.server_ops import follow
from grandrounds.deploy.server_ops.certificate_watch import CertificateWatch
from grandrounds.server.run.server_folder import ServerFolder

DAY = timedelta(days=1)


@pytest.fixture
def folder(tmp_path):
    """A server that was initialised, and is not started."""
    gate, superlink = free_ports(2)
    folder = ServerFolder(tmp_path / "server")
    server_operator.init(folder, host="localhost", port=gate, superlink_port=superlink)
    return folder


class Clock:
    """A time that a test moves on."""

    def __init__(self):
        self.now = datetime.now(UTC)

    def __call__(self):
        return self.now


def test_an_end_that_is_near_is_told_once_a_day_while_the_server_runs(folder):
    said: list[str] = []
    clock = Clock()
    reissue(folder.certificates, ends=clock.now + 32.5 * DAY)
    watch = CertificateWatch(folder, said.append, clock)
    for _ in range(34):
        before = len(said)
        for _ in range(3):
            watch.tend()
        assert len(said) - before <= 1
        clock.now += DAY
    assert said[0].startswith(f"the certificate in {folder.certificates} ends in 29 days")
    assert len(said) == 31
    assert "cannot serve: it is in force" in said[-1]


def test_the_certificate_between_the_programs_of_the_machine_is_watched_too(folder):
    said: list[str] = []
    reissue(folder.inside, ends=datetime.now(UTC) + 9 * DAY)
    CertificateWatch(folder, said.append).tend()
    assert [line.split(", ")[0] for line in said] == [f"the certificate in {folder.inside} ends in eight days"]


def test_the_status_says_until_when_sites_can_connect(folder):
    assert follow.status(folder)["certificate"].startswith("holds until ")
    reissue(folder.certificates, ends=datetime.now(UTC) + 9 * DAY)
    assert ", in eight days: `grandrounds server init` renews it" in follow.status(folder)["certificate"]
    (folder.certificates / CERTIFICATE).unlink()
    assert "cannot be read" in follow.status(folder)["certificate"]


def test_a_certificate_holds_no_longer_than_its_chain_and_its_authority(folder):
    now = datetime.now(UTC)
    own = check_certificates(folder.certificates, "localhost", now=now)
    long = now + 5000 * DAY
    reissue(folder.certificates, ends=long)
    assert own < check_certificates(folder.certificates, "localhost", now=now) < long - now


def test_init_says_how_many_sites_a_study_needs_to_go_on_without_one(folder):
    settings = folder.settings()
    again = {"host": settings.host, "port": settings.port, "superlink_port": settings.superlink_port}
    said = "\n".join(server_operator.init(folder, **again))
    assert "With 4 sites, of which 3 must answer, one may be lost" in said
