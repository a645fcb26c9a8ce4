"""A real federation whose processes are killed goes on by the same command, and its ledger is whole.

``python tests/killed_deployment.py`` kills, stops and starves every kind of process.
"""

from left_on_disk import Left, check_kept
from loopback import is_open, until
from real_federation import SITES, RealFederation

from grandrounds.common.audit import Audit
from grandrounds.deploy.verify import verify


def test_a_study_goes_on_after_all_processes_of_the_server_and_a_site_s_worker_were_killed(tmp_path):
    federation = RealFederation(tmp_path)
    ledger, states = federation.server / "study/ledger/entries.jsonl", {s: tmp_path / s / "state" for s in SITES}
    federation.start()
    until(lambda: federation.folder.is_serving and is_open(federation.gate), "the server is up")
    running = federation.running()
    federation.until("ExchangeClosed", count=3)  # every site has paid for the attempt
    federation.kill("server")
    federation.kill_worker("north")
    running.kill()
    before = Left.by(ledger, states)
    federation.start("server")
    events = federation.run()
    federation.stop()
    assert events[-1]["event"] == "finished", events
    after = Left.by(ledger, states)
    check_kept([before, after])
    assert [record.ended for record in Audit.of(after.lines).attempts] == [False, True], "one attempt is lost"
    assert all(after.paid(site) == {1, 2} for site in SITES)
    assert verify(federation.server / "study", manifest_hash=federation.bundle.manifest.sha256).holds
