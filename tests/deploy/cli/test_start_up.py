"""What a command loads before it says anything: an operator who asks where a study stands waits for no library."""

import json
import subprocess
import sys
from pathlib import Path

from support.study.tiny_models import save_tiny_model

from grandrounds.common.system.package_hash import running_sha256
from grandrounds.common.version import __version__

HEAVY = ("torch", "transformers", "peft", "opacus", "flwr", "dp_accounting", "scipy.stats", "pandas", "pyarrow")
# Runs commands in their turn, all in one process: what each said, and which of these were loaded after it.
PROGRAM = """
import json, sys
from grandrounds.common.errors import GrandRoundsError
from grandrounds.deploy.cli.main import app
heavy, commands = json.loads(sys.argv[1])
found = {}
for name, command in commands.items():
    try:
        app(command, standalone_mode=False)
        said = "done"
    except GrandRoundsError as error:
        said = error.what
    found[name] = [said, [name for name in heavy if name in sys.modules]]
print("\\n" + json.dumps(found))
"""


def test_commands_at_the_desk_load_no_library_that_they_do_not_use(tmp_path: Path) -> None:
    server, site, records, model = (str(tmp_path / name) for name in ("server", "site", "north.csv", "model"))
    Path(records).write_text("patient_id,text\n1,well\n", encoding="utf-8")
    save_tiny_model(Path(model))
    data = {"north": records, "south": records, "west": str(tmp_path / "wesst.csv")}
    units = [f"--nominal-units={name}=20" for name in data]
    done = {
        "--help": [],
        "--version": [],
        "server init": [server],
        "server status": [server],
        "client init": [site, "--name", "north", "--data", records, "--model", model],
        "server enroll": [server, str(Path(site, "site.json"))],
        "client data": [site],
        "client pause": [site],
        "client budget": ["--state", str(Path(site, "state"))],
    }
    refused = {
        "client health": [site],
        "client join": [site, str(tmp_path / "study.zip")],
        "client leave": [site],
        "client start": [site],
        "client watch": [site],
        "server report": [server],
        "server run": [server],
        "verify": [str(tmp_path / "nothing")],
        "audit": [str(tmp_path / "nothing")],
        "simulate  ": ["--dropout=hospital-9@2"],
        "simulate": [*(f"--data={name}={path}" for name, path in data.items()), *units, "--evaluation=builtin"],
    }
    commands = {name: [*name.split(), *options] for name, options in {**done, **refused}.items()}
    program = [sys.executable, "-c", PROGRAM, json.dumps([HEAVY, commands])]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert {name for name, (said, _) in found.items() if said == "done"} == set(done)
    assert f"grandrounds {__version__}\nSHA-256 of its files: {running_sha256()}\n" in ran.stdout
    assert found["simulate"][0].startswith("wesst.csv: it cannot be read")
    assert found["simulate  "][0] == "there is no hospital-9 in round 2 to drop out"
    # Of Flower, whose server the simulation's modules name, nothing heavier is loaded.
    loaded = {name: set(modules) for name, (_, modules) in found.items()}
    assert loaded.pop("simulate") | loaded.pop("simulate  ") | loaded.pop("audit") <= {"flwr"}
    assert {name for name, modules in loaded.items() if modules} == set()
