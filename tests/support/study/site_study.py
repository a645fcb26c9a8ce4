"""A study of a tiny model, and the folder of the one of its sites that is real: the others are in memory."""

import json
import secrets
import shutil

from grandrounds.client.budget.policy import POLICY
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.site.folder import KEY, SETTINGS, SiteFolder
from grandrounds.client.state.database import SiteDatabase
from grandrounds.common.crypto.identity import sha256
from grandrounds.common.model.adapter import vector_bytes
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.schema import validated
from grandrounds.common.study.study import Study
from grandrounds.deploy.bench.loopback import free_ports
from grandrounds.deploy.enrolment.bundle import Bundle, Flower, connection_sha256
from grandrounds.deploy.enrolment.certificates import CA_CERTIFICATE, make_certificates
from grandrounds.deploy.site_ops import commands as site_operator
from support.process.resident_process import SITE, ones
from support.study.federation import Federation, small_study

ADDRESS = "localhost:9"
MODEL = {"name": "tiny", "target_modules": ["q_proj"], "rank": 2, "alpha": 4.0}
POLICY_TOML = """
[study]
largest_epsilon = {epsilon}
largest_delta = 1e-3
trust = ["distributed"]
smallest_honest_shares = 2
models = [{{sha256 = "{model}"}}]
verified_peers = {peers}
[data]
epsilon = 99.0
delta = 1e-3
opted_out = "opted-out.txt"
"""


class SiteStudy:
    """The study, and what its site needs to join it; ``base`` is the model's folder."""

    def __init__(self, base):
        self.base = base
        lora = validated(Study, small_study().model_dump() | {"model": MODEL}).model.lora
        self.model = LanguageModel.load(base, lora, seed=7)
        self._tls = base.with_name(f"{base.name}-tls")
        if not self._tls.exists():
            make_certificates(self._tls, "localhost")

    def federation(self, public=None, **training):
        """The study anew, with an id and keys of its own; two units of ``public`` records, bytes, enter each step."""
        study = small_study(max_units=5, noise_multiplier=8.0, training={"max_attempts": 9, **training})
        fields = study.model_dump() | {"model": MODEL, "data": {"max_tokens": 16, "evaluation": "synthetic"}}
        fields["privacy"]["target_epsilon"] = 50.0
        if public is not None:
            fields["data"] |= {"public": f"sha256:{sha256(public)}", "public_units": 2}
        federation = Federation(study=validated(Study, fields), dimension=self.model.layout.dimension, release=ones)
        federation.pin(
            study_id=secrets.token_hex(32),
            model_sha256=self.model.folder_sha256,
            frozen_adapter_sha256=self.model.frozen_adapter_sha256,
            connection_sha256=connection_sha256(ADDRESS, (self._tls / CA_CERTIFICATE).read_bytes()),
            adapter_layout_sha256=self.model.adapter_layout_sha256,
            tensor_sizes=self.model.layout.sizes,
        )
        return federation

    def bundle(self, federation, certificates, public=None):
        """The study as its operator sends it; ``certificates`` is a folder to put the server's in."""
        shutil.copytree(self._tls, certificates, dirs_exist_ok=True)
        return Bundle(
            manifest=federation.manifest,
            frozen_adapter=vector_bytes(self.model.get_frozen_adapter()),
            certificates=(certificates / CA_CERTIFICATE).read_bytes(),
            flower=Flower(address=ADDRESS),
            public=public,
        )

    def initialised(self, path, federation, **options):
        """The site's folder after ``client init``, with its key of this study, a policy that allows it, and records."""
        folder, records = SiteFolder(path), path / "notes.jsonl"
        rows = [{"patient_id": f"patient-{number}", "text": "no complaints"} for number in range(3)]
        path.mkdir(exist_ok=True)
        records.write_text("\n".join(map(json.dumps, rows)))
        for key in (None, federation.identities[SITE].secret.hex()):  # which no operator has beforehand
            if key is not None:
                (path / KEY).write_text(key)
            site_operator.init(folder, name=SITE, data=records, model=str(self.base), **options)
        with (path / SETTINGS).open("a") as settings:  # others of this machine have programs at the usual one
            settings.write(f"runtime_port = {free_ports(1)[0]}\n")
        write_policy(folder, federation.manifest)
        records.chmod(0o600)
        (path / "opted-out.txt").write_text("patient-1\n")
        return folder


def write_policy(folder, manifest, epsilon=50.0):
    """A policy that allows the study at ``epsilon``, whatever the study asks for."""
    peers = json.dumps([manifest.server_key, *manifest.site_keys.values()])
    text = POLICY_TOML.format(model=manifest.model_sha256, peers=peers, epsilon=epsilon)
    (folder.path / POLICY).write_text(text)


def reserved(site: SiteFolder) -> list[str]:
    """The studies that have reserved of the site's budgets."""
    database = SiteDatabase.open(site.state)
    try:
        statements = Reservations(database).statements()
    finally:
        database.close()
    return [reservation.study for statement in statements for reservation in statement.reservations]
