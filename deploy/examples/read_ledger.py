"""Read and check a ledger: python read_ledger.py [STUDY_FOLDER]; without a folder, study_in_python.py makes one.

Who was there, what was released, and what it cost, from what the sites and the server signed and from nothing else.
"""

from dataclasses import replace
from pathlib import Path

from grandrounds import verify
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.privacy.accountant import epsilon
from grandrounds.deploy.examples.study_in_python import finished
from grandrounds.server.report.rounding import up


def read(folder: Path) -> None:
    """Print what the ledger says; a LedgerError names the first entry that no honest study contains."""
    verified = VerifiedLedger.of((folder / "ledger" / "entries.jsonl").read_bytes().splitlines())
    manifest = verified.manifest
    print(f"{len(verified.ledger)} entries, whose end {len(verified.closing_signatures)} sites signed")
    for attempt in verified.attempts:
        released = f"the sum of {', '.join(attempt.survivors)}" if attempt.unmasked else "nothing"
        lost = "".join(f"; {site} was lost at {exchange}" for site, exchange in attempt.dropouts.items())
        print(f"attempt {attempt.attempt}, for round {attempt.round}: {released}{lost}")
    if manifest.schedule is None:
        print("no noise, and no privacy")
        return
    # Every attempt counts, whatever became of it; the claim is of all that there may be.
    begun = replace(manifest.schedule, count=len(verified.attempts) * manifest.study.training.local_steps)
    for schedule in (begun, manifest.schedule):
        cost = epsilon(schedule, delta=manifest.delta)
        print(f"{schedule.count} noisy sums cost each patient at most ε = {up(cost.epsilon)} at δ = {manifest.delta:g}")


if __name__ == "__main__":
    study_folder = finished()
    read(study_folder)
    print("nothing in the folder contradicts the study's claims:", verify(study_folder).holds)
