"""Draftless: a causal language model drafts for itself; same output, fewer forward passes."""

__version__ = "0.1.0"
