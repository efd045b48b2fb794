"""Reports, card and plots: what was done, how far outputs moved, what became of every record, what was found."""

from anonymizer.report.audit import write_audit
from anonymizer.report.curves import write_curves
from anonymizer.report.ledger_summary import closest_bins
from anonymizer.report.public import write_public
from anonymizer.report.restricted import write_restricted

__all__ = ["closest_bins", "write_audit", "write_curves", "write_public", "write_restricted"]
