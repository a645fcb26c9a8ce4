"""A real federation whose processes are killed goes on by the same command, and its ledger is whole."""

import sqlite3

from real_federation import SITES, RealFederation

from grandrounds.common.audit import Audit
from grandrounds.deploy.verify import verify


def charged(federation, site):
    with sqlite3.connect(federation.path / site / "state" / "budget.sqlite") as database:
        return database.execute("SELECT attempt FROM attempts WHERE charged ORDER BY attempt").fetchall()


def test_a_study_goes_on_after_all_processes_of_the_server_and_a_site_s_worker_were_killed(tmp_path):
    federation = RealFederation(tmp_path, rounds=2, max_attempts=6)
    federation.start()
    running = federation.running()
    federation.until("RoundClosed")
    federation.kill("server")
    federation.kill_worker("north")
    running.kill()
    before = (federation.server / "study" / "ledger" / "entries.jsonl").read_bytes()
    federation.start("server")
    events = federation.run()
    federation.stop()
    assert events[-1]["event"] == "finished", events
    ledger = (federation.server / "study" / "ledger" / "entries.jsonl").read_bytes()
    assert ledger.startswith(before), "nothing that was entered is lost"
    assert verify(federation.server / "study", manifest_hash=federation.bundle.manifest.sha256).holds
    audit = Audit.of(ledger.splitlines())
    assert len(audit.rounds) == 2
    for site in SITES:
        paid = charged(federation, site)
        assert len(paid) == len(set(paid)) >= audit.charges[site], "no charge is lost, and none is doubled"
        assert len(paid) <= len(audit.attempts)
