"""The one exception for what the user can mend."""


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do.

    Jobs print the message alone, without a traceback, and exit with code 2.
    """


def user_error(error: BaseException) -> UserError | None:
    """The UserError that a remote failure goes back to, if there is one."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        current = waiting.pop()
        if isinstance(current, UserError):
            return UserError(str(current.args[0]) if current.args else str(current))
        if id(current) in seen:
            continue
        seen.add(id(current))
        causes = (current.__cause__, current.__context__, getattr(current, "cause", None))
        waiting += [cause for cause in causes if isinstance(cause, BaseException)]
    return None
