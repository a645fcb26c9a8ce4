"""A site's update: what one attempt computes from its records, private before it leaves this module."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...common.model.adapter import Vector, loaded
from ...common.model.example import Example
from ...common.privacy.mechanism import Mechanism
from ...common.secagg.encoding import residue_dtype
from ...common.study.manifest import Manifest
from ...common.system.content import Stored
from .cohort import Cohort
from .dp_sgd import DpSgd
from .grad_samples import GradSampler
from .step_figures import Observer


@dataclass(frozen=True, kw_only=True)
class SiteUpdate:
    """From the adapter of an attempt to the integers that secure aggregation masks.

    *Formal guarantee.* Under local trust the update alone is the manifest's sampled Gaussian release, ``local_steps``
    times. Under distributed trust it is one share of that release: private only in a sum with the other sites'
    (common/privacy/MECHANISM.md). Every call draws units and noise afresh, so a retry is a release of its own. Units
    of ``public`` records are added that nothing of the site's own decides: which they are is drawn by itself, and how
    many is the manifest's. So whatever they are, one private unit changes the sum by as much as without them.
    """

    manifest: Manifest
    name: str
    cohort: Cohort[Example]
    sampler: GradSampler
    observer: Observer | None = None
    public: Cohort[Example] | None = None

    def __call__(self, adapter: Vector | Stored, mechanism: Mechanism) -> NDArray[np.unsignedinteger]:
        """The update as unsigned integers of the modulus [d], for an adapter [d].

        ``mechanism`` is that of the attempt, whose noise serves it alone (``Manifest.mechanism``).
        Nothing about records raises; StorageError where an adapter in a file cannot be read.
        """
        if self.manifest.study.privacy.trust == "local":
            return self._local(loaded(adapter), mechanism)
        self.sampler.model.set_adapter(loaded(adapter))
        return self._dp_sgd(mechanism).release(self._draw)

    def _local(self, adapter: Vector, mechanism: Mechanism) -> NDArray[np.unsignedinteger]:
        study = self.manifest.study
        training = study.training
        nominal_units = self.manifest.nominal_units(self.name)
        change = self._dp_sgd(mechanism).train(
            self._draw,
            adapter=adapter,
            optimizer=training.site_optimizer(),
            steps=training.local_steps,
            denominator=self.manifest.step_units([self.name]),
        )
        return self.manifest.fixed_point.encode(change, nominal_units / study.total_nominal_units)

    def _dp_sgd(self, mechanism: Mechanism) -> DpSgd:
        is_local = self.manifest.study.privacy.trust == "local"
        return DpSgd(
            sampler=self.sampler,
            lattice=self.manifest.lattice,
            mechanism=mechanism,
            integers=np.dtype(np.int64) if is_local else residue_dtype(self.manifest.secagg_parameters.modulus_bits),
            observer=self.observer,
        )

    def _draw(self) -> list[tuple[Example, ...]]:
        data = self.manifest.study.data
        drawn = self.cohort.draw(
            sampling_probability=self.manifest.study.privacy.sampling_probability,
            records_per_unit=data.records_per_unit,
            cap=self.manifest.draw_cap(self.name),
        )
        if self.public is None:
            return drawn
        # As many as the manifest says, whatever was drawn, by coins of their own: a uniform subset of all.
        added = self.public.draw(
            sampling_probability=1.0, records_per_unit=data.records_per_unit, cap=data.public_units
        )
        return [*drawn, *added]
