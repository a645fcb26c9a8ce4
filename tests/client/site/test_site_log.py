"""What operators had done stands in a log that shows what was changed in it, and that steers nobody who reads it."""

import json
import threading

import pytest
from support.process.other_users import AS_ROOT, done_as, user

from grandrounds.client.budget.policy import POLICY
from grandrounds.client.site.folder import SETTINGS, SiteFolder
from grandrounds.client.site.site_log import FILE, SiteLog
from grandrounds.common.errors import StorageError
from grandrounds.common.system.privileges import whoever_runs_this
from grandrounds.deploy.views.site_log import as_cef, as_json_line


@pytest.fixture
def folder(tmp_path):
    (tmp_path / SETTINGS).write_text('name = "north"\ndata = "notes.csv"\nmodel = "tiny"\n')
    (tmp_path / POLICY).write_text("")
    return SiteFolder(tmp_path)


@pytest.fixture
def log(folder):
    log = SiteLog(folder)
    log.note("initialised")
    log.note("paused")
    return log


def events(log):
    return [(entry["event"], entry["intact"]) for entry in log.entries()]


def test_each_entry_has_site_time_and_user_and_the_first_the_policy(log):
    policy, *entries = log.entries()
    assert (policy["event"], policy["changed"]) == ("policy-changed", {})
    assert policy["policy"]["study.largest_epsilon"] == 1.0
    assert [entry["event"] for entry in entries] == ["initialised", "paused"]
    assert all(entry["site"] == "north" and entry["user"] and entry["time"].endswith("+00:00") for entry in entries)


@AS_ROOT
def test_the_login_that_sudo_names_is_believed_of_root_alone(monkeypatch):
    monkeypatch.setenv("SUDO_USER", "somebody-else")
    said = done_as(user(65533), whoever_runs_this)
    assert said["user"] == "65533"
    assert said.get("login") != "somebody-else"
    assert whoever_runs_this()["user"] == "root"


def test_a_changed_policy_is_noted_with_what_changed_by_the_next_command_and_once(folder, log):
    (folder.path / POLICY).write_text("# only said in other words")
    log.note("paused")
    (folder.path / POLICY).write_text("[study]\nlargest_epsilon = 4.0\n[data]\nopted_out = 'list.txt'")
    log.note("unpaused")
    log.note("paused")
    *_, policy, unpaused, paused = log.entries()
    assert [unpaused["event"], paused["event"]] == ["unpaused", "paused"]
    assert policy["changed"] == {
        "study.largest_epsilon": [1, 4],
        "data.opted_out": [None, str(folder.path / "list.txt")],
    }
    assert len(events(log)) == 7


def test_a_policy_that_cannot_be_read_keeps_no_command_from_being_noted(folder, log):
    (folder.path / POLICY).write_text("[study")
    log.note("paused")
    assert events(log)[-1] == ("paused", True)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0], lines[2]],
        lambda lines: [lines[0], lines[1].replace(b'"user":"', b'"user":"not-'), lines[2]],
        lambda lines: [lines[0], b"not json\n", lines[2]],
        lambda lines: [lines[0], lines[2].replace(b"{", b'{"intact":true,')],
    ],
)
def test_an_entry_that_was_changed_taken_out_or_replaced_shows(folder, log, change):
    path = folder.path / FILE
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    log.note("unpaused")
    assert events(log)[-2:] == [("paused", False), ("unpaused", True)]


def test_a_line_that_a_crash_cut_short_is_kept_and_hides_no_other(folder, log):
    path = folder.path / FILE
    path.write_bytes(path.read_bytes()[:-40])
    log.note("unpaused")
    assert events(log)[1:] == [("initialised", True), ("cut-short", True), ("unpaused", True)]


def test_all_who_write_at_once_are_noted_in_one_chain(log):
    threads = [threading.Thread(target=log.note, args=("started",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert events(log)[3:] == [("started", True)] * 8


def test_nothing_is_appended_to_a_link(folder, tmp_path):
    (folder.path / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="cannot be appended to"):
        SiteLog(folder).note("paused")
    assert not (tmp_path / "elsewhere").exists()


def test_a_site_without_a_log_is_told_so(folder):
    with pytest.raises(StorageError, match="cannot be read"):
        list(SiteLog(folder).entries())


HOSTILE = "a|b=c\\ msg=d\nCEF:0|x\r\x1b[2J\u202e"


def test_no_value_begins_another_field_or_line_of_an_export(log):
    log.note("agreed", study=HOSTILE, budget=HOSTILE)
    entry = list(log.entries())[-1]
    line = as_json_line(entry)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["study"] == HOSTILE
    line = as_cef(entry)
    assert line.isprintable()
    assert line.startswith("CEF:0|Grand Rounds|client|")
    assert "externalId=a|b\\=c\\\\ msg\\=d�CEF:0|x��[2J� msg={" in line
    assert as_cef({**entry, "event": HOSTILE}).split("|")[4].startswith("a\\")


def test_an_entry_after_a_change_has_the_highest_severity(log):
    entry = list(log.entries())[-1]
    assert "|The site takes part in nothing new|3|" in as_cef(entry)
    assert "|The log was changed before this entry|10|" in as_cef({**entry, "intact": False})
