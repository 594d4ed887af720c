"""The benchmark: which drafter is best for a model, machine and texts, and can it be trusted."""
