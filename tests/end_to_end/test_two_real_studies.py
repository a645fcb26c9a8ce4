"""Two studies of the same sites in one deployment: real processes, two servers, one budget at each site."""

import json
import sqlite3
import subprocess

import pytest
from support.network.real_federation import SITES, RealFederation

from grandrounds.common.errors import PrivacyError
from grandrounds.common.system.processes import PROGRAM, environment
from grandrounds.deploy.verify.claims import verify

pytestmark = pytest.mark.soak  # two deployments at once are more than two processors do in the time of the tests


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Both, carried at the same time; a worker was killed and started again while they ran."""
    first = RealFederation(tmp_path_factory.mktemp("f"))
    second = RealFederation(first.path / "second", beside=first)
    try:
        second.start("server")
        first.start()  # the sites' clients carry both
        running = [
            subprocess.Popen(
                [PROGRAM, "server", "run", each.server, "--json"], env=environment(), stdout=subprocess.PIPE, text=True
            )
            for each in (first, second)
        ]
        first.until("ExchangeClosed")
        first.kill_worker("south")
        said = [process.communicate(timeout=300)[0] for process in running]
        assert [json.loads(lines.splitlines()[-1])["event"] for lines in said] == ["finished"] * 2
        yield first, second
    finally:
        first.stop()
        second.stop()


def test_both_are_finished_and_verified_and_each_site_paid_for_both_from_one_budget(both):
    for study in both:
        verdict = verify(study.server / "study", manifest_hash=study.bundle.manifest.sha256)
        assert verdict.holds, verdict
    ids = {study.bundle.manifest.study_id for study in both}
    for site in SITES:
        with sqlite3.connect(both[0].path / site / "state" / "budget.sqlite") as state:
            reserved = state.execute("SELECT study, epsilon FROM reservations").fetchall()
            charged = state.execute("SELECT DISTINCT study FROM attempts WHERE charged").fetchall()
        assert {study for study, _ in reserved} == ids, "none was lost as the worker was killed"
        assert [epsilon for _, epsilon in reserved] == [4 * 10**12] * 2
        assert {study for (study,) in charged} == ids


def test_a_third_that_would_overdraw_the_budget_is_refused(both, tmp_path):
    with pytest.raises(PrivacyError, match="and 0 is left"):
        RealFederation(tmp_path / "third", beside=both[0])
