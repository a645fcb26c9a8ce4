"""A deployment against the simulation of the same study: what it claims, and the adapter that it trains.

``python -m soak.same_as_simulated`` (``make soak``) has five sites train the real model for ten rounds, over loopback
and by the commands that their operators type. With privacy both make the same claims; without noise or sampling, and
with stochastic gradient descent, they train the same adapter, byte for byte.
"""

import json
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from support.network.loopback import free_ports

from grandrounds.common.study.study import read_study
from grandrounds.common.system.processes import PROGRAM, Process, environment
from grandrounds.common.system.supervision import stop_all
from grandrounds.deploy.builtin.patients import demo_data
from grandrounds.deploy.server_ops import bundling
from grandrounds.deploy.simulation.simulate import simulate
from grandrounds.server.run.server_folder import ServerFolder

PATIENTS = 6  # of a site where every one takes part in every round
ADAPTER = "adapter/adapter_model.safetensors"
# Of two runs of one study, what may differ: who the parties were, when noise fell how, and what came of it.
INCIDENTAL = frozenset(
    {
        "study_id",
        "manifest_sha256",
        "setting",
        "perplexity_after",
        "charges",
        "utility",
        "verification",
        "signatures",
        "ledger",
    }
)
STUDY = """
[model]
name = "builtin"
[data]
max_tokens = 64
evaluation = "synthetic"
[privacy]
{privacy}
[training]
rounds = {rounds}
{training}
"""
SITE = '[[sites]]\nname = "{name}"\nnominal_units = 24\nsensitivity = "synthetic"\n'
POLICY = """
[study]
largest_epsilon = 4.0
largest_delta = 0.01
trust = ["distributed"]
smallest_honest_shares = 2
verified_peers = {peers}
[[study.models]]
name = "builtin"
[data]
epsilon = 8.0
delta = 0.01
synthetic_data_only = true
"""
PRIVATE = {"privacy": "target_epsilon = 4.0", "training": ""}
PLAIN = {
    "privacy": "noise = false\nsampling_probability = 1.0",
    "training": 'optimizer = "sgd"\nlearning_rate = 0.2',
}


def call(*arguments: object) -> str:
    """What a command prints. Raises CalledProcessError."""
    command = [str(argument) for argument in (PROGRAM, *arguments)]
    return subprocess.run(command, env=environment(), check=True, stdout=subprocess.PIPE, text=True).stdout


def deployed(root: Path, study: str, records: dict[str, Path], evaluation: Path, *, seed: int) -> Path:
    """Carry a study out over loopback: the folder that it leaves. ``seed`` draws the adapter's public tensors."""
    server = root / "server"
    port, superlink, *runtimes = free_ports(2 + len(records))
    call("server", "init", server, "--port", port, "--superlink-port", superlink)
    (server / "study.toml").write_text(study)
    (server / "evaluation.jsonl").write_bytes(evaluation.read_bytes())
    for (site, data), runtime in zip(records.items(), runtimes, strict=True):
        call("client", "init", root / site, "--name", site, "--data", data)
        with (root / site / "site.toml").open("a") as file:
            file.write(f"runtime_port = {runtime}\n")
    call("server", "enroll", server, *(root / site / "site.json" for site in records))
    with patch.object(secrets, "randbits", lambda bits: seed):
        bundling.bundle(ServerFolder(server))
    manifest = ServerFolder(server).study.manifest()
    peers = json.dumps([manifest.server_key, *manifest.site_keys.values()])
    for site in records:
        (root / site / "policy.toml").write_text(POLICY.format(peers=peers))
        call("client", "join", root / site, server / "study.zip", "--yes")
    parties = {"server": "server"} | dict.fromkeys(records, "client")
    processes = [
        Process([PROGRAM, role, "start", root / name], log=root / f"{name}.log", env=environment())
        for name, role in parties.items()
    ]
    try:
        call("server", "run", server)
    finally:
        stop_all(processes, grace_s=60)
    return server / "study"


def both(root: Path, rounds: int, options: dict[str, str], *, patients: int | None) -> tuple[Path, Path]:
    """The folders that a deployment and a simulation of one study leave, on the same records and public tensors."""
    data = demo_data()
    records = {site: some_of(path, patients, root / f"{site}.jsonl") for site, path in data.hospitals.items()}
    study = STUDY.format(rounds=rounds, **options) + "".join(SITE.format(name=site) for site in records)
    seed = secrets.randbits(63)
    started = time.monotonic()
    real = deployed(root, study, records, data.evaluation, seed=seed)
    between = time.monotonic()
    with patch.object(secrets, "randbits", lambda bits: seed):
        simulate(
            read_study(root / "server" / "study.toml"),
            records,
            evaluation=data.evaluation,
            output=root / "simulated",
        )
    print(f"deployed in {between - started:.0f} s, simulated in {time.monotonic() - between:.0f} s", flush=True)
    return real, root / "simulated"


def some_of(source: Path, patients: int | None, target: Path) -> Path:
    """All records of a file, or one of each of the first ``patients``: of several, a step takes one at random."""
    rows = source.read_text("utf-8").splitlines(keepends=True)
    if patients is not None:
        rows = list({json.loads(row)["patient_id"]: row for row in rows}.values())[:patients]
    target.write_text("".join(rows), encoding="utf-8")
    return target


def claims(folder: Path) -> dict[str, object]:
    """What its report says that is no matter of chance, after ``grandrounds verify`` found that it holds."""
    call("verify", folder)
    report = json.loads((folder / "report.json").read_bytes())
    return {field: value for field, value in report.items() if field not in INCIDENTAL}


def main(rounds: int) -> int:
    """1 where the deployment differs."""
    with tempfile.TemporaryDirectory(prefix="private-") as folder:
        real, simulated = (claims(path) for path in both(Path(folder), rounds, PRIVATE, patients=None))
        differing = sorted(field for field in real | simulated if real.get(field) != simulated.get(field))
        print(f"{len(real)} fields of the report are claims; differing: {differing or 'none'}", flush=True)
    with tempfile.TemporaryDirectory(prefix="plain-") as folder:
        adapters = [(path / ADAPTER).read_bytes() for path in both(Path(folder), rounds, PLAIN, patients=PATIENTS)]
        same = adapters[0] == adapters[1]
        print(f"without noise the adapters are {'the same' if same else 'different'}, byte for byte", flush=True)
    return int(bool(differing) or not same)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
