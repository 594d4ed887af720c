"""What an adaptive-token probe is worth in the step after it, by slot, counted per request."""

from __future__ import annotations

from collections.abc import Sequence

from draftless.drafters.fusion import NUM_CELLS, PROBED, Found, Fusion

PRIOR = (0.25, 0.12, 0.07, 0.04, 0.02)  # tokens by slot
_CELLS = range(PROBED, NUM_CELLS)
RATE = 0.06  # of learning, per step in which the slot spoke
DRIFT = 0.02  # back to the prior, per step in which it did not: so that it is tried again
GOES_ON = 1.4  # a token that is accepted lets the ones behind it be


class ProbeWorth:
    """Tokens that a probe brings in the next step if the walk stops above it.

    Measured as what it added to the chance of the target's token: the fused chance with the probe
    less the chance without, where the walk came that far, and nothing where it did not.

    Attributes:
        of_slots: the estimate by slot, from 1 on.
    """

    def __init__(self) -> None:
        self.of_slots = list(PRIOR)

    def learn(
        self,
        fusion: Fusion,
        steps: Sequence[tuple[Found, int]],
        token_ids: Sequence[int],
        slots: Sequence[int],
    ) -> None:
        """Count one step.

        Args:
            fusion: as it was before it learnt from this step.
            steps: candidates at each node of the walk, and the cell of none of them.
            token_ids: the target's tokens after these nodes.
            slots: of the probes that spoke for the depths 1, 2, ... of this step.
        """
        spoke = set()
        for place, slot in enumerate(slots[: len(self.of_slots)]):
            added = 0.0
            if place < len(steps):
                found, none_cell = steps[place]
                token_id = token_ids[place]
                added = fusion.chance(found, none_cell, token_id)
                added -= fusion.chance(found, none_cell, token_id, without=_CELLS)
            index = min(slot, len(self.of_slots)) - 1
            self.of_slots[index] += RATE * (GOES_ON * added - self.of_slots[index])
            spoke.add(index)
        for index, prior in enumerate(PRIOR):
            if index not in spoke:
                self.of_slots[index] += DRIFT * (prior - self.of_slots[index])
