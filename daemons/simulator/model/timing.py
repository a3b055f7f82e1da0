"""How long one engine step takes."""

import random
from dataclasses import dataclass
from typing import Protocol

from daemons.simulator.model.scheduler import Step


class StepCost(Protocol):
    """Seconds that the hardware would need for a step."""

    def seconds(self, step: Step) -> float:
        """Duration of `step`."""


@dataclass(slots=True)
class LinearCost:
    """One pass over the weights, plus a share for each decoded sequence and each prefilled token.

    The shape of vidur's A40 profiles of a 7B model in fp16: 24 ms at batch 1, 30 ms at batch 128 (47 µs a
    sequence), prefill about 7,900 tokens a second.

    Attributes:
        inter_token: seconds of a step that decodes a single sequence.
        per_sequence: seconds added by every further sequence that decodes.
        prefill_rate: prompt tokens a second.
        jitter: standard deviation of a step, relative to its length.
        random: source of the jitter.
    """

    inter_token: float
    per_sequence: float
    prefill_rate: float
    jitter: float
    random: random.Random

    def seconds(self, step: Step) -> float:
        """Duration of `step`; never less than half of its mean."""
        mean = (
            self.inter_token
            + self.per_sequence * max(0, step.decode_tokens - 1)
            + step.prefill_tokens / self.prefill_rate
        )
        if not self.jitter:
            return mean
        return mean * max(0.5, self.random.gauss(1.0, self.jitter))
