"""Whether a request drafts or sleeps, and how fast it is."""

from __future__ import annotations

from draftless.drafters.fusion import MAX_ORDER

_KEEP = 0.95  # of the sums behind the rate, per step: some twenty steps count
_USUAL = 1.5  # tokens per step before anything is counted
_FIRST_WEIGHT = 4.0  # steps that this guess is worth

_PURSE = 3.0  # plain steps that drafting may lose at most
_FIRST_PURSE, _WAKING_PURSE = (0.6, 3.0), (0.1, 0.7)  # by trust: none, full
_CREDIT = 0.1  # what one step may cost beyond the purse
_FIRST_NAP, _LONGEST_NAP = 8, 64  # steps
_LOOK_EVERY = 4  # steps of a nap
# Tokens of a match that wakes: at first, and after false alarms. Longer ones are not told apart.
_LONG_MATCH, LONGEST_MATCH = 4, MAX_ORDER

FIRST_TRUST = 0.5
"""In a model and a way of decoding of which nothing is known yet."""

_MOVED = 0.5  # of the way to what the last request says


def trust_after(trust: float, saved: float) -> float:
    """How much the next request may try: from 0 (drafting was in vain lately) to 1.

    Args:
        trust: that this request began with.
        saved: plain steps that it saved by drafting (`Pace.saved`); 0 says nothing: it never drafted.
    """
    return trust + _MOVED * ((saved > 0.0) - trust) if saved else trust


class Pace:
    """Tokens per second of one request, and whether it drafts or sleeps.

    Drafting has a purse, counted in plain steps: what it saves goes in, what it costs comes out, and
    no step may cost much more than what is in it. When it is empty drafting sleeps, for twice as many
    steps each time that waking did not pay. So a text that nobody can guess costs a few plain steps at
    the start and little afterwards, and where the requests before it were such texts, less. A long match
    wakes at once; after a false alarm it must be longer.

    Args:
        trust: see `trust_after`.

    Attributes:
        saved: plain steps that drafting saved so far.
    """

    def __init__(self, trust: float = FIRST_TRUST) -> None:
        self._tokens = self._seconds = self._steps = 0.0
        self._purse = _between(_FIRST_PURSE, trust)
        self._waking_purse = _between(_WAKING_PURSE, trust)
        self._nap, self._left = _FIRST_NAP, 0
        self._was_woken = False  # by a match
        self._is_hopeless = False  # the nap is one of `lie_down`
        self._waking_match = _LONG_MATCH
        self.saved = 0.0

    @property
    def is_asleep(self) -> bool:
        return self._left > 0

    @property
    def looks(self) -> bool:
        """Whether this step of sleep looks for a match: not each of them, for that has a price, too."""
        return not self._is_hopeless and (self._left - 1) % _LOOK_EVERY == 0

    def lie_down(self, least: float) -> bool:
        """Sleep at once if a step that drafts must bring `least` more tokens and hardly ever did.

        So it is in large batches, where all rows pay for a place and for the drafting of each; no match
        of a single row makes up for that.
        """
        usual = (self._tokens + _FIRST_WEIGHT * _USUAL) / (self._steps + _FIRST_WEIGHT)
        self._is_hopeless = not self._was_woken and usual - 1.0 < least
        if self._is_hopeless:
            self._nod_off()
        return self._is_hopeless

    def rate(self, plain_s: float) -> float:
        """Tokens per second; never less than plain decoding makes."""
        tokens = self._tokens + _FIRST_WEIGHT * _USUAL
        seconds = self._seconds + _FIRST_WEIGHT * plain_s * 1.2
        return max(tokens / seconds, 1.0 / plain_s)

    def most_s(self, plain_s: float) -> float:
        """Seconds that the next step may take."""
        return plain_s * (1.0 + self._purse + _CREDIT)

    def sleep(self, match_len: int) -> None:
        """A step without drafting was made; so many tokens at the text's end stand in it before (0 if
        nobody looked)."""
        self._was_woken = match_len >= self._waking_match
        self._left = 0 if self._was_woken else self._left - 1

    def count(self, num_tokens: int, seconds: float, plain_s: float) -> None:
        """A step that drafted was made."""
        self._is_hopeless = False
        self._tokens = self._tokens * _KEEP + num_tokens
        self._seconds = self._seconds * _KEEP + seconds
        self._steps = self._steps * _KEEP + 1.0
        saved = num_tokens - seconds / plain_s
        self._purse += saved
        self.saved += saved
        if self._purse < 0.0:
            self._nod_off()
            if self._was_woken:
                self._waking_match = min(self._waking_match + 1, LONGEST_MATCH)
        elif self._purse >= _PURSE:
            self._purse, self._nap = _PURSE, _FIRST_NAP
            self._was_woken, self._waking_match = False, _LONG_MATCH

    def _nod_off(self) -> None:
        self._left, self._purse = self._nap, self._waking_purse
        self._nap = min(2 * self._nap, _LONGEST_NAP)


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + share * (ends[1] - ends[0])
