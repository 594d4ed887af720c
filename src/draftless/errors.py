"""The one small tree of exceptions. Every message names the value, the limit and the way out."""

from __future__ import annotations


class DraftlessError(Exception):
    """Root of everything that Draftless raises on purpose."""


class ConfigError(DraftlessError, ValueError):
    """An option has a value that cannot be honoured, alone or together with another one."""


class InputError(DraftlessError, ValueError):
    """A prompt, a data record or a token id that cannot be used."""


class CapabilityError(DraftlessError):
    """The model (or its cache, attention or placement) cannot do what exact drafting needs."""


class ArtifactError(DraftlessError):
    """A file or folder of ours (checkpoint, manifest, result) is missing, broken or too new."""
