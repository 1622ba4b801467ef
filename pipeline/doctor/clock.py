"""Whether clocks agree: S3 refuses requests that are signed more than 15 minutes off its own time."""

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import botocore.exceptions

from pipeline import storage
from pipeline.doctor.findings import FAIL, OK, WARN, CheckResult
from pipeline.doctor.nodes import Answer, Node, Reply, Roll
from pipeline.storage import s3_client

REFUSED = 15 * 60  # seconds
DOUBTFUL = 60  # seconds
ROUNDS = 3  # of which the quickest counts
LIMIT = 30.0  # seconds of a round
STORAGE = "storage"
REMEDY = "set the clock, and let chrony or systemd-timesyncd keep it"


@dataclass(frozen=True)
class Skew:
    """How far a clock is ahead of the driver's, and how surely that is known; seconds."""

    ahead: float
    uncertainty: float


def now() -> float:
    return time.time()


def skew_of(answer: Answer) -> Skew:
    """Skew of a node from its answer to `now`, read at some moment between question and answer."""
    middle, half = (answer.sent + answer.received) / 2, (answer.received - answer.sent) / 2
    return Skew(answer.value - middle, half)


def measure_skews(roll: Roll) -> list[tuple[Node, Reply]]:
    """Replies whose values are each node's Skew."""
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
    """Skew of the S3 server by its answer's date, which has whole seconds; None where it tells none.

    Raises UserError.
    """
    bucket = uri.split("/")[2]
    sent = time.time()
    with storage.explained(uri):
        try:
            answer = s3_client.current().client.head_bucket(Bucket=bucket)
        except botocore.exceptions.ClientError as error:  # a refusal has the date, too
            answer = error.response
    received = time.time()
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date is None:
        return None
    middle, half = (sent + received) / 2, (received - sent) / 2
    return Skew(parsedate_to_datetime(date).timestamp() + 0.5 - middle, half + 0.5)


def judge_skews(nodes: dict[str, Skew], of_storage: Skew | None = None) -> list[CheckResult]:
    """Judge the clocks of nodes, by name, and the storage's against the driver's."""
    findings = []
    for name, skew in {**nodes, **({STORAGE: of_storage} if of_storage else {})}.items():
        off = abs(skew.ahead)
        told = f"its clock is {_span(off)} {'ahead of' if skew.ahead > 0 else 'behind'} the driver's"
        told += f" (± {_span(skew.uncertainty)})"
        if off + skew.uncertainty <= DOUBTFUL:
            continue
        if off <= DOUBTFUL:
            findings.append(
                CheckResult(WARN, f"its clock cannot be told to better than ± {_span(skew.uncertainty)}", name)
            )
        elif off - skew.uncertainty >= REFUSED:
            findings.append(CheckResult(FAIL, f"{told}, and S3 refuses what is signed 15 min off; {REMEDY}", name))
        else:
            findings.append(CheckResult(WARN, f"{told}; S3 refuses from 15 min on: {REMEDY}", name))
    if findings or not nodes:
        return findings
    worst = max(nodes.values(), key=lambda skew: abs(skew.ahead) + skew.uncertainty)
    told = f"nodes within {_told(worst)} of the driver's"
    return [CheckResult(OK, f"{told}, storage's within {_told(of_storage)}" if of_storage else told)]


def _told(skew: Skew) -> str:
    return f"{_span(abs(skew.ahead))} (± {_span(skew.uncertainty)})"


def _span(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.3f} s"
