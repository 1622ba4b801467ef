"""A UserError is found however deep a framework has nested it."""

import pickle
from collections.abc import Callable

import pytest

from pipeline.errors import UserError, raise_user_error, user_error


class Wrapped(Exception):
    """Holds its origin in an attribute, as Ray's RayTaskError does."""

    def __init__(self, cause: object) -> None:
        super().__init__("task failed")
        self.cause = cause


def caught(raising: Callable[[], None]) -> BaseException:
    with pytest.raises(BaseException) as info:  # noqa: PT011  # any exception, as a framework would catch it
        raising()
    return info.value


def raised_from() -> None:
    try:
        raise UserError("data.root: missing")
    except UserError as error:
        raise RuntimeError("worker died") from error


def raised_during() -> None:
    try:
        raise UserError("data.root: missing")
    except UserError:
        raise RuntimeError("while cleaning up")  # noqa: B904  # without `from`, on purpose


def raised_in_a_remote_task() -> None:
    raise Wrapped(UserError("data.root: missing"))


def raised_in_depth() -> None:
    try:
        raised_in_a_remote_task()
    except Wrapped as error:
        try:
            raise ValueError("in between") from Wrapped(error)
        except ValueError:
            raise RuntimeError("outermost") from None


@pytest.mark.parametrize("raising", [raised_from, raised_during, raised_in_a_remote_task, raised_in_depth])
def test_a_user_error_is_found_behind_whatever_wraps_it(raising: Callable[[], None]) -> None:
    found = user_error(caught(raising))
    assert type(found) is UserError
    assert str(found) == "data.root: missing"


def test_a_user_error_is_found_in_itself() -> None:
    assert str(user_error(UserError("data.root: missing"))) == "data.root: missing"


def test_a_subclass_that_a_framework_made_shows_the_message_alone() -> None:
    """Ray raises a class that is both its own and the task's, and whose text is a traceback."""

    class RayTaskErrorOfUserError(Wrapped, UserError):
        def __str__(self) -> str:
            return "Traceback (most recent call last): ..."

    remote = RayTaskErrorOfUserError(UserError("data.root: missing"))
    remote.args = (UserError("data.root: missing"),)
    assert str(user_error(remote)) == "data.root: missing"


def test_the_advice_that_ray_data_appends_is_no_part_of_the_message() -> None:
    error = UserError("data.root: missing")
    error.args = (f"{error.args[0]}\nFailed to apply UDF transform after 1/1 attempts",)
    remote = Wrapped(pickle.loads(pickle.dumps(error)))
    assert str(error) == str(user_error(remote)) == "data.root: missing"


@pytest.mark.parametrize("error", [ValueError("ours"), Wrapped(None), Wrapped("text"), Wrapped(KeyError("a"))])
def test_a_fault_of_ours_is_no_user_error(error: Exception) -> None:
    assert user_error(error) is None


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("first"), Wrapped(None)
    first.__cause__, second.cause = second, first
    assert user_error(first) is None


def test_the_cause_that_the_user_can_fix_is_raised_alone_and_any_other_error_as_it_is() -> None:
    crash = RuntimeError("task failed")
    crash.__cause__ = UserError("photo.jpg: no such file")
    with pytest.raises(UserError, match=r"^photo.jpg: no such file$") as raised:
        raise_user_error(crash)
    assert raised.value.__suppress_context__
    bug = KeyError("a bug")
    with pytest.raises(KeyError) as same:
        raise_user_error(bug)
    assert same.value is bug
