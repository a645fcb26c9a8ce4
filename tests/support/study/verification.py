"""What ``grandrounds verify`` finds in a folder, as the tests ask for it; and what a server can sign anew."""

from pathlib import Path
from typing import Any

from grandrounds.common.crypto.identity import sha256
from grandrounds.common.ledger import entries
from grandrounds.common.study.artefacts import CARD, PAGE, REPORT, RESULTS
from grandrounds.deploy.verify.claims import verify
from grandrounds.deploy.verify.verdict import Finding, Status
from grandrounds.server.report.page import render_html, render_model_card
from grandrounds.server.report.report import render_json
from support.study.verified_study import SmallStudy, write_ledger

# Claims by a word of theirs that no other has.
WHOLE, MANIFEST, KNOWN = "chained", "in the ledger", "you know"
PRIVACY, FOLLOWS, PAGE_SAYS, CARD_SAYS = "The privacy", "follows from", "The page", "model card"
FILES, TRAINED, FROZEN, USED, END = "The files", "trained numbers", "other numbers", "is used", "the end"
STEPS = "what its sum made"


def found(folder: Path, claim: str, **options: Any) -> Finding:
    """What became of one claim."""
    (finding,) = [finding for finding in verify(folder, **options).findings if claim in finding.claim]
    return finding


def refused(folder: Path, *claims: str) -> str:
    """Asserts that exactly these claims do not agree; what is said of the first."""
    verdict = verify(folder)
    wrong = [finding for finding in verdict.findings if finding.status is Status.DISAGREES]
    assert not verdict.holds
    assert [claim for claim in claims if not any(claim in finding.claim for finding in wrong)] == []
    assert [finding for finding in wrong if not any(claim in finding.claim for claim in claims)] == []
    assert not any("could not be checked" in finding.detail for finding in wrong)
    return next(finding.detail for finding in wrong if claims[0] in finding.claim)


def reclosed(study: SmallStudy, folder: Path) -> None:
    """The server signs the end of the study anew, over whatever the folder now holds."""
    lines = study.lines[: study.report()["ledger"]["length"]]
    files = {path: sha256((folder / path).read_bytes()) for path in RESULTS}
    body = entries.StudyClosed(charges=study.ledger.verified.charges, files=files)
    write_ledger(folder, [*lines, study.forged(body, after=lines[-1])])


def rewritten(folder: Path, report: dict[str, Any]) -> None:
    """Replace the report, its page and its card."""
    (folder / REPORT).write_bytes(render_json(report))
    (folder / PAGE).write_text(render_html(report), encoding="utf-8")
    (folder / CARD).write_text(render_model_card(report), encoding="utf-8")
