"""Re-identification within an audit: who is enrolled, who is searched for, and the figures of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from metrics.attacks import linkage, reidentification
from metrics.attacks.linkage import number_within_person
from metrics.attacks.reidentification import Faces
from metrics.audit.workbench import Workbench
from metrics.features import Embedder
from metrics.stats.intervals import Bools, Floats, Names
from metrics.stats.risk import Figure, FigureContext

GALLERY_PHOTOS = (1, 5)  # of each person
MIN_GALLERY_PEOPLE = 4


@dataclass(frozen=True)
class IdentificationSetup:
    """``probe_rows`` of the evidence are probes; ``gallery`` holds other photos of their people."""

    probe_rows: Bools
    subjects: Names
    gallery: Faces
    unmodified: Faces

    @property
    def can_recognise(self) -> bool:
        """Whether there is anything to compare: embeddings of two people on either side."""
        return all(len(np.unique(f.identities[f.seen])) > 1 for f in (self.gallery, self.unmodified))

    def as_probes(self, embeddings: Floats) -> Faces:
        return Faces(embeddings[self.probe_rows], self.subjects[self.probe_rows])


def set_up_identification(bench: Workbench, embedder: Embedder) -> IdentificationSetup | None:
    """Enrol other photos, or half of each person's originals where there are none; None for too few people."""
    evidence = bench.evidence
    if not evidence.has_identities:
        return None
    subjects, originals = evidence.subjects, bench.embed_originals(embedder)
    if evidence.others is not None:
        images, names = evidence.others
        gallery = Faces(bench.embed_images("other photos", images, embedder), names)
        probe_rows = np.isin(subjects, np.unique(names))
    else:
        _, person, counts = np.unique(subjects, return_inverse=True, return_counts=True)
        enrolled = number_within_person(subjects, bench.rng("gallery")) < (counts // 2)[person]
        gallery = Faces(originals[enrolled], subjects[enrolled])
        probe_rows = ~enrolled & np.isin(subjects, np.unique(subjects[enrolled]))
    gallery = gallery[np.isin(gallery.identities, subjects[probe_rows])]
    if len(np.unique(gallery.identities)) < MIN_GALLERY_PEOPLE:
        return None
    return IdentificationSetup(probe_rows, subjects, gallery, Faces(originals[probe_rows], subjects[probe_rows]))


def identification_figures(
    setup: IdentificationSetup,
    probes: Faces,
    bench: Workbench,
    context: FigureContext,
    photos: Sequence[int] = GALLERY_PHOTOS,
) -> list[Figure]:
    """Return closed-set figures for each number of gallery photos, then open set and verification with the first."""
    figures: list[Figure] = []
    for count in photos:
        gallery = reidentification.enrol(setup.gallery, count, bench.rng("enrol"))
        ranking = reidentification.closed_set(probes, gallery, bench.rng("closed set"))
        lines = linkage.figures(ranking, bench.rng("closed set figures"), **context)
        if count != photos[0]:
            lines.pop()  # detection does not depend on the gallery
        else:
            searches = {"open_set": reidentification.open_set, "verification": reidentification.verification}
            for name, search in searches.items():
                decisions = search(probes, setup.unmodified, gallery, bench.rng(name))
                lines += reidentification.figures(decisions, bench.rng(f"{name} figures"), **context)[:-1]
        unit = f"{count} photo{'s' if count > 1 else ''} a person"
        figures += [replace(line, measure=f"{line.measure}, {unit}") for line in lines]
    return figures
