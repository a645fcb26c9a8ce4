"""Countersignatures: each site's signature on a manifest, without which no attempt begins."""

from typing import Self

from pydantic import Field

from .identity import Hex32, Identity, Name, verify_signature
from .study import Section

COUNTERSIGNATURE_LABEL = b"grandrounds/countersignature/v1\n"


class Countersignature(Section):
    """A site agrees to a manifest, given by its hash, under the key that it is known by."""

    site: Name
    manifest: Hex32
    key: Hex32
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")

    @classmethod
    def of(cls, identity: Identity, *, site: str, manifest: str) -> Self:
        """Sign a manifest, which the site has checked before."""
        signature = identity.sign(COUNTERSIGNATURE_LABEL, _signed(site, manifest)).hex()
        return cls(site=site, manifest=manifest, key=identity.public_key, signature=signature)

    def verify(self) -> None:
        """Raises EnvelopeError unless the owner of ``key`` signed this; whose key it is, the manifest says."""
        signature = bytes.fromhex(self.signature)
        verify_signature(self.key, signature, COUNTERSIGNATURE_LABEL, _signed(self.site, self.manifest))


def _signed(site: str, manifest: str) -> bytes:
    return f"{manifest} {site}".encode()
