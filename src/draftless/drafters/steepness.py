"""How steep the prices really are, learnt from the steps that are made anyway.

A price list holds for the minute in which it was measured. Other load makes wide passes dearer than
narrow ones, or cheaper, and a list that is too flat makes trees that are too wide. So the seconds of
the forwards are fitted, with forgetting, by

    seconds = base * list(1) + steepness * base * (list(W) - list(1))

and the planner reckons with the list's own price of a plain step and this slope.
"""

from __future__ import annotations

_FORGET = 0.99  # per step: some hundred steps count
_PRIOR = 1.5  # narrow and wide steps that the list as it is is worth
_OUTLIER = 3.0  # times what was expected: a pause, not a price
_LEAST, _MOST = 0.2, 5.0


class Steepness:
    """The fit for one number of rows.

    Attributes:
        value: of the slope; 1 is the list's own.
        scale: seconds over the list's, a moving mean; 0 before anything was learnt.
    """

    def __init__(self) -> None:
        self.value = 1.0
        self.scale = 0.0
        # Sums of 1, x, x^2, y and x y with x the list's surplus over a plain step and y the seconds,
        # both over the list's plain step.
        self._sums = [0.0] * 5

    def learn(self, plain_s: float, price_s: float, seconds: float) -> None:
        """A forward took `seconds`; the list has `price_s` for it and `plain_s` for one token."""
        x, y = price_s / plain_s - 1.0, seconds / plain_s
        expected = self.scale * (1.0 + self.value * x)
        if not expected:
            self.scale = y / (1.0 + x)
        y = min(y, _OUTLIER * expected) if expected else y
        self.scale += 0.05 * (y / (1.0 + self.value * x) - self.scale)
        terms = (1.0, x, x * x, y, x * y)
        self._sums = [_FORGET * old + new for old, new in zip(self._sums, terms, strict=True)]
        self.value = self._fit()

    def _fit(self) -> float:
        num, sum_x, sum_xx, sum_y, sum_xy = self._sums
        # The list as it is, for no surplus and for twice the usual one, so that steps of one width
        # alone leave the slope what it is.
        scale = self.scale
        for x in (0.0, max(2.0 * sum_x / num, 1e-3)):
            num += _PRIOR
            sum_x += _PRIOR * x
            sum_xx += _PRIOR * x * x
            sum_y += _PRIOR * scale * (1.0 + x)
            sum_xy += _PRIOR * scale * (1.0 + x) * x
        spread = num * sum_xx - sum_x * sum_x
        slope = (num * sum_xy - sum_x * sum_y) / spread
        base = (sum_y - slope * sum_x) / num
        return min(_MOST, max(_LEAST, slope / base)) if base > 0.0 else _MOST
