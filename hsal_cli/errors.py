"""The one exception tree: everything that hsal raises on purpose, each with a hint that names a way out."""


class HsalError(Exception):
    """Something failed for a reason that a user can act on.

    Args:
        message: what is wrong, with which value; one line.
        hint: a command or a change that helps; one line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str):
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(HsalError):
    """A setting or argument has a value that cannot be used (exit code 2); nothing was created."""

    exit_code = 2


class NotInstalled(HsalError):
    """A package that hsal can do without is needed for this, and is not here."""


class FileError(HsalError):
    """A file is missing, damaged, of another kind, or does not belong to the files it is used with."""


class TrainingError(HsalError):
    """Training cannot go on: a loss that is not finite, or a policy that has collapsed."""


class Interrupted(HsalError):
    """A long command was asked to stop and has saved its state.

    Args:
        signal_number: the signal that asked (SIGHUP 1, SIGINT 2, SIGTERM 15); the exit code is 128 plus that number.
    """

    def __init__(self, message: str, hint: str, signal_number: int = 2):
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number


class Stopped(BaseException):
    """A signal struck outside of long work, which would save its state; like KeyboardInterrupt no error that anybody should handle.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.number = number


class WorkerLost(HsalError):
    """Another process of the same work (see `workers`) was killed, or is not heard of any more."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the device's or the machine's, by what Python, NumPy, torch and NVIDIA's libraries raise then."""
    said = str(error)
    told = ("can't allocate memory", "ALLOC_FAILED")  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED: a workspace did not fit
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or any(words in said for words in told)


def first_line(error: BaseException) -> str:
    """What an error of a library says, for one line of ours; its name where it says nothing."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
