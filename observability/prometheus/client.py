"""Questions to a running Prometheus."""

import json
import math
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

_TIMEOUT = 30.0

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels, and its samples as (POSIX seconds, value) without NaN."""

    labels: dict[str, str]
    points: Points


class Prometheus:
    """The HTTP API of the Prometheus at `url`.

    Raises:
        urllib.error.HTTPError: a query is malformed, with 400.
        urllib.error.URLError: nobody answers.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: object) -> Any:
        """The data of a GET request."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{query}", timeout=_TIMEOUT) as answer:  # noqa: S310
            return json.load(answer)["data"]

    def instant(self, expr: str, at: float) -> list[Series]:
        """The value of `expr` at `at`."""
        data = self.get("query", query=expr, time=at)
        if data["resultType"] == "scalar":
            return [Series({}, _points([data["result"]]))]
        return [Series(one["metric"], _points([one["value"]])) for one in data["result"]]

    def over(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """The course of `expr`."""
        data = self.get("query_range", query=expr, start=start, end=end, step=step)
        return [Series(one["metric"], _points(one["values"])) for one in data["result"]]


def _points(values: list[list[Any]]) -> Points:
    found = ((float(at), float(value)) for at, value in values)
    return [(at, value) for at, value in found if not math.isnan(value)]
