"""How steep the prices really are, learnt from the steps that are made anyway.

A price list holds for the minute in which it was measured. Other load makes wide passes dearer than
narrow ones, or cheaper, and a list that is too flat makes trees that are too wide. But a shared host
also changes its speed by half for seconds, as much as a tree costs, and a request that makes wide trees
in a slow minute and narrow ones in a fast one says nothing about widths. So only neighbours are compared:
what a step of another width than the one before took, against what the list says of the two. Sums of
such pairs are pulled towards the list and forget; in

    seconds = base * (list(1) + steepness * (list(W) - list(1)))

the planner reckons with the list's own base and this slope.
"""

from __future__ import annotations

import math

_FORGET = 0.99  # per pair
_PRIOR = 0.5  # squared differences of `share` that the list as it is is worth
_OUTLIER = 0.5  # of a logarithm between neighbours: a pause, not a price
_LEAST, _MOST = 0.2, 5.0
_FOLLOW = 0.05  # of the moving mean


class Steepness:
    """The slope for one number of rows.

    Attributes:
        value: of the slope; 1 is the list's own.
        scale: seconds over the list's, a moving mean; 0 before anything was learnt.
    """

    def __init__(self) -> None:
        self.value = 1.0
        self.scale = 0.0
        self._before = (0.0, 0.0)  # share and logarithm of the last step
        self._sum_squares = self._sum_products = 0.0

    def learn(self, plain_s: float, price_s: float, seconds: float) -> None:
        """A forward took `seconds`; the list has `price_s` for it and `plain_s` for one token."""
        # To first order a slope k moves the logarithm of the seconds by (k - 1) times this share.
        share, logarithm = 1.0 - plain_s / price_s, math.log(seconds / price_s)
        if not self.scale:
            self.scale, self._before = seconds / price_s, (share, logarithm)
            return
        share_before, before = self._before
        self._before = share, logarithm
        most = self.scale * (1.0 + _OUTLIER)
        self.scale += _FOLLOW * (min(seconds / price_s, most) - self.scale)
        apart = share - share_before
        if apart:
            change = max(-_OUTLIER, min(_OUTLIER, logarithm - before))
            self._sum_squares = _FORGET * self._sum_squares + apart * apart
            self._sum_products = _FORGET * self._sum_products + apart * change
            slope = 1.0 + self._sum_products / (self._sum_squares + _PRIOR)
            self.value = max(_LEAST, min(_MOST, slope))
