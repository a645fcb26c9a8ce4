"""A study in Flower's own simulation, whose nodes are threads here: what it reads, refuses and leaves."""

import json

import pytest
from support.network.flower_in_threads import run_in_threads

from grandrounds.common.errors import StudyError
from grandrounds.deploy.flower import simulation as flower_simulation
from grandrounds.deploy.simulation.folder import SimulationFolder
from grandrounds.deploy.verify.claims import verify

STUDY = """
[model]
name = "tiny"
[data]
max_tokens = 16
evaluation = "synthetic"
[privacy]
noise_multiplier = 8.0
sampling_probability = 0.5
[training]
rounds = 1
max_attempts = 2
[simulation]
evaluation = "elsewhere.jsonl"
dropouts = ["south@1"]
[simulation.data]
"""
SITES = ("north", "south", "west", "coast")


@pytest.fixture
def study_file(tmp_path):
    """A study of four sites, whose paths start from the folder of the file."""
    (tmp_path / "records").mkdir()
    places = {site: f"records/{site}.jsonl" for site in SITES}
    for name in ("elsewhere.jsonl", *places.values()):
        rows = (json.dumps({"patient_id": f"{name}-{number}", "text": f"{name}: well"}) for number in range(10))
        (tmp_path / name).write_text("\n".join(rows))
    path = tmp_path / "study.toml"
    units = "[simulation.nominal_units]\n" + "".join(f"{site} = 10\n" for site in SITES)
    path.write_text(STUDY + "".join(f'{site} = "{place}"\n' for site, place in places.items()) + units)
    return path


def test_a_study_s_file_is_run_with_its_data_and_dropouts_and_its_results_are_whole(study_file, tmp_path, capfd):
    output = tmp_path / "results"
    run_in_threads({"server": "", "study": str(study_file), "output": str(output)}, nodes=5)
    assert verify(output).holds
    report = json.loads((output / "report.json").read_bytes())
    assert report["setting"] == "simulation"
    assert [(lost["site"], lost["exchange"]) for lost in report["dropouts"]] == [("south", "masked-input")]
    assert "south dropped out before its update was in" in capfd.readouterr().out, "as `flwr log` shows it"
    settings = SimulationFolder.open(output).private().settings["simulation"]
    assert settings["data"]["coast"] == str(tmp_path / "records/coast.jsonl"), "--resume finds it from anywhere"


def test_fewer_nodes_than_sites_are_refused_with_the_number_that_is_wanted(study_file, monkeypatch, capfd):
    monkeypatch.setattr(flower_simulation, "_NODES_S", 0.0)
    with pytest.raises(StudyError, match="simulates 3 nodes, and the study has 4 sites"):
        run_in_threads({"study": str(study_file)}, nodes=3)
    assert "--federation-config num-supernodes=4" in capfd.readouterr().err, "where `flwr log` shows it"


@pytest.mark.parametrize("config", [{"study": "study.toml"}, {"output": "results"}, {"output": 7}])
def test_a_path_that_depends_on_a_working_directory_is_refused(config):
    with pytest.raises(StudyError, match="is no absolute path"):
        run_in_threads(config, nodes=3)


def test_a_server_s_folder_is_refused_since_its_sites_are_no_simulated_nodes(tmp_path):
    with pytest.raises(StudyError, match="is a simulation"):
        run_in_threads({"server": str(tmp_path)}, nodes=3)


def test_another_archive_than_the_installed_app_s_is_refused():
    with pytest.raises(StudyError, match="archive is another"):
        run_in_threads({}, nodes=3, archive="ab" * 32)
