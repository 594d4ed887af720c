"""The target's forward pass, traced once, cut into pieces and compiled (docs/adr/0007)."""
