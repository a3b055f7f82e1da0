"""One request on its way: takes what arrives and, at the end, says how it went."""

from array import array
from math import nan

from daemons.loadtest.client.answers import Answer, Usage, decode_answer, reason_in
from daemons.loadtest.client.records import Outcome, Record
from daemons.loadtest.client.wire import EventParser, ProtocolError
from daemons.loadtest.load.sessions import Request, Session

MOST_BODY = 64 << 20
"""Bytes of an answer that is read whole."""
_STATUS_OUTCOMES = {
    401: Outcome.UNAUTHORISED,
    403: Outcome.UNAUTHORISED,
    429: Outcome.RATE_LIMITED,
    503: Outcome.OVERLOADED,
}


def outcome_of_status(status: int) -> Outcome:
    """The outcome of an answer that is not a success."""
    if status in _STATUS_OUTCOMES:
        return _STATUS_OUTCOMES[status]
    return Outcome.SERVER_ERROR if status >= 500 else Outcome.CLIENT_ERROR


class Exchange:
    """State of one request. All times are of one monotonic clock, in seconds.

    Attributes:
        intended: when the load says it begins.
        due: when the generator could have sent it.
        touched: when the last byte arrived, or it was sent.
        reason: why it failed, as the target or the system put it.
    """

    __slots__ = (
        "_body",
        "_done",
        "_error",
        "_events",
        "_first",
        "_gaps",
        "_last",
        "_tokens_seen",
        "_usage",
        "due",
        "intended",
        "reason",
        "redialled",
        "request",
        "sent",
        "session",
        "touched",
    )

    def __init__(self, request: Request, session: Session, intended: float, due: float, now: float) -> None:
        self.request = request
        self.session = session
        self.intended = intended
        self.due = due
        self.sent = self.touched = now
        self.redialled = False
        self.reason = ""
        self._events = EventParser()
        self._body = bytearray()
        self._first = self._last = nan
        self._gaps: array[float] = array("f")
        self._usage: Usage | None = None
        self._tokens_seen = 0
        self._done = self._error = False

    @property
    def events(self) -> int:
        """Streamed events with a token so far."""
        return self._tokens_seen

    def on_event_bytes(self, piece: bytes, now: float) -> None:
        """Take a piece of an event stream."""
        for data in self._events.feed(piece):
            if data == b"[DONE]":
                self._done = True
                continue
            answer = decode_answer(data)
            if answer is None or answer.failed:
                self._error = True
                self.reason = reason_in(data)
            else:
                self._on_answer(answer, now)

    def _on_answer(self, answer: Answer, now: float) -> None:
        if answer.usage is not None:
            self._usage = answer.usage
        if not answer.has_token:
            return
        if self._tokens_seen:
            self._gaps.append(now - self._last)
        else:
            self._first = now
        self._last = now
        self._tokens_seen += 1

    def on_body_bytes(self, piece: bytes) -> None:
        """Take a piece of a body that is no event stream.

        Raises:
            ProtocolError: it grows beyond anything that is an answer.
        """
        self._body += piece
        if len(self._body) > MOST_BODY:
            raise ProtocolError("an answer without end")

    def outcome(self, status: int, *, event_stream: bool) -> Outcome:
        """How a response that arrived whole is to be counted."""
        body = bytes(self._body)
        if status != 200:
            self.reason = f"{status} {reason_in(body)}".rstrip()
            return outcome_of_status(status)
        if not self.request.stream:
            answer = decode_answer(body)
            if answer is None or answer.failed:
                self.reason = reason_in(body)
                return Outcome.MALFORMED
            self._usage = answer.usage
            return Outcome.OK
        if not event_stream:
            self.reason = "the answer is no event stream, though one was asked for"
            return Outcome.MALFORMED
        if self._error:
            return Outcome.ERROR_EVENT
        return Outcome.OK if self._done else Outcome.CUT

    def record(
        self, outcome: Outcome, status: int, end: float, start: float
    ) -> "tuple[Record, array[float]]":
        """The record, with times relative to `start`, and its inter-token gaps."""
        usage = self._usage if outcome is Outcome.OK else None
        return (
            Record(
                intended=self.intended - start,
                due=self.due - start,
                sent=self.sent - start,
                first=self._first - start,
                last=self._last - start,
                end=end - start,
                prompt_tokens=usage.prompt_tokens if usage else -1,
                output_tokens=usage.completion_tokens if usage else -1,
                cached_tokens=usage.cached_tokens if usage else -1,
                gaps=len(self._gaps),
                type=self.request.type,
                key=self.request.key,
                status=status,
                outcome=outcome,
                slow=int(self.request.bytes_per_second > 0),
                redialled=int(self.redialled),
            ),
            self._gaps,
        )
