"""The forward pass on a CPU: one recorded pass, lowered to steps that `native/forward.cpp` runs."""
