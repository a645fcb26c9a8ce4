"""A site's commands: its road into a study and out of it, and its budgets as its privacy officer sees them."""

import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from datetime import datetime
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from rich.console import Console
from support.omop_notes import note, write_notes
from support.study.federation import small_manifest, small_study
from support.study.site_study import SiteStudy
from support.study.tiny_models import save_tiny_model

from grandrounds.client.budget.amounts import Amounts
from grandrounds.client.budget.asset import Asset
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.site.folder import SETTINGS, SiteFolder
from grandrounds.client.site.training_view import NEVER_LEAVES
from grandrounds.client.state.database import DATABASE
from grandrounds.client.state.site_state import SiteState
from grandrounds.common.crypto.identity import Identity, canonical_json
from grandrounds.common.errors import StoppedError
from grandrounds.common.sources.source import DataSource
from grandrounds.common.study.about import AboutSection
from grandrounds.common.study.artefacts import MANIFEST, PAGE
from grandrounds.deploy.cli.main import main
from grandrounds.deploy.site_ops import records as site_records
from grandrounds.deploy.views.budget import print_budget, render_budget

Run = Callable[[list[str]], tuple[int, str, str]]
FIRST, SECOND, THIRD = "ab" * 32, "cd" * 32, "ef" * 32


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(arguments: list[str]) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["grandrounds", "client", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return int(exit_.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of-the-user"))
    path = tmp_path / "north.csv"
    path.write_text("patient_id,text\n1,well\n", encoding="utf-8")
    return path


def test_records_that_have_a_site_are_given_no_second_budget_unless_it_is_said(
    records: Path, tmp_path: Path, run: Run
) -> None:
    model = save_tiny_model(tmp_path / "model")

    def init(folder: str, data: Path, *options: str) -> tuple[int, str, str]:
        return run(["init", str(tmp_path / folder), "--name=north", f"--data={data}", f"--model={model}", *options])

    assert init("north", records)[0] == init("north", records)[0] == 0, "and it may be repeated"
    (tmp_path / "by-another-name").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "linked.csv").hardlink_to(records)
    for same in (records, tmp_path / "by-another-name" / "north.csv", tmp_path / "linked.csv"):
        code, _, error = init("again", same)
        assert (code, (tmp_path / "again").exists()) == (1, False)
        assert f"has records of the site in {tmp_path / 'north'}" in error
    known = tmp_path / "of-the-user" / "grandrounds" / "sites.json"
    known.write_text(json.dumps({**json.loads(known.read_text()), f"/{'x' * 300}": "/of/others"}))  # for stat an error
    shutil.rmtree(tmp_path / "north")
    assert init("again", records)[0] == 1, "what was released is not forgotten with the folder"
    assert init("again", records, "--new-budget")[0] == 0
    assert init("again", records)[0] == 0


def test_a_list_of_sites_that_cannot_be_read_is_not_taken_for_none(records: Path, tmp_path: Path, run: Run) -> None:
    known = tmp_path / "of-the-user" / "grandrounds" / "sites.json"
    known.parent.parent.write_text("as of a user who has no home")
    init = ["init", str(tmp_path / "north"), "--name=north", f"--data={records}", "--model=tiny"]
    code, _, error = run(init)
    assert (code, (tmp_path / "north").exists()) == (1, False)
    assert "sites.lock cannot be opened" in error
    known.parent.parent.unlink()
    known.parent.mkdir(parents=True)
    for spoilt in ("{", "[]", '{"/a": 1}'):
        known.write_text(spoilt, encoding="utf-8")
        code, _, error = run(init)
        assert (code, (tmp_path / "north").exists()) == (1, False)
        assert "sites.json is damaged" in error


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    budget = SiteState.open(folder)
    reservations = Reservations(budget.database)
    reservations.register(Asset.summed("patients", epsilon=8.0, delta=1e-4))
    reservations.reserve("patients", FIRST, Amounts.rounded_up(epsilon=3.99571, delta=1e-5))
    reservations.reserve("patients", SECOND, Amounts.rounded_up(epsilon=1.0, delta=1e-5))
    reservations.register(Asset.renyi("children", epsilon=4.0, delta=1e-5, order=8))
    reservations.reserve("children", THIRD, Amounts.rounded_up(epsilon=2.0, delta=1e-5, rdp=0.5))
    reservations.register(Asset.synthetic("demo"))
    for attempt in (1, 2, 3):
        budget.begin(FIRST, attempt)
    budget.charge(FIRST, 3, {})
    budget.close()
    return folder


def test_the_terminal_shows_each_asset_with_a_bar_and_its_studies(run: Run, state: Path) -> None:
    code, out, err = run(["budget", f"--state={state}"])
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    for part in (
        "patients ε = 8 and δ = 0.0001 for each patient, summed",
        "4.996 of 8 reserved, 3.004 left",
        "2e-05 of 0.0001 reserved, 8e-05 left",
        "abababababab 3.996 1e-05 3 1",
        "cdcdcdcdcdcd 1 1e-05 0 0",
        "by Rényi divergences (RDP) of order 8",
        "0.5 of 2.784 reserved, 2.284 left",
        "demo synthetic records, without a limit No study has reserved any of it.",
        "Ending early gives nothing back",
        "only if no patient is in two of these data assets",
    ):
        assert part in text
    bar = next(line for line in out.splitlines() if "4.996 of 8" in line)
    assert (bar.count("█"), bar.count("▓"), bar.count("░")) == (16, 4, 12)


def test_json_holds_the_same_for_machines(run: Run, state: Path) -> None:
    code, out, _ = run(["budget", f"--state={state}", "--json"])
    assert code == 0
    patients, children, demo = json.loads(out)["assets"]
    assert patients["budget"] == {"epsilon": 8.0, "delta": 1e-4}
    assert patients["left"] == {"epsilon": 3.00429, "delta": 8e-05}
    assert patients["studies"][0] == {
        "study": FIRST,
        "reserved": {"epsilon": 3.99571, "delta": 1e-05},
        "attempts_begun": 3,
        "attempts_charged": 1,
    }
    assert (children["filter"], children["rdp_order"], children["studies"][0]["reserved"]["rdp"]) == ("rdp", 8, 0.5)
    assert (demo["budget"], demo["left"], demo["studies"]) == (None, {}, [])


class Page(HTMLParser):
    """What a page loads and runs, and what it draws."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.widths: list[float] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [name for name, _ in attrs if name in ("src", "href", "srcset") or name.startswith("on")]
        if ("class", "part") in attrs:
            self.widths.append(float(dict(attrs)["width"] or ""))


def test_the_page_stands_alone_and_draws_what_is_reserved(run: Run, state: Path, tmp_path: Path) -> None:
    code, _, _ = run(["budget", f"--state={state}", f"--html={tmp_path / 'budget.html'}"])
    assert code == 0
    text = (tmp_path / "budget.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.outside == ["href"] and 'href="#budgets"' in text
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "url(" not in text
    assert page.widths == pytest.approx([49.946, 12.5, 10, 10, 100 * 0.5 / 2.7844551, 10], abs=1e-3)
    for part in ("ε: 3.004 left.", "4.996 of 8 reserved by 2 studies", "RDP: 2.284 left.", "abababababab"):
        assert part in text


def test_the_page_says_where_each_study_stands_and_has_its_report(run: Run, state: Path, tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text('name = "north"\ndata = "notes.jsonl"\nmodel = "model"\n', encoding="utf-8")
    identities = {f"site-{number}": Identity.generate() for number in range(1, 6)}
    for study_id, title in ((FIRST, "Letters <2026>"), (SECOND, None)):
        study = small_study().model_copy(update={"about": AboutSection(title=title)})
        manifest = small_manifest(study, identities, Identity.generate(), dimension=7, study_id=study_id)
        joined = SiteFolder(tmp_path).of(study_id)
        joined.results.mkdir(parents=True)
        (joined.path / MANIFEST).write_bytes(canonical_json(manifest.model_dump(mode="json")))
    (SiteFolder(tmp_path).of(FIRST).results / PAGE).write_text("a page", encoding="utf-8")
    (tmp_path / "pages").mkdir()
    html = tmp_path / "pages" / "budget.html"
    assert run(["budget", f"--state={state}", f"--html={html}"])[0] == 0
    page = html.read_text(encoding="utf-8")
    assert "the patients of north" in page and "Letters &lt;2026&gt;" in page
    (link,) = re.findall('finished: <a href="([^"]*)">', page)
    assert (html.parent / link).read_text() == "a page"
    assert ">joined, not begun<" in page and ">left, or not joined here<" in page


def test_one_asset_needs_no_word_about_others(tmp_path: Path) -> None:
    reservations = Reservations(SiteState.open(tmp_path).database)
    page_of = partial(render_budget, site="north", written=datetime(2026, 11, 30), studies={}, beside=tmp_path)
    assert "No data asset is registered" in page_of(reservations.statements())
    reservations.register(Asset.summed("patients", epsilon=8.0, delta=1e-4))
    page = page_of(reservations.statements())
    assert "2026-11-30 00:00 UTC" in page and "the patients of north" in page
    assert "at most 2,981 times as likely with a patient as without" in page and "Smaller is stronger" in page
    assert "No study has reserved any of it." in page
    assert "no patient is in two" not in page


@pytest.mark.parametrize("epsilon", [1e-9, 7.999999])
def test_what_little_is_reserved_is_seen_and_the_bar_keeps_its_length(epsilon: float) -> None:
    reservations = Reservations(SiteState.in_memory().database)
    reservations.register(Asset.summed("patients", epsilon=8.0, delta=1e-4))
    reservations.reserve("patients", FIRST, Amounts.rounded_up(epsilon=epsilon, delta=1e-9))
    reservations.reserve("patients", SECOND, Amounts.rounded_up(epsilon=1e-9, delta=1e-9))
    console = Console(width=100, record=True, file=io.StringIO())
    print_budget(console, reservations.statements())
    (bar,) = re.findall("ε  ([█▓░]+)", console.export_text())
    assert len(bar) == 32
    assert bar.startswith("█")


def test_a_state_that_was_never_used_says_so(run: Run, tmp_path: Path) -> None:
    SiteState.open(tmp_path).close()
    code, out, _ = run(["budget", f"--state={tmp_path}"])
    assert code == 0
    assert "No data asset is registered yet" in out


@pytest.mark.parametrize("content", [None, b"no database at all" * 100])
def test_no_state_or_a_damaged_one_is_a_diagnosis(run: Run, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / DATABASE).write_bytes(content)
    code, out, err = run(["budget", f"--state={tmp_path}", f"--html={tmp_path / 'budget.html'}"])
    assert (code, out) == (1, "")
    assert "What to do: " in err
    assert not (tmp_path / "budget.html").exists()


def test_looking_needs_no_lock_and_the_help_loads_no_model_library(run: Run, state: Path) -> None:
    worker = SiteState.open(state)
    assert run(["budget", f"--state={state}"])[0] == 0
    worker.close()
    probe = (
        "import sys; sys.argv = ['grandrounds', 'client', '--help']\n"
        "from grandrounds.deploy.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print({'torch', 'flwr', 'dp_accounting', 'scipy', 'jinja2'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "budget" in result.stdout
    assert result.stdout.endswith("set()\n")


def test_the_log_is_exported_and_a_change_in_it_is_an_exit_code(run: Run, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('name = "north"\ndata = "notes.csv"\nmodel = "tiny"\n')
    assert run(["pause", str(tmp_path)])[0] == 0
    assert run(["unpause", str(tmp_path)])[:2] == (0, "this site takes part again\n")
    code, out, _ = run(["log", str(tmp_path)])
    assert (code, [json.loads(line)["event"] for line in out.splitlines()]) == (0, ["paused", "unpaused"])
    file = tmp_path / "site-log.jsonl"
    file.write_text(file.read_text().replace('"paused"', '"started"'))
    code, out, err = run(["log", str(tmp_path), "--format", "cef"])
    assert code == 1
    assert out.splitlines()[1].startswith("CEF:0|Grand Rounds|client|")
    assert "the log does not continue what was there before" in err
    file.unlink()
    file.mkdir()
    assert run(["pause", str(tmp_path)])[0] == 1
    assert SiteFolder(tmp_path).is_paused, "a site can be stopped, whatever can be noted"
    assert run(["pause", str(tmp_path / "none")])[0] == 1 and not (tmp_path / "none").exists()


@pytest.fixture
def joined(run: Run, tmp_path: Path) -> Path:
    """A site's folder after its operator's first commands."""
    study = SiteStudy(save_tiny_model(tmp_path / "model"))
    federation = study.federation()
    folder = study.initialised(tmp_path / "site", federation)
    study.bundle(federation, tmp_path / "tls").write(tmp_path / "study.zip")
    code, out, _ = run(["join", str(folder.path), str(tmp_path / "study.zip"), "--yes"])
    assert code == 0
    assert federation.manifest.sha256 in out
    return folder.path


def test_a_site_checks_itself_leaves_and_has_left(run: Run, joined: Path) -> None:
    code, out, _ = run(["check", str(joined)])
    assert code == 0
    assert "nothing was sent" in out
    code, out, err = run(["watch", str(joined)])
    assert (code, out) == (1, f"{NEVER_LEAVES}\n") and "training_view = true in site.toml" in err
    code, out, _ = run(["leave", str(joined)])
    assert code == 0
    assert "tell the server's operator" in out
    networks = Path("/proc/self/ns/net").readlink()
    for command in ("leave", "start", "worker", "node"):
        code, out, err = run([command, str(joined)])
        assert (code, out) == (1, "")
        assert "grandrounds client join DIR study.zip" in err
    code, out, _ = run(["check", str(joined)])
    assert code == 0
    assert "your median record has 13 tokens; studies read windows of your text, of which it makes about 2 of 64" in out
    assert "no study was joined yet; nothing was reserved, and nothing was sent" in out
    settings = joined / "site.toml"
    settings.write_text(settings.read_text().replace('"cpu"', '"cuda:99"', 1))
    code, _, err = run(["check", str(joined)])
    assert code == 1 and "or choose cpu" in err.replace("is free, or cpu", "or choose cpu"), "before any study"
    assert Path("/proc/self/ns/net").readlink() == networks, "who has no study gives up nothing"


def test_a_site_s_records_are_shown_to_its_operator_alone(run: Run, joined: Path) -> None:
    noted = (joined / "site-log.jsonl").read_bytes()
    code, out, err = run(["data", str(joined)])
    assert (code, err) == (0, "")
    assert (
        "2, without whom the opt-outs mean (lines: 1)" in out and f"for study {SiteFolder(joined).study().name}" in out
    )
    assert f"the same as a page, which is for this site alone, too: {joined / 'data.html'}" in out
    assert (joined / "data.html").stat().st_mode & 0o777 == 0o600
    assert "no complaints" not in out + (joined / "data.html").read_text()
    code, out, _ = run(["data", str(joined), "--json"])
    figures = json.loads(out)
    assert (code, figures["patients"], figures["step"]["most_units"]) == (0, 2, 5)
    assert (joined / "site-log.jsonl").read_bytes() == noted, "nothing of it is in a log"


def test_records_are_prepared_once_and_looked_at_and_forgotten_and_removed(
    run: Run, joined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everything() -> bytes:
        return b"".join(path.read_bytes() for path in (joined / "prepared").rglob("*") if path.is_file())

    def interrupted(records: int, share: float) -> None:
        assert (records, share) == (3, 1.0)
        raise KeyboardInterrupt

    site = SiteFolder(joined)
    with pytest.raises(StoppedError, match="this was interrupted") as refused:
        site_records.prepare(site, site.study(), again=False, progress=interrupted)
    assert f"grandrounds client prepare {joined} {site.study().name}" in refused.value.fix
    code, out, _ = run(["prepare", str(joined)])
    assert (code, out.splitlines()[0]) == (0, "the records are prepared")
    assert "2 patients; your text makes 2 windows of at most 16 tokens" in out
    assert f"next: grandrounds client check {joined} {SiteFolder(joined).study().name}" in out
    assert run(["prepare", str(joined)])[1].startswith(
        "the records were prepared before, and nothing has changed since"
    )
    assert run(["prepare", str(joined), "--again"])[1].startswith("the records are prepared\n")
    exact = json.loads(run(["data", str(joined), "--json"])[1])
    assert (exact["sampled"], exact["windows"][0]["windows"], exact["patients"], exact["unmatched"]) == (None, 2, 2, [])
    assert b"patient-1" not in everything(), "who opted out before is not prepared at all"
    (joined / "opted-out.txt").write_text("patient-1\npatient-2\npatient-9\n")
    code, out, _ = run(["forget", str(joined)])
    assert code == 0 and "1 of them were there" in out and "1 of the opt-outs' 3 lines match no patient" in out
    assert b"patient-1" not in b"".join(
        path.read_bytes() for path in (joined / "prepared").rglob("*") if path.is_file()
    )
    assert json.loads(run(["log", str(joined)])[1].splitlines()[-1])["event"] == "forgot"
    assert run(["check", str(joined)])[0] == 0, "an opt-out that was carried out is not taken for a mistake"
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert run(["data", str(joined), "--delete"])[0] == 1 and any((joined / "prepared").glob("*"))
    code, out, _ = run(["data", str(joined), "--delete", "--yes"])
    assert code == 0 and not [path for path in (joined / "prepared").iterdir() if path.is_dir()]
    assert json.loads(run(["data", str(joined), "--json"])[1])["sampled"] == 1, "estimated, as nothing is prepared"


def test_a_folder_that_init_did_not_make_is_named_before_anything_is_asked(run: Run, tmp_path: Path) -> None:
    for command in ("leave", "health", "recover"):
        code, out, err = run([command, str(tmp_path / "site")])
        assert (code, out) == (1, "")
        assert "site.toml cannot be read" in err and "give the folder that `grandrounds client init` made" in err


def test_a_site_whose_programs_are_away_says_so_for_people_and_for_machines(run: Run, joined: Path) -> None:
    code, out, _ = run(["health", str(joined)])
    assert code == 1
    away = f"does not run; it was never started; start it: grandrounds client start {joined}"
    assert out.splitlines()[:2] == [f"worker  {away}", f"node    {away}"]
    code, out, _ = run(["health", str(joined), "--json"])
    found = json.loads(out)
    assert (code, found["well"], found["worker"], found["node"]) == (1, False, away, away)


def test_a_bundle_is_not_joined_unless_somebody_agrees(
    run: Run, joined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(["leave", str(joined)])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    code, _, err = run(["join", str(joined), str(tmp_path / "study.zip")])
    assert (code, "nothing was joined" in err, "Aborted" in err) == (1, True, False), "where nobody can be asked"
    questions: list[str] = []
    monkeypatch.setattr("grandrounds.deploy.cli.client.confirmed", lambda question: questions.append(question))
    code, out, err = run(["join", str(joined), str(tmp_path / "study.zip")])
    assert code == 1
    assert "budget    patients: ε = 99 before, 50 reserved by this study, 49 left after; δ = 0.001 before" in out
    assert "nothing was joined" in err
    assert not list((joined / "studies").iterdir())
    policy = joined / "policy.toml"
    policy.write_text(policy.read_text().replace("[data]", '[data]\nasset = "others"'))
    assert run(["join", str(joined), str(tmp_path / "study.zip"), "--yes"])[0] == 1
    assert questions == [
        "Does this site agree?",
        "Has others, a data asset that is new here, other patients than patients, and none of theirs?",
    ]
    assert run(["join", str(joined), str(tmp_path / "study.zip"), "--yes", "--new-asset"])[0] == 0
    (joined / "state" / DATABASE).unlink()
    code, _, err = run(["recover", str(joined)])
    assert code == 1
    assert "nothing was recovered" in err


@pytest.mark.parametrize(
    "fields",
    [
        {"package_version": "1\x1b[2J\nprotects  each patient, ε = 0.01"},
        {"package_version": "9.9", "package_sha256": "\x9b2J\nprotects  each patient, ε = 0.01"},
        {"study": {"model": {"name": "a\x1b[2J\nprotects  each patient, ε = 0.01"}}},
    ],
)
def test_no_bundle_writes_on_the_screen_on_which_a_site_agrees(
    run: Run, joined: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    with zipfile.ZipFile(tmp_path / "study.zip") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(parts["study.json"])
    for section, values in fields.pop("study", {}).items():
        manifest["study"][section] |= values
    parts["study.json"] = json.dumps(manifest | fields).encode()
    with zipfile.ZipFile(tmp_path / "hostile.zip", "w") as archive:
        for name, data in parts.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    code, out, err = run(["join", str(joined), str(tmp_path / "hostile.zip"), "--yes"])
    assert (code, out) == (1, "")
    assert err.removesuffix("\n").isprintable()


def test_what_talks_to_the_server_loads_no_model_library() -> None:
    probe = (
        "import sys, grandrounds.deploy.site_ops.programs, grandrounds.deploy.site_ops.commands\n"
        "print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_a_site_s_data_may_be_described_in_a_file_and_no_part_of_them_is_given_a_second_budget(
    records: Path, tmp_path: Path, run: Run
) -> None:
    model, exports = save_tiny_model(tmp_path / "model"), tmp_path / "exports"
    exports.mkdir()
    for year in (2024, 2025):
        (exports / f"{year}.csv").write_text("mrn;kind;note\n007;DS;well\n8;XX;ill\n", encoding="utf-8")
    (tmp_path / "walk.csv").write_text("from,to\n7,P7\n", encoding="utf-8")
    described = tmp_path / "data.toml"
    table = 'files = ["exports/2*.csv"]\npatient = "mrn"\ntext = "{kind}: {note}"\nwhere = { kind = "DS" }\n'
    described.write_text(f'[data]\n{table}crosswalk = "walk.csv"\n[held_out]\n{table}', encoding="utf-8")

    def init(folder: str, data: Path) -> tuple[int, str, str]:
        return run(["init", str(tmp_path / folder), "--name=north", f"--data={data}", f"--model={model}"])

    code, out, error = init("north", described)
    assert code == 0, error
    assert "2*.csv: 2 records (patient_id, text) of 1 patients" in out
    settings = SiteFolder(tmp_path / "north").settings()
    assert settings.data.paths == (exports, tmp_path / "walk.csv")
    assert settings.held_out is not None and settings.held_out.where == {"kind": ("DS",)}
    for part in (exports / "2024.csv", exports):
        assert f"has records of the site in {tmp_path / 'north'}" in init("again", part)[2]
    (exports / "other.csv").write_text("patient_id,text\n1,well\n", encoding="utf-8")
    assert init("other", exports / "other.csv")[0] == 0
    text = (tmp_path / "other" / SETTINGS).read_text(encoding="utf-8")
    start = text.index("# [data]")
    example = "\n".join(line.removeprefix("# ") for line in text[start:].splitlines() if " = " in line[:14])
    assert DataSource.model_validate(tomllib.loads(f"[data]\n{example}")["data"]).where == {"status": ("final",)}
    write_notes(sqlalchemy.URL.create("sqlite", database=str(tmp_path / "cdm.db")), [note(1, 7, "well")])
    described.write_text('[data.omop]\nurl = "sqlite:///cdm.db"\nlast_date = 2024-12-31\n', encoding="utf-8")
    code, out, error = init("stored", described)
    assert (code, error) == (0, ""), error
    assert "cdm.db: 1 records (patient_id, text) of 1 patients" in out
    assert SiteFolder(tmp_path / "stored").settings().data.paths == (tmp_path / "cdm.db",)
    described.write_text("[data]\nfile = 7\n", encoding="utf-8")
    assert "data.file: no such field; did you mean data.files?" in init("more", described)[2]
