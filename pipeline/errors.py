"""The exception for errors that the user can fix."""

from typing import NoReturn


class UserError(Exception):
    """Error that the user can fix. The message says what is wrong, where, and what to do next.

    Jobs print only the message, without a traceback, and exit with code 2.
    """

    def __init__(self, message: str, *details: object) -> None:
        super().__init__(message, *details)
        # Ray Data appends its own advice to the `args` of an exception that a task raises.
        self.message = message

    def __str__(self) -> str:
        return self.message


def user_error(error: BaseException) -> UserError | None:
    """Return the UserError that caused a (possibly remote) failure, or None if no UserError did."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        current = waiting.pop()
        if isinstance(current, UserError):
            original = getattr(current, "cause", current)  # Ray raises a class of its own that holds the task's error
            return UserError(original.message if isinstance(original, UserError) else current.message)
        if id(current) in seen:
            continue
        seen.add(id(current))
        causes = (current.__cause__, current.__context__, getattr(current, "cause", None))
        waiting += [cause for cause in causes if isinstance(cause, BaseException)]
    return None


def raise_user_error(error: BaseException) -> NoReturn:
    """Raise the UserError that caused a (possibly remote) failure, or the failure itself if no UserError did."""
    known = user_error(error)
    if known is None:
        raise error from None
    raise known from None
