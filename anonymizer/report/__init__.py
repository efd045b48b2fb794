"""Reports, dataset card, Croissant metadata and plots of releases, audits, calibrations and enhancements."""

from anonymizer.report.audit import AuditReport, build_public_summary, write_audit
from anonymizer.report.curves import write_curves
from anonymizer.report.ledger_summary import closest_bins
from anonymizer.report.public import write_public
from anonymizer.report.restricted import write_restricted

__all__ = [
    "AuditReport", "build_public_summary", "closest_bins", "write_audit", "write_curves", "write_public",
    "write_restricted",
]  # fmt: skip
