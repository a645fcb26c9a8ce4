"""A server's folder as its operator makes it, and the cards of sites that are nowhere."""

import json

from grandrounds.common.crypto.identity import Identity
from grandrounds.deploy.bench.loopback import free_ports
from grandrounds.deploy.enrolment.bundle import SiteCard
from grandrounds.deploy.enrolment.node_keys import make_node_key
from grandrounds.deploy.server_ops import commands as server_operator
from grandrounds.server.run.server_folder import ServerFolder

SITES = ("north", "south", "west")
STUDY = """
model = {name = "tiny"}
data = {max_tokens = 16, evaluation = "synthetic"}
privacy = {target_epsilon = 4.0}
training = {rounds = 1, deadline_s = 1.0, answer_after_s = 0.5}
"""


def initialised(path, **settings):
    gate, superlink = free_ports(2)
    folder = ServerFolder(path)
    server_operator.init(folder, host="localhost", port=gate, superlink_port=superlink, **settings)
    return folder


def card(path, name, key=None):
    """The file that a site sends."""
    make_node_key(path / f"{name}.key", path / f"{name}.pub")
    node_key = (path / f"{name}.pub").read_text().strip()
    site = SiteCard(name=name, public_key=(key or Identity.generate()).public_key, node_key=node_key)
    file = path / f"{name}.json"
    file.write_text(site.model_dump_json())
    return file


def write_study(folder):
    """With public records beside, of which two enter each step."""
    terms = folder.path / "terms.jsonl"
    terms.write_text("\n".join(json.dumps({"patient_id": number, "text": "a term"}) for number in range(3)))
    sites = "".join(f'[[sites]]\nname = "{site}"\nnominal_units = 20\n' for site in SITES)
    beside = f'evaluation = "synthetic", public = "{terms}", public_units = 2'
    folder.study_toml.write_text(STUDY.replace('evaluation = "synthetic"', beside) + sites)
    rows = [{"patient_id": number, "text": "no complaints"} for number in range(4)]
    (folder.path / "evaluation.jsonl").write_text("\n".join(map(json.dumps, rows)))
