"""A study in Flower's own simulation, as `flwr run` starts it on this machine."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast

from flwr.serverapp import Grid

from ...client.worker_socket import AskWorker
from ...common.errors import StudyError
from ...common.schema import read_toml, validated
from ...common.study.study import Study
from ...server.rounds.app import Conversation, carry
from ...server.run.progress import Observer
from ..simulation.config import chosen_dropouts, prepare_records, read_simulation
from ..simulation.outages import Outages
from ..simulation.settings import BUILTIN_EVALUATION, Simulation
from ..simulation.simulate import Network, simulate
from ..views.display import Display
from .simulated_nodes import AnsweringGrid, listening

# Without a study file: it shows that everything works, and trains nothing of use.
_TINY_SITES: Final = ("north", "south", "west")
_TINY_STUDY: Final[Mapping[str, Any]] = {
    "model": {"name": "tiny"},
    "data": {"max_tokens": 16, "evaluation": "synthetic"},
    "privacy": {"target_epsilon": 4.0},
    "training": {"rounds": 2},
    "sites": [{"name": name, "nominal_units": 20, "sensitivity": "synthetic"} for name in _TINY_SITES],
}
_TINY_NOTES: Final = [{"patient_id": f"{number}", "text": "no complaints"} for number in range(20)]
_TINY_INPUTS: Final[Mapping[str, Any]] = {
    "cohorts": dict.fromkeys(_TINY_SITES, _TINY_NOTES),
    "evaluation": [{"patient_id": "nobody", "text": "well rested"}],
}
_NODES_S: Final = 5.0  # Flower makes its nodes while the ServerApp starts
_POLL_S: Final = 0.1


def simulate_in_flower(grid: Grid, config: Mapping[str, Any]) -> None:
    """Run the study of the file ``config["study"]``, or a tiny one, and write its results to ``config["output"]``.

    The study file is one of ``grandrounds simulate``, whose paths start from its folder. Without an output nothing is
    kept. Raises what ``simulate`` does, and StudyError where Flower simulates fewer nodes than the study has sites.
    """
    file, output = _path(config, "study"), _path(config, "output")
    tables = _TINY_STUDY if file is None else _rooted(read_toml(file), file.parent)
    study, simulation = read_simulation(tables)
    network = _between(grid, _nodes(grid, study))
    with Display() as display:
        inputs = _TINY_INPUTS if file is None else _inputs(tables, study, simulation, display.observe)
        result = simulate(study, **inputs, output=output, observe=display.observe, network=network)
        if result.folder is not None:
            display.summary(result.report, result.folder)
        else:
            display.console.print("nothing was kept: there is no --run-config 'output=\"/…\"'", soft_wrap=True)


def _between(grid: Grid, nodes: Mapping[str, int]) -> Network:
    """The network of a simulation whose messages Flower carries to the node of each site and back."""
    sites = {node: site for site, node in nodes.items()}

    def network(conversations: Iterable[Conversation], workers: Mapping[str, AskWorker], outages: Outages) -> None:
        by_node = {nodes[site]: worker for site, worker in workers.items()}
        with listening(grid.run.run_id) as place:
            answering = AnsweringGrid(grid, place, by_node, lambda node, message: outages.is_lost(sites[node], message))
            # Of a grid, nothing else is used.
            carry(conversations, cast(Grid, answering), lambda grid: nodes)

    return network


def _inputs(tables: Mapping[str, Any], study: Study, simulation: Simulation, observe: Observer) -> dict[str, Any]:
    """What a simulation takes beside its study."""
    records = prepare_records(simulation, observe)
    return {
        **records.inputs,
        "dropouts": chosen_dropouts(study, simulation),
        "settings": tables,
        "devices": simulation.devices,
    }


def _rooted(tables: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The tables with every path absolute: Flower's processes have a working directory of their own."""
    simulation = validated(Simulation, tables.get("simulation", {}), table="simulation")
    fields = simulation.model_dump(mode="json", exclude_unset=True)
    if simulation.data:
        fields["data"] = {site: data.below(root).model_dump(mode="json") for site, data in simulation.data.items()}
    if simulation.table:
        fields["table"] = simulation.table.below(root).model_dump(mode="json")
    if simulation.opted_out:
        fields["opted_out"] = {site: str(root / path) for site, path in simulation.opted_out.items()}
    if simulation.evaluation not in (None, BUILTIN_EVALUATION):
        fields["evaluation"] = str(root / simulation.evaluation)
    return {**tables, "simulation": fields}


def _nodes(grid: Grid, study: Study) -> dict[str, int]:
    """A node for each site."""
    deadline = time.monotonic() + _NODES_S
    while len(found := sorted(grid.get_node_ids())) < len(study.sites):
        if time.monotonic() > deadline:
            raise StudyError(
                f"Flower simulates {len(found)} nodes, and the study has {len(study.sites)} sites",
                why="every site is a node of its own",
                fix=f"run it with --federation-config num-supernodes={len(study.sites)}",
            )
        time.sleep(_POLL_S)
    return dict(zip((site.name for site in study.sites), found, strict=False))


def _path(config: Mapping[str, Any], name: str) -> Path | None:
    """The path that the run's configuration has under this name, if it has one."""
    value = config.get(name, "")
    if value == "":
        return None
    if not isinstance(value, str) or not Path(value).is_absolute():
        raise StudyError(
            f"{name}={value!r} is no absolute path",
            why="Flower's processes have a working directory of their own",
            fix=f"write for example --run-config '{name}=\"/…/{name}\"'",
        )
    return Path(value)
