"""What a command loads before it says anything: an operator who asks where a study stands waits for no library."""

import json
import subprocess
import sys
from pathlib import Path

from support.study.tiny_models import save_tiny_model

HEAVY = ("torch", "transformers", "peft", "opacus", "flwr", "dp_accounting", "scipy.stats", "pandas", "pyarrow")
# Each command in its turn, and which of these were loaded after it: one process, so that none hides behind another.
PROGRAM = """
import json, sys
from grandrounds.common.errors import GrandRoundsError
from grandrounds.deploy.cli.main import app
heavy, commands = json.loads(sys.argv[1])
found = {}
for command in commands:
    try:
        app(command, standalone_mode=False)
        said = "done"
    except GrandRoundsError as error:
        said = error.what
    found[" ".join(command[:2])] = [said, [name for name in heavy if name in sys.modules]]
print("\\n" + json.dumps(found))
"""


def test_commands_at_the_desk_load_no_library_that_they_do_not_use(tmp_path: Path) -> None:
    server, site, records = (str(tmp_path / name) for name in ("server", "site", "north.csv"))
    Path(records).write_text("patient_id,text\n1,well\n", encoding="utf-8")
    model = save_tiny_model(tmp_path / "model")
    done = ["--help", "server init", "server status", "client init", "server enroll", "client pause", "client budget"]
    refused = ["client health", "client join", "client leave", "client start", "server report", "server run", "verify"]
    options = {
        "client init": [site, "--name", "north", "--data", records, "--model", str(model)],
        "server enroll": [server, str(Path(site, "site.json"))],
        "client join": [site, str(tmp_path / "study.zip")],
        "client budget": ["--state", str(Path(site, "state"))],
        "verify": [str(tmp_path / "nothing")],
    }
    commands = [
        [*words.split(), *options.get(words, [server if words.startswith("server") else site] * (words != "--help"))]
        for words in [*done, *refused]
    ]
    asked = json.dumps([HEAVY, commands])
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, asked], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert len(found) == len(commands)
    assert {name for name, (said, _) in found.items() if said == "done"} == set(done)
    assert {name: loaded for name, (_, loaded) in found.items() if loaded} == {}
