"""Every error this system raises on purpose.

    MuZeroError
    ├── ShapeError            an array has the wrong shape or type
    ├── DataError             market data, or a data set, breaks a rule
    │   └── FormatError       a file is not what an importer can read
    ├── SettingsError         a setting is unknown or invalid
    ├── IllegalActionError    an action that the position does not allow
    ├── MessageError          a message cannot be read, or breaks its schema
    ├── JournalError          the trainer's journal is damaged
    ├── CheckpointError       a checkpoint is missing, damaged or of another shape
    │   └── PromotionError    a version that has not passed its gate
    ├── StoreAwayError        the store of checkpoints does not answer: nothing is known of its versions
    ├── RecordsAwayError      the validator's database is in use, or its disk is full
    ├── BrokerError           the broker refused, or answered what cannot be
    │   ├── OrderRejectedError    the broker refused an order and says why
    │   ├── UnreadableAnswerError the broker's answer breaks its own schema
    │   └── OutcomeUnknownError   an order was sent and its fate is not known yet
    ├── InferenceError        no decision could be had in time
    └── ServiceError          a local process could not be started or reached
        └── WebhookError          an alert was not delivered to the operator's webhook

A command prints the text of any of these as one line and exits with 2 when the
user's input is at fault, with 1 otherwise.
"""


class MuZeroError(Exception):
    """Base of all errors raised on purpose; its text says what, where, and what would be right."""

    #: True where the user's input is at fault, so that a command exits with 2 instead of 1.
    user_fault: bool = False


class ShapeError(MuZeroError):
    """An array has the wrong shape or type."""

    def __init__(self, name: str, got: object, wanted: object) -> None:
        super().__init__(f"{name} is {got}, expected {wanted}")
        self.name, self.got, self.wanted = name, got, wanted


class DataError(MuZeroError):
    """Market data, or a data set, breaks a rule."""

    user_fault = True


class FormatError(DataError):
    """A file is not what an importer can read; names file, line and what would be right."""

    def __init__(self, path: str, reason: str, *, line: int | None = None) -> None:
        super().__init__(f"{path}{f':{line}' if line is not None else ''}: {reason}")
        self.path, self.line, self.reason = path, line, reason


class SettingsError(MuZeroError):
    """A setting is unknown or invalid; names the setting and where it came from."""

    user_fault = True


class IllegalActionError(MuZeroError):
    """An action that the position does not allow."""

    user_fault = True


class MessageError(MuZeroError):
    """A message cannot be read or breaks its schema; it goes to the dead letters with this text."""


class JournalError(MuZeroError):
    """The trainer's journal is damaged; names segment and offset."""


class CheckpointError(MuZeroError):
    """A checkpoint is missing, damaged or of another shape; names the version and the file."""


class PromotionError(CheckpointError):
    """A version that has not passed the gate it would be promoted through."""

    user_fault = True


class StoreAwayError(MuZeroError):
    """The store of checkpoints does not answer, or refuses; its versions may be whole, so try again.

    No `CheckpointError`: what catches damage must not take this for it.
    """


class RecordsAwayError(MuZeroError):
    """The validator's database cannot be opened, read or written now, so try again.

    Another program may have it open, or its disk is full.
    """


class BrokerError(MuZeroError):
    """The broker refused a request or answered what cannot be; holds the HTTP status where there was one."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class OrderRejectedError(BrokerError):
    """The broker refused a request with a reject transaction; nothing was done, and it is not sent again."""

    def __init__(self, message: str, *, status: int, reject_reason: str) -> None:
        super().__init__(message, status=status)
        self.reject_reason = reject_reason


class UnreadableAnswerError(BrokerError):
    """The broker answered, and the answer breaks its own schema; names the field at fault."""


class OutcomeUnknownError(BrokerError):
    """An order was sent and its fate is not known: it is looked up, never sent again."""


class LedgerError(MuZeroError):
    """The trader's ledger cannot be written, as on a full disk; it may be again later."""


class InferenceError(MuZeroError):
    """No decision could be had in time; the trader holds."""


class ServiceError(MuZeroError):
    """A local process could not be started or reached."""


class WebhookError(ServiceError):
    """An alert was not delivered to the operator's webhook."""

    def __init__(self, text: str, *, again: bool) -> None:
        super().__init__(text)
        self.again = again  # a later attempt may succeed, and cannot deliver the alert twice
