"""The errors that this system raises deliberately.

    MuZeroError
    ├── ShapeError              an array has the wrong shape or type
    ├── DataError               market data or a data set breaks a rule
    │   └── FormatError         an importer cannot read a file
    ├── SettingsError           a setting is unknown or invalid
    ├── IllegalActionError      the position does not allow an action
    ├── MessageError            a message cannot be read or breaks its schema
    ├── JournalError            the trainer's journal is damaged
    ├── CheckpointError         a checkpoint is missing, damaged or of the wrong shape
    │   └── PromotionError      a version has not passed its gate
    ├── StoreUnavailableError   the checkpoint store is unavailable; the state of its versions is unknown
    ├── RecordsUnavailableError the validator's database is unavailable: in use, or its disk is full
    ├── BrokerError             the broker refused a request or sent an impossible response
    │   ├── OrderRejectedError      the broker rejected an order and gave a reason
    │   ├── UnreadableAnswerError   the broker's response breaks its own schema
    │   └── OutcomeUnknownError     an order was sent and its outcome is not known yet
    ├── LedgerError             the trader's ledger is damaged or cannot be written
    ├── InferenceError          no decision arrived in time
    └── ServiceError            a local process could not be started or reached
        └── WebhookError            an alert was not delivered to the operator's webhook

A command prints the text of any of these on one line. It exits with status 2 if the
user's input caused the error, and with 1 otherwise.
"""


class MuZeroError(Exception):
    """Base of all deliberate errors. The error text says what is wrong, where, and what was expected."""

    #: True if the user's input caused the error: a command then exits with 2 instead of 1.
    user_fault: bool = False


class ShapeError(MuZeroError):
    """An array has the wrong shape or type."""

    def __init__(self, name: str, got: object, wanted: object) -> None:
        super().__init__(f"{name} is {got}, expected {wanted}")
        self.name, self.got, self.wanted = name, got, wanted


class DataError(MuZeroError):
    """Market data or a data set breaks a rule."""

    user_fault = True


class FormatError(DataError):
    """An importer cannot read a file; the text names file, line and what would be right."""

    def __init__(self, path: str, reason: str, *, line: int | None = None) -> None:
        super().__init__(f"{path}{f':{line}' if line is not None else ''}: {reason}")
        self.path, self.line, self.reason = path, line, reason


class SettingsError(MuZeroError):
    """A setting is unknown or invalid; the text names the setting and its source."""

    user_fault = True


class IllegalActionError(MuZeroError):
    """The position does not allow an action."""

    user_fault = True


class MessageError(MuZeroError):
    """A message cannot be read or breaks its schema; its dead letter gives the error text as the reason."""


class JournalError(MuZeroError):
    """The trainer's journal is damaged; the text names segment and offset."""


class CheckpointError(MuZeroError):
    """A checkpoint is missing, damaged or of the wrong shape; the text names version and file."""


class PromotionError(CheckpointError):
    """A version has not passed its gate."""

    user_fault = True


class StoreUnavailableError(MuZeroError):
    """The checkpoint store is unavailable or refuses a request; its versions may be intact, so retry.

    Not a `CheckpointError`: code that handles damage must not handle this.
    """


class RecordsUnavailableError(MuZeroError):
    """The validator's database cannot be opened, read or written now, so retry.

    Another program may have it open, or its disk may be full.
    """


class BrokerError(MuZeroError):
    """The broker refused a request or sent an impossible response; `status` is the HTTP status, if any."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class OrderRejectedError(BrokerError):
    """The broker rejected a request with a reject transaction. Nothing was executed; do not retry it."""

    def __init__(self, message: str, *, status: int, reject_reason: str) -> None:
        super().__init__(message, status=status)
        self.reject_reason = reject_reason


class UnreadableAnswerError(BrokerError):
    """The broker's response breaks its own schema; the text names the field."""


class OutcomeUnknownError(BrokerError):
    """An order was sent and its outcome is not known. Look the order up, and never send it again."""


class LedgerError(MuZeroError):
    """The trader's ledger is damaged, or cannot be written now, for example because the disk is full."""


class InferenceError(MuZeroError):
    """No decision arrived in time; the trader holds."""


class ServiceError(MuZeroError):
    """A local process could not be started or reached."""


class WebhookError(ServiceError):
    """An alert was not delivered to the operator's webhook."""

    def __init__(self, text: str, *, again: bool) -> None:
        super().__init__(text)
        self.again = again  # True if a retry may succeed and cannot deliver the alert twice
