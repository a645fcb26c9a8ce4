"""What is written for systemd, containers and Slurm does what it is for, to their own programs where they are here."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from grandrounds.client.site.folder import SiteFolder
from grandrounds.client.site.joined_study import JoinedStudy
from grandrounds.common.errors import StudyError
from grandrounds.deploy.cli.main import app
from grandrounds.deploy.server_ops.services import write_server_units
from grandrounds.deploy.services.rendering import UNITS
from grandrounds.deploy.site_ops.services import write_site_units
from grandrounds.server.run.server_folder import ServerFolder

# A folder, and one for the program, in which systemd bears no quotes and no backslashes at all.
PLACES = {"plain": ("plain", "bin"), "nasty": ('100%h "north": $HOME \\site\'s ünit', "50%n of $HOME")}
NAME = "0123456789ab"  # of the site's study
WORKER, NODE = f"grandrounds-worker-{NAME}.service", f"grandrounds-node-{NAME}.service"
SERVER, STUDY = "grandrounds-server.service", "grandrounds-study.service"
SERVICES = (WORKER, NODE, SERVER, STUDY)
OWN = f"site/studies/{NAME}"  # the folder of the site's study
WRITTEN = ("site/state", "site/prepared", f"{OWN}/store", f"{OWN}/results", f"{OWN}/run")  # by a worker
LARGEST_EXPOSURE = 2.0  # of 10, by systemd's own scale, where an ordinary service has above 9
SYSTEMD = shutil.which("systemd-analyze")
PROGRAMS = Path(sys.executable).parent

needs_systemd = pytest.mark.skipif(SYSTEMD is None, reason="systemd-analyze is not on this machine")


@pytest.fixture(scope="module", params=PLACES.values(), ids=list(PLACES))
def place(request, tmp_path_factory):
    """A folder with a site's and a server's; the second time, every character that means something is in its name."""
    root = tmp_path_factory.mktemp("place")
    folder, program = root / request.param[0], root / request.param[1] / "grandrounds"
    for new in (folder, program.parent, root / "etc"):
        new.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    make_site(folder / "site")
    make_server(folder / "server")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "executable", str(program.with_name("python")))
        write_units_of(folder / "site")
        write_server_units(ServerFolder(folder / "server"))
    for unit in folder.glob(f"**/{UNITS}/*.service"):
        shutil.copy(unit, root / "etc")
    return folder


def write_units_of(path):
    """Those of the site's study."""
    return write_site_units(SiteFolder(path), JoinedStudy(path / "studies" / NAME))


def units_of(place, whose):
    return place / (OWN if whose == "site" else whose) / UNITS


def program_of(place):
    return next(place.parent.glob("*/grandrounds"))


def make_site(path, **settings):
    path.mkdir()
    lines = {"name": "north", "data": str(path.parent / "notes.jsonl"), "model": str(path.parent / "model"), **settings}
    (path / "site.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()))


def make_server(path, **settings):
    path.mkdir()
    lines = {"evaluation": "evaluation.jsonl", **settings}
    (path / "server.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()))


def systemd(place, *words, level="info"):
    """What systemd-analyze says of the units where they are installed, and its exit code."""
    env = {**os.environ, "SYSTEMD_LOG_LEVEL": level}
    assert SYSTEMD
    done = subprocess.run(
        [SYSTEMD, *words], cwd=place.parent / "etc", env=env, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr, done.returncode


def as_systemd_reads(place, unit):
    """Every setting of a unit, and its command, as systemd has understood it and shows it when it is asked to debug."""
    said, _ = systemd(place, "verify", unit, level="debug")
    _, found, dump = said.partition(f"-> Unit {unit}:")
    assert found
    return dict(re.findall(r"^\s+([A-Z][\w ]+): (.*)$", dump, re.MULTILINE))


def without_variables(value):
    """A value of a compose file, or an argument of a service, in which only ``$$`` may stand for a dollar."""
    assert "$" not in value.replace("$$", "")
    return value.replace("$$", "$")


def command_of(settings):
    program, *arguments = shlex.split(settings["Command Line"].replace("\\$", "$"))
    return [program, *map(without_variables, arguments)]


def compose(place, whose):
    return yaml.safe_load((units_of(place, whose) / "compose.yaml").read_text())


def mounted(of):
    """The places that a service has, and whether it may write there."""
    for volume in of["volumes"]:
        assert volume["source"] == volume["target"]
    return {Path(without_variables(volume["source"])): not volume.get("read_only") for volume in of["volumes"]}


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES)
def test_systemd_accepts_each_service(place, unit):
    assert systemd(place, "verify", unit) == ("", 0)


@needs_systemd
def test_systemd_would_start_the_intended_commands(place):
    program, site, server = str(program_of(place)), str(place / "site"), str(place / "server")
    assert {unit: command_of(as_systemd_reads(place, unit)) for unit in SERVICES} == {
        WORKER: [program, "client", "worker", site, NAME],
        NODE: [program, "client", "node", site, NAME],
        SERVER: [program, "server", "start", server],
        STUDY: [program, "server", "run", "--json", server],
    }


@needs_systemd
def test_the_worker_has_no_network_and_writes_into_its_own_folder_alone(place):
    read = as_systemd_reads(place, WORKER)
    assert read["PrivateNetwork"] == "yes"
    assert read["ProtectSystem"] == "strict"
    assert read["ReadWritePaths"] == " ".join(f"{place}/{name}" for name in WRITTEN)
    assert read["InaccessiblePaths"] == f"-{place}/{OWN}/node"
    assert read["User"] == "grandrounds-worker"


@needs_systemd
def test_the_node_has_its_own_part_of_the_folder_and_no_records(place):
    read = as_systemd_reads(place, NODE)
    assert read["TemporaryFileSystem"] == f"{place}/site:ro"
    node, run = f"{place}/{OWN}/node", f"{place}/{OWN}/run"
    assert read["BindPaths"] == f"{node}/var:{node}/var:rbind"
    said, _ = systemd(place, "verify", NODE, level="debug")
    assert [f"BindReadOnlyPaths: {each}:{each}:rbind\n" in said for each in (node, run)] == [True, True]
    assert read["ReadWritePaths"] == f"{node}/var"
    assert read["InaccessiblePaths"] == f"-{place}/notes.jsonl"
    assert read["User"] == "grandrounds-node"


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES)
def test_each_service_is_well_confined_by_systemd_s_own_measure(place, unit):
    if "--offline" not in systemd(place, "--help")[0]:
        pytest.skip("this systemd-analyze judges running services alone")
    said, code = systemd(place, "security", "--offline=yes", f"--threshold={10 * LARGEST_EXPOSURE:.0f}", unit)
    assert code == 0, said


@pytest.mark.parametrize(("port", "capabilities"), [(443, ["CAP_NET_BIND_SERVICE"] * 2), (9092, [])])
def test_a_low_port_is_the_one_thing_that_a_server_may_take(tmp_path, port, capabilities):
    make_server(tmp_path / "server", port=port)
    write_server_units(ServerFolder(tmp_path / "server"))
    text = (tmp_path / "server" / UNITS / SERVER).read_text()
    assert re.findall(r"^[A-Z]\w+=(CAP_.*)$", text, re.MULTILINE) == capabilities


def test_a_site_s_containers_have_records_or_a_network_and_never_both(place):
    services = compose(place, "site")["services"]
    worker, node = services["worker"], services["node"]
    assert worker["network_mode"] == "none"
    site, own = place / "site", place / OWN
    assert mounted(worker) == {
        **dict.fromkeys((site, place / "notes.jsonl", place / "model"), False),
        **dict.fromkeys((place / name for name in WRITTEN), True),
    }
    assert "network_mode" not in node
    assert mounted(node) == {own / "node": False, own / "node" / "var": True, own / "run": False}
    assert worker["user"] == "10001:10001"
    assert node["user"] == "10002:10002"


@pytest.mark.parametrize("devices", ["cpu", "cuda", ["cuda:0", "cuda:1"]])
def test_gpus_are_given_where_the_model_computes_on_some_and_to_the_worker_alone(tmp_path, devices):
    make_site(tmp_path / "site", devices=devices)
    write_units_of(tmp_path / "site")
    units, on_gpu = units_of(tmp_path, "site"), devices != "cpu"
    worker, node = ((units / name).read_text() for name in (WORKER, NODE))
    assert ("DeviceAllow=char-nvidia-uvm rw" in worker) == ("DevicePolicy=closed" in worker) == on_gpu
    assert ("PrivateDevices=yes" in worker) != on_gpu
    assert "PrivateDevices=yes" in node
    assert "nvidia" not in node
    job = (units / "client.sbatch").read_text()
    assert ("#SBATCH --gres=gpu:2\n" if len(devices) == 2 else "#SBATCH --gres=gpu:1\n") in job or not on_gpu
    assert ("--gres" in job) == on_gpu
    services = compose(tmp_path, "site")["services"]
    assert ("deploy" in services["worker"]) == on_gpu
    assert "deploy" not in services["node"]
    if on_gpu:
        (given,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
        assert given == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_a_worker_may_use_a_loopback_of_its_own_where_its_base_model_may_be_sharded(tmp_path):
    gpus, processors = ["cuda:0", "cuda:1"], ["cpu", "cpu"]
    cases = (("auto", gpus[:1]), ("auto", processors), ("off", gpus), ("auto", gpus), ("on", processors))
    for number, (shard, devices) in enumerate(cases):
        (place := tmp_path / str(number)).mkdir()
        make_site(place / "site", devices=devices, shard=shard)
        write_units_of(place / "site")
        unit = (units_of(place, "site") / WORKER).read_text()
        may = number > 2
        assert "PrivateNetwork=yes\n" in unit and "IPAddressDeny=any\n" in unit, "no other machine is reached"
        assert ("RestrictAddressFamilies=AF_UNIX AF_INET AF_NETLINK\nIPAddressAllow=localhost\n" in unit) == may
        assert ("RestrictAddressFamilies=AF_UNIX\n" in unit) != may


@needs_systemd
def test_systemd_accepts_a_worker_with_gpus(tmp_path):
    make_site(tmp_path / "site", devices=["cuda:0", "cuda:1"])
    (tmp_path / "etc").mkdir()
    write_units_of(tmp_path / "site")
    shutil.copy(units_of(tmp_path, "site") / WORKER, tmp_path / "etc")
    assert systemd(tmp_path / "site", "verify", WORKER) == ("", 0)


def test_containers_run_as_the_users_that_the_site_names_by_id(tmp_path):
    make_site(tmp_path / "site", worker_user="23456", node_user="23457")
    write_units_of(tmp_path / "site")
    services = compose(tmp_path, "site")["services"]
    assert [services[name]["user"] for name in ("worker", "node")] == ["23456:23456", "23457:23457"]
    unit = (units_of(tmp_path, "site") / WORKER).read_text()
    assert "--uid 23456 grandrounds-worker\n" in unit
    assert "\nUser=23456\n" in unit


def test_every_container_is_confined(place):
    for of in [*compose(place, "site")["services"].values(), *compose(place, "server")["services"].values()]:
        assert of["read_only"] and of["cap_drop"] == ["ALL"] and of["security_opt"] == ["no-new-privileges:true"]
        assert not of["user"].startswith("0")


def test_what_others_send_takes_up_no_more_of_a_machine_than_a_part(place):
    units = {unit: (units_of(place, whose) / unit).read_text() for unit, whose in ((NODE, "site"), (SERVER, "server"))}
    assert "\nMemoryMax=8G\n" in units[NODE]
    assert "\nLimitNOFILE=16384\n" in units[SERVER]
    assert compose(place, "site")["services"]["node"]["mem_limit"] == "8g"
    assert compose(place, "server")["services"]["server"]["ulimits"]["nofile"] == 16384


def test_a_server_s_containers_have_its_folder_and_the_study_its_loopback(place):
    services = compose(place, "server")["services"]
    assert mounted(services["server"]) == mounted(services["study"]) == {place / "server": True}
    assert services["server"]["ports"] == ["9092:9092"]
    assert services["study"]["network_mode"] == "service:server"


def test_a_server_s_containers_read_what_lies_elsewhere(tmp_path):
    make_server(tmp_path / "server", evaluation="/srv/public.jsonl", model="/srv/model")
    write_server_units(ServerFolder(tmp_path / "server"))
    of = compose(tmp_path, "server")["services"]["server"]
    assert mounted(of) == {
        tmp_path / "server": True,
        Path("/srv/public.jsonl"): False,
        Path("/srv/model"): False,
    }


@pytest.mark.parametrize("whose", ["site", "server"])
def test_an_image_is_built_without_a_network_and_runs_as_no_root(place, whose):
    text = (units_of(place, whose) / "Dockerfile").read_text()
    assert "--no-index --find-links wheels --require-hashes" in text
    assert re.search(r"^USER [1-9]\d+$", text, re.MULTILINE)


@pytest.mark.parametrize("whose", ["site", "server"])
def test_hadolint_has_nothing_against_the_image(place, whose):
    hadolint = lint_program("hadolint")
    file = units_of(place, whose) / "Dockerfile"
    done = subprocess.run(
        [hadolint, "--failure-threshold", "warning", "-"],
        stdin=file.open(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_shellcheck_has_nothing_against_the_job(place):
    shellcheck = lint_program("shellcheck")
    done = subprocess.run([shellcheck, "--severity=warning", job(place)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def lint_program(name):
    program = shutil.which(name, path=f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"{name} is not in this environment")
    return program


def job(place):
    return units_of(place, "site") / "client.sbatch"


@pytest.mark.parametrize(("sent", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_job_lets_its_client_end_and_is_queued_again_only_at_its_time_limit(place, tmp_path, sent, requeued):
    """As Slurm runs it: the script alone is signalled."""
    said = tmp_path / "said"
    client = program_of(place)
    client.write_text(
        f"#!{PROGRAMS / 'python'}\n"
        "import signal, sys\n"
        f"say = lambda *words: print(*words, file=open({str(said)!r}, 'a'), flush=True)\n"
        "signal.signal(signal.SIGTERM, lambda *_: (say('ended'), sys.exit(0)))\n"
        "say(sys.argv[1:])\n"
        "print('up', flush=True)\n"
        "signal.pause()\n"
    )
    slurm = tmp_path / "slurm" / "scontrol"
    slurm.parent.mkdir()
    slurm.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    slurm.chmod(0o755)
    env = {"PATH": f"{slurm.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    with subprocess.Popen(["bash", job(place)], env=env, stdout=subprocess.PIPE) as process:  # noqa: S607
        assert process.stdout and process.stdout.readline() == b"up\n"
        process.send_signal(sent)
        assert process.wait(20) == 0
    expected = [str(["client", "start", str(place / "site"), NAME]), "ended", *(["requeue 17"] if requeued else [])]
    assert said.read_text().splitlines() == expected


def test_every_command_that_is_started_exists(tmp_path):
    make_site(tmp_path / "site")
    make_server(tmp_path / "server")
    write_units_of(tmp_path / "site")
    write_server_units(ServerFolder(tmp_path / "server"))
    text = "".join(file.read_text() for whose in ("site", "server") for file in units_of(tmp_path, whose).iterdir())
    started = set(re.findall(r'grandrounds"? (client|server) (\w+)', text))
    started |= set(re.findall(r"command: \[(client|server), (\w+)", text))
    assert started == {
        *(("client", name) for name in ("start", "worker", "node", "init", "join")),
        *(("server", name) for name in ("start", "run", "enroll")),
    }
    for words in started:
        result = CliRunner().invoke(app, [*words, "--help"])
        assert result.exit_code == 0, (words, result.output)


def test_nothing_is_overwritten_and_what_is_missing_is_written_anew(tmp_path):
    make_site(tmp_path / "site")
    site = SiteFolder(tmp_path / "site")
    lines = write_units_of(site.path)
    edited, removed = (units_of(tmp_path, "site") / name for name in ("compose.yaml", "Dockerfile"))
    before = removed.read_text()
    edited.write_text("mine")
    removed.unlink()
    assert write_units_of(site.path) == lines
    assert (edited.read_text(), removed.read_text()) == ("mine", before)


def test_a_path_that_would_break_a_line_is_refused(tmp_path):
    make_site(tmp_path / "two\nlines")
    with pytest.raises(StudyError, match="no service's file can hold"):
        write_units_of(tmp_path / "two\nlines")
