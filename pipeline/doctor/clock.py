"""Clock check: S3 rejects requests whose signing time differs from its own by more than 15 minutes."""

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import botocore.exceptions

from pipeline import storage
from pipeline.doctor.findings import FAIL, OK, WARN, CheckResult
from pipeline.doctor.nodes import Answer, Node, Reply, Roll
from pipeline.storage import s3_client

REFUSED = 15 * 60  # seconds
WARNED = 60  # seconds
ROUNDS = 3  # the fastest one counts
LIMIT = 30.0  # seconds per round
STORAGE = "storage"
REMEDY = "set the clock, and keep it synchronized with chrony or systemd-timesyncd"


@dataclass(frozen=True)
class Skew:
    """Time by which a clock is ahead of the driver's, and its uncertainty (±); both in seconds."""

    ahead: float
    uncertainty: float


def now() -> float:
    return time.time()


def skew_of(answer: Answer) -> Skew:
    """Return a node's skew from its answer to `now`, which it read at some moment between question and answer."""
    middle, half = (answer.sent + answer.received) / 2, (answer.received - answer.sent) / 2
    return Skew(answer.value - middle, half)


def measure_skews(roll: Roll) -> list[tuple[Node, Reply]]:
    """Measure the clock of each node; the values of the replies are Skew objects."""
    best: dict[Node, Reply] = {}
    for _ in range(ROUNDS):
        for node, reply in roll.ask(now, limit=LIMIT, nodes=[n for n in roll.nodes if _quick(best.get(n))]):
            if isinstance(reply, Answer):
                reply = Answer(skew_of(reply), reply.sent, reply.received)
            known = best.get(node)
            if not isinstance(known, Answer) or (
                isinstance(reply, Answer) and reply.value.uncertainty < known.value.uncertainty
            ):
                best[node] = reply
    return list(best.items())


def _quick(known: Reply | None) -> bool:
    return known is None or isinstance(known, Answer)


def storage_skew(uri: str) -> Skew | None:
    """Return the skew of the S3 server from the Date header of a response, in whole seconds; None without a header.

    Raises: UserError.
    """
    bucket = uri.split("/")[2]
    sent = time.time()
    with storage.explained(uri):
        try:
            answer = s3_client.current().client.head_bucket(Bucket=bucket)
        except botocore.exceptions.ClientError as error:  # an error response has a Date header, too
            answer = error.response
    received = time.time()
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date is None:
        return None
    middle, half = (sent + received) / 2, (received - sent) / 2
    return Skew(parsedate_to_datetime(date).timestamp() + 0.5 - middle, half + 0.5)


def judge_skews(nodes: dict[str, Skew], of_storage: Skew | None = None) -> list[CheckResult]:
    """Compare the clocks of the nodes, by name, and of storage with the driver's clock."""
    findings = []
    for name, skew in {**nodes, **({STORAGE: of_storage} if of_storage else {})}.items():
        off = abs(skew.ahead)
        message = f"its clock is {_span(off)} {'ahead of' if skew.ahead > 0 else 'behind'} the driver's"
        message += f" (± {_span(skew.uncertainty)})"
        if off + skew.uncertainty <= WARNED:
            continue
        if off <= WARNED:
            findings.append(CheckResult(WARN, f"its clock could only be measured to ± {_span(skew.uncertainty)}", name))
        elif off - skew.uncertainty >= REFUSED:
            findings.append(CheckResult(FAIL, f"{message}; S3 rejects requests that are 15 min off: {REMEDY}", name))
        else:
            findings.append(CheckResult(WARN, f"{message}; S3 rejects requests from 15 min on: {REMEDY}", name))
    if findings or not nodes:
        return findings
    worst = max(nodes.values(), key=lambda skew: abs(skew.ahead) + skew.uncertainty)
    message = f"nodes within {_format_skew(worst)} of the driver"
    return [CheckResult(OK, f"{message}, storage within {_format_skew(of_storage)}" if of_storage else message)]


def _format_skew(skew: Skew) -> str:
    return f"{_span(abs(skew.ahead))} (± {_span(skew.uncertainty)})"


def _span(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.3f} s"
