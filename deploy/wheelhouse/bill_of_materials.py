"""What a program consists of, as CycloneDX 1.6 JSON: every package with version, hash and licence."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from ...common.crypto.identity import sha256
from ...common.errors import StudyError
from .wheel import Wheel

if TYPE_CHECKING:
    from cyclonedx.model.component import Component, ComponentType


def bill_of_materials(program: Wheel, dependencies: Sequence[Wheel]) -> bytes:
    """The bill of ``program`` with all its ``dependencies``: the same bytes for the same wheels, and no date.

    Its graph has an edge wherever a package names another that is there, under whatever condition. Raises StudyError
    where the library for it is not installed.
    """
    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import ComponentType
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        raise StudyError(
            f"{error.name} is not installed",
            why="it writes the bill of materials, bom.cdx.json",
            fix="pip install 'grandrounds[wheelhouse]'",
        ) from error
    wheels = (program, *sorted(dependencies, key=lambda wheel: wheel.name))
    contents = sha256("\n".join(wheel.sha256 for wheel in wheels).encode())
    components = {
        wheel.name: _component(wheel, ComponentType.APPLICATION if wheel is program else ComponentType.LIBRARY)
        for wheel in wheels
    }
    bom = Bom(serial_number=UUID(bytes=bytes.fromhex(contents)[:16], version=5))
    bom.metadata.component = components[program.name]
    bom.components.update(component for name, component in components.items() if name != program.name)
    for wheel in wheels:
        needed = wheel.requires & components.keys() - {wheel.name}
        bom.register_dependency(components[wheel.name], [components[name] for name in sorted(needed)])
    fields = json.loads(JsonV1Dot6(bom).output_as_string())
    del fields["metadata"]["timestamp"]  # the format asks for none
    return (json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _component(wheel: Wheel, kind: "ComponentType") -> "Component":
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

    purl = PackageURL("pypi", None, wheel.name, wheel.version)
    return Component(
        name=wheel.name,
        version=wheel.version,
        type=kind,
        bom_ref=str(purl),
        purl=purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)],
        licenses=[LicenseFactory().make_from_string(wheel.license)] if wheel.license else [],
    )
