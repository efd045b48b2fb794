"""The two reports and the dataset card: what was done, how far the outputs moved, what became of every record."""

from anonymizer.report.audit import write_audit
from anonymizer.report.public import write_public
from anonymizer.report.restricted import write_restricted
from anonymizer.report.survey import closest

__all__ = ["closest", "write_audit", "write_public", "write_restricted"]
