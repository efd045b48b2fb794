"""The tree of errors.

    AnonymizerError
    ├── UsageError            wrong input, reported before any work starts; the command line exits with 2
    │   ├── ConfigError       a key or a value of the configuration
    │   │   └── LevelError    no level keeps the risk that the configuration promises
    │   ├── SourceError       the dataset to read
    │   ├── OutputError       the output to write
    │   ├── ModelError        a diffusion or scoring model, its device, its dtype
    │   ├── CustodianKeyError the custodian's key
    │   └── SigningKeyError   a publisher's or approver's key
    ├── RecordError           one unusable record; it becomes a row with a reason, and the run goes on
    ├── StepError             an unexpected failure of a step of a run
    │   └── ShardError        one shard or more
    ├── GateError             the policy does not allow the release (exit 1)
    └── IntegrityError        counts or files that must agree differ; nothing is published (exit 1)

Messages name field, value and next step in one line. ``UsageError`` may name paths that the user typed.
``RecordError`` and ``StepError`` never name a record, a path or a value: they may end up in logs. Errors that a
scheduler may repeat word for word are a ``ReportableError`` as well: all but SourceError, RecordError and StepError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anonymizer.records import Reason


class AnonymizerError(Exception):
    """The root of all errors raised on purpose by this package."""


class ReportableError(AnonymizerError):
    """An error whose text is about the run and never about a record: a log or a scheduler may repeat it."""


class UsageError(AnonymizerError):
    """The user's input is wrong; raised before any long work starts."""


class ConfigError(UsageError, ReportableError):
    """A key or a value of the configuration is wrong."""


class LevelError(ConfigError):
    """No level keeps a promised risk. ``figures``, the risks measured, are no part of the text, which may be logged."""

    def __init__(self, message: str, figures: str = "") -> None:
        super().__init__(message)
        self.figures = figures


class SourceError(UsageError):
    """The source is missing, empty, or not of the given format."""


class OutputError(UsageError, ReportableError):
    """The output cannot be written, or belongs to another run."""


class ModelError(UsageError, ReportableError):
    """A model is missing, or cannot be used with these settings."""


class CustodianKeyError(UsageError, ReportableError):
    """The custodian's key is malformed, or not the one that the release was begun with."""


class SigningKeyError(UsageError, ReportableError):
    """A private key is missing or malformed, or may not sign here."""


class RecordError(AnonymizerError):
    """One record cannot be used; carries a typed reason and nothing else."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class StepError(AnonymizerError):
    """A step of a run could not be finished; the details are in the restricted half of the release."""


class ShardError(StepError):
    """Shards could not be finished."""


class GateError(ReportableError):
    """The policy does not allow the release; names the broken rules."""


class IntegrityError(ReportableError):
    """Counts or files that must agree differ."""
