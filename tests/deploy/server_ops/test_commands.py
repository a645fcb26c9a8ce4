"""The server operator's road, with the real programs where one is started: each step once, and again."""

import json
import os
import signal
import threading
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from support.network.loopback import free_ports, until
from support.study.enrolled_server import SITES, card, initialised

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import StorageError, StudyError
from grandrounds.deploy.enrolment.certificates import CA_KEY, CERTIFICATE, make_certificates
from grandrounds.deploy.server_ops import commands as server_operator
from grandrounds.deploy.server_ops import follow as server_run
from grandrounds.deploy.server_ops.flwr import FlowerControl
from grandrounds.deploy.server_ops.programs import ServerPrograms
from grandrounds.server.run.progress_file import Waiting
from grandrounds.server.run.server_folder import ServerFolder


def contents(folder):
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


@contextmanager
def started(folder):
    """The server, and the lines that it says."""
    stop = threading.Event()
    said: list[str] = []
    thread = threading.Thread(target=lambda: server_operator.start(folder, stopped=stop.is_set, say=said.append))
    thread.start()
    try:
        until(lambda: any("is open for" in line for line in said) or not thread.is_alive(), "the server is started")
        yield said
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def server(bundled):
    """The same, started."""
    with started(bundled) as said:
        yield bundled, said


def test_a_second_init_changes_nothing(tmp_path):
    folder = initialised(tmp_path / "server")
    before, settings = contents(folder), folder.settings()
    again = {"host": settings.host, "port": settings.port, "superlink_port": settings.superlink_port}
    server_operator.init(folder, **again)
    assert contents(folder) == before
    with pytest.raises(StudyError, match="localhost:"):
        server_operator.init(folder, **{**again, "port": 1})
    with pytest.raises(StudyError, match="names the evaluation records"):
        server_operator.init(folder, **again, evaluation=tmp_path / "other.jsonl")
    server_operator.init(folder, **again, evaluation=folder.path / "evaluation.jsonl")
    assert contents(folder) == before


def test_what_init_makes_is_for_nobody_else(tmp_path):
    folder = initialised(tmp_path / "server")
    assert folder.path.stat().st_mode & 0o777 == folder.flower.stat().st_mode & 0o777 == 0o700


def test_given_certificates_are_shown_to_sites_and_not_used_inside(tmp_path):
    make_certificates(tmp_path / "given", "localhost")
    given = tuple(tmp_path / "given" / name for name in ("server.pem", "server.key", "ca.crt"))
    folder = initialised(tmp_path / "server", certificates=given)
    assert (folder.certificates / CERTIFICATE).read_bytes() == given[0].read_bytes()
    assert (folder.inside / CERTIFICATE).read_bytes() != given[0].read_bytes()


def test_a_certificate_that_is_missing_or_damaged_is_made_anew_by_the_same_authority(tmp_path):
    folder = initialised(tmp_path / "server")
    authority = (folder.certificates / "ca.crt").read_bytes()
    for spoil in (Path.unlink, lambda path: path.write_bytes(b"no certificate")):
        before = (folder.certificates / CERTIFICATE).read_bytes()
        spoil(folder.certificates / CERTIFICATE)
        settings = folder.settings()
        server_operator.init(folder, host="localhost", port=settings.port, superlink_port=settings.superlink_port)
        assert (folder.certificates / CERTIFICATE).read_bytes() != before
        assert (folder.certificates / "ca.crt").read_bytes() == authority, "sites need nothing new"


def test_a_certificate_that_ends_soon_is_renewed(tmp_path, monkeypatch):
    folder = initialised(tmp_path / "server")
    before, settings = (folder.certificates / CERTIFICATE).read_bytes(), folder.settings()
    again = partial(
        server_operator.init, folder, host="localhost", port=settings.port, superlink_port=settings.superlink_port
    )
    again()
    assert (folder.certificates / CERTIFICATE).read_bytes() == before
    monkeypatch.setattr(server_operator, "RENEW_WITHIN", timedelta(days=400))
    again()
    assert (folder.certificates / CERTIFICATE).read_bytes() != before


@pytest.mark.parametrize("spoilt", ["server.pem", "server.key", "ca.crt"])
@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"no certificate")])
def test_given_certificates_that_cannot_serve_leave_those_that_do(tmp_path, spoilt, spoil):
    folder = initialised(tmp_path / "server")
    make_certificates(tmp_path / "given", "localhost")
    spoil(tmp_path / "given" / spoilt)
    given, before = (
        tuple(tmp_path / "given" / name for name in ("server.pem", "server.key", "ca.crt")),
        contents(folder),
    )
    settings = folder.settings()
    with pytest.raises((StudyError, StorageError)):
        server_operator.init(
            folder,
            host=settings.host,
            port=settings.port,
            superlink_port=settings.superlink_port,
            certificates=given,
        )
    assert contents(folder) == before and (folder.certificates / CA_KEY).exists()


def test_given_certificates_of_another_host_are_refused(tmp_path):
    make_certificates(tmp_path / "given", "other.example.org")
    given = tuple(tmp_path / "given" / name for name in ("server.pem", "server.key", "ca.crt"))
    with pytest.raises(StudyError, match=r"not for server\.example\.org"):
        server_operator.init(
            ServerFolder(tmp_path / "server"),
            host="server.example.org",
            port=9092,
            superlink_port=9093,
            certificates=given,
        )


def test_a_site_keeps_its_key_and_may_change_its_node_s(tmp_path):
    folder, key = initialised(tmp_path / "server"), Identity.generate()
    server_operator.enroll(folder, card(tmp_path, "north", key))
    before = folder.sites()["north"]
    server_operator.enroll(folder, card(tmp_path, "north", key))
    after = folder.sites()["north"]
    assert (after.public_key, after.node_key != before.node_key) == (before.public_key, True)
    with pytest.raises(StudyError, match="another key"):
        server_operator.enroll(folder, card(tmp_path, "north"))
    with pytest.raises(StudyError, match="a key of north"):
        server_operator.enroll(folder, card(tmp_path, "south", key))
    assert folder.sites() == {"north": after}


def test_a_node_s_key_is_one_s_own_whatever_comment_stands_beside_it(tmp_path):
    folder, norths = initialised(tmp_path / "server"), card(tmp_path, "north", Identity.generate())
    server_operator.enroll(folder, norths)
    key = folder.sites()["north"].node_key.split()
    copied = json.loads(card(tmp_path, "south").read_text()) | {"node_key": f"{key[0]} {key[1]} me@south"}
    (tmp_path / "copied.json").write_text(json.dumps(copied))
    with pytest.raises(StudyError, match="a key of north"):
        server_operator.enroll(folder, tmp_path / "copied.json")
    again = json.loads(norths.read_text()) | {"node_key": f"{key[0]} {key[1]} another@north"}
    (tmp_path / "again.json").write_text(json.dumps(again))
    server_operator.enroll(folder, tmp_path / "again.json")
    assert folder.withdrawn == set()


@pytest.mark.parametrize("content", ["", "{}", '{"format": "grandrounds/site/v2"}'])
def test_a_file_that_is_no_site_s_card_is_refused(tmp_path, content):
    folder, file = initialised(tmp_path / "server"), tmp_path / "site.json"
    file.write_text(content)
    with pytest.raises(StudyError, match="no site's card"):
        server_operator.enroll(folder, card(tmp_path, "north"), file)
    assert not folder.sites(), "all of the cards, or none: the keys of all are printed, to be compared"


def test_the_nodes_of_all_sites_are_let_in_and_their_sites_are_named_until_they_connect(server):
    folder, said = server
    assert {node.node_id for node in FlowerControl(folder).nodes()} == {
        site.node_id for site in folder.sites().values()
    }
    status = server_run.status(folder)
    assert {site["connection"] for site in status["sites"].values()} == {"registered"}
    called = "have north, south, west run: grandrounds client start DIR"
    assert status["next"].startswith(called) and status["next"].endswith(f"then grandrounds server run {folder.path}")
    assert f"next, once they have run `grandrounds client start`: grandrounds server run {folder.path}" in said


def let_in(folder):
    return {node.node_id for node in FlowerControl(folder).nodes()}


def test_a_node_whose_id_was_not_noted_is_found_again(server):
    folder, _ = server
    sites = folder.sites()
    folder.save_sites({**sites, "north": sites["north"].model_copy(update={"node_id": None})})
    server_operator.admit_nodes(folder)
    assert folder.sites() == sites


@pytest.fixture
def unheard(monkeypatch):
    """Of what is changed Flower hears nothing by itself."""
    with monkeypatch.context() as stopped:
        stopped.setattr(ServerFolder, "is_serving", False)
        yield


def test_who_is_enrolled_is_let_in_and_nobody_else_whenever_flower_hears_of_it(server, tmp_path, unheard):
    folder, _ = server
    before, east = folder.sites(), card(tmp_path, "east")
    for one in (east, card(tmp_path, "centre")):
        server_operator.enroll(folder, one)
    card(tmp_path, "stranger")
    FlowerControl(folder).register("stranger", (tmp_path / "stranger.pub").read_text())
    server_operator.admit_nodes(folder)  # as each start does
    known = {site.node_id for site in folder.sites().values()}
    for name in ("east", "centre"):
        server_operator.dismiss(folder, name)
    server_operator.enroll(folder, east)
    assert let_in(folder) == known, "it has not heard of it"
    # A key that was withdrawn is let in no more, and is not taken for that of the other site that left.
    with pytest.raises(StudyError, match="Flower knows the node key of east"):
        server_operator.admit_nodes(folder)
    assert let_in(folder) == {site.node_id for site in before.values()}
    server_operator.dismiss(folder, "east")
    assert folder.sites() == before


def test_a_site_is_dismissed_before_flower_hears_of_it(server, tmp_path, monkeypatch):
    folder, _ = server
    before = folder.sites()
    folder.save_sites({**before, "east": before["north"]})
    monkeypatch.setattr(FlowerControl, "_control", killed)
    with pytest.raises(KeyboardInterrupt):
        server_operator.dismiss(folder, "east")
    monkeypatch.undo()
    assert (folder.sites(), folder.withdrawn) == (before, {before["north"].node_id})
    folder.save_sites(before, withdrawn=())


def killed(*arguments):
    raise KeyboardInterrupt


def test_a_node_of_a_machine_that_was_lost_is_let_in_no_more(server, tmp_path):
    folder, _ = server
    sites, key = folder.sites(), Identity.generate()
    server_operator.enroll(folder, card(tmp_path, "east", key))
    lost = folder.sites()["east"].node_id
    server_operator.enroll(folder, card(tmp_path, "east", key))
    new = folder.sites()["east"].node_id
    assert {node.node_id for node in FlowerControl(folder).nodes()} == {*(site.node_id for site in sites.values()), new}
    assert new != lost
    server_operator.dismiss(folder, "east")
    assert folder.sites() == sites


def test_a_superlink_that_is_away_or_that_nobody_vouches_for_is_a_diagnosis(tmp_path):
    folder = initialised(tmp_path / "server")
    for _ in range(2):
        with pytest.raises(StudyError, match="Flower's SuperLink cannot be reached"):
            FlowerControl(folder).nodes()
        (folder.inside / "ca.crt").unlink(missing_ok=True)


def test_a_server_is_started_once(server):
    folder, _ = server
    with pytest.raises(StudyError, match="started already"):
        server_operator.start(folder, stopped=lambda: True, say=lambda line: None)


def test_a_port_that_is_taken_is_named(server, tmp_path):
    folder, _ = server
    other = ServerFolder(tmp_path / "server")
    superlink = free_ports(1)[0]
    port = folder.settings().port
    server_operator.init(other, host="localhost", port=port, superlink_port=superlink)
    programs = ServerPrograms(folder=other, say=lambda line: None, patience_s=0.0)
    taken = rf"port {port} of 0\.0\.0\.0, where the gate is to listen, cannot be had: .*; process \d+ \("
    with pytest.raises(StudyError, match=taken), programs.up():
        pass
    settings = other.path / "server.toml"
    settings.write_text(settings.read_text().replace(f"superlink_port = {superlink}", f"superlink_port = {port}"))
    with pytest.raises(StudyError, match=f"port and superlink_port in .* are both {port}"), programs.up():
        pass


@pytest.mark.parametrize("program", ["gate", "superexec"])
def test_a_program_that_is_killed_is_started_again(server, program):
    _, said = server

    def ids():
        return [int(line.rsplit(" ", 1)[1]) for line in said if line.startswith(f"{program} started")]

    before = ids()
    os.kill(before[-1], signal.SIGKILL)
    until(lambda: len(ids()) > len(before), f"{program} is started again")
    assert Path(f"/proc/{ids()[-1]}").exists()


def test_a_run_without_its_sites_says_for_whom_it_waited_and_who_has_not_signed(server):
    folder, _ = server
    with pytest.raises(StudyError, match=r"not signed by north \(no answer: .*\), south"):
        list(server_run.run(folder))
    assert server_run.status(folder)["last_error"].startswith("the study is not signed")
    assert not folder.is_running
    assert Waiting(sites=SITES) in folder.progress.read()[0]


def test_a_study_that_did_not_end_has_no_report(server):
    folder, _ = server
    with pytest.raises(StudyError, match="no report yet") as refused:
        server_run.report(folder)
    assert "server run" in refused.value.fix


def test_the_next_step_leads_from_init_to_run(tmp_path, bundled):
    folder = initialised(tmp_path / "server")
    assert server_run.status(folder)["next"].endswith("site.json, for north, south, west")
    said = server_operator.enroll(folder, card(tmp_path, "north"), card(tmp_path, "centre"))
    assert said[-1] == f"next: grandrounds server enroll {folder.path} site.json, for south, west"
    west = card(tmp_path, "west")
    west.write_text(json.dumps(json.loads(west.read_text()) | {"minimised": ["dates shifted"]}))
    said = server_operator.enroll(folder, card(tmp_path, "south"), west)
    stated = 'west takes something out of its records; its table may say so: minimised = ["dates shifted"]'
    assert [line for line in said if "minimised" in line] == [stated]
    assert said[-1].startswith(f"next: name centre in {folder.study_toml}, or grandrounds server dismiss")
    server_operator.dismiss(folder, "centre")
    assert server_run.status(folder)["next"] == f"grandrounds server bundle {folder.path}"
    with pytest.raises(StudyError, match="no study yet"):
        list(server_run.run(folder))
