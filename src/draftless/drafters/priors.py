"""First weights of `fusion`, in the order of its cells.

Fitted by `recipes/auto_priors.py` on the embedded model, validation prompts of nine domains (126 greedy,
126 at temperature 1, 96 new tokens each, loops left out): the softmax of `fusion` on the candidates of
every node on the walked paths, with a pull to the weights before where a cell was seldom seen. On 72
other prompts a target's token costs 0.99 nats greedy and 1.56 sampled, before anything is learnt.
"""

from __future__ import annotations

# fmt: off
GREEDY_WEIGHTS: tuple[float, ...] = (
    # none: nothing, one or several tokens retrieved; + 3 recycled; + 6 ahead
    *(0.00, 2.23, 1.96, 2.21, 1.92, 1.72, 2.52, 1.13, 1.70, 1.92, 2.05, 0.99),
    # retrieved after 1 token: newest and next, four kinds each
    *(1.81, 1.15, -0.85, -0.85, -1.85, 0.64, -1.85, -1.85),
    # retrieved after 2 tokens: newest and next, four kinds each
    *(1.81, 0.81, -0.58, -0.58, -1.58, 0.56, -1.58, -1.58),
    # retrieved after 3 tokens: newest and next, four kinds each
    *(1.92, 1.16, 1.39, 1.39, 0.39, 1.00, 0.39, 0.39),
    # retrieved after 4 tokens: newest and next, four kinds each
    *(2.41, 0.76, 1.73, 1.73, 0.73, 0.13, 0.73, 0.73),
    # retrieved after 5 tokens: newest and next, four kinds each
    *(2.66, 1.88, 2.20, 2.20, 1.20, 1.58, 1.20, 1.20),
    # retrieved after 6 tokens: newest and next, four kinds each
    *(3.46, 1.58, 2.44, 2.44, 1.44, 0.84, 1.44, 1.44),
    # recycled after a token: log-odds of the share from -4 to 4, best and other
    *(-2.40, -2.90, -1.80, 0.03, 1.12, 0.33, 1.42, 0.98, 2.06),
    *(0.45, 1.96, 0.10, 1.93, 0.70, 2.54, 1.30, 2.21, 1.90),
    # recycled after a pair
    *(-2.40, -2.90, -1.80, 0.08, 1.62, 0.78, 2.30, 1.98, 2.49),
    *(2.21, 2.30, 0.10, 2.22, 0.70, 2.24, 1.30, 2.60, 1.90),
    # denoised for depth 1
    *(-2.40, -2.90, -1.80, -0.61, -0.55, -0.30, 0.71, 0.37, 1.21),
    *(0.58, 0.97, 0.10, 1.03, 0.70, 1.10, 1.30, 1.23, 1.90),
    # denoised for depth 2
    *(-2.40, -2.90, -1.80, -0.51, -0.37, -0.76, 0.69, -0.40, 0.36),
    *(-0.02, 0.15, 0.10, 0.58, 0.70, 1.21, 1.30, 0.95, 1.90),
    # denoised for depth 3
    *(-2.40, -2.90, -1.80, -0.90, -1.20, -0.78, 0.21, -0.26, 0.40),
    *(0.08, 0.59, 0.10, 0.76, 0.70, 1.27, 1.30, 0.34, 1.90),
    # denoised for depth 4 and more
    *(-2.40, -2.90, -1.80, -1.33, -1.25, -1.28, -0.11, -1.32, 0.15),
    *(-0.54, 0.38, 0.10, 0.51, 0.70, 0.58, 1.30, 0.56, 1.90),
    # adaptive token at slot 1
    *(-2.40, -2.90, -1.80, -0.05, 0.41, 0.52, 1.49, 0.88, 1.93),
    *(0.61, 2.48, 0.10, 2.28, 0.70, 3.65, 1.30, 2.62, 1.90),
    # adaptive token at slot 2
    *(-2.40, -2.90, -1.80, -1.24, 0.15, 0.15, 0.39, 0.62, 0.29),
    *(-0.57, 0.48, 0.10, 1.32, 0.70, 2.40, 1.30, 2.40, 1.90),
    # adaptive token at slot 3
    *(-2.40, -2.90, -1.80, -2.01, -1.46, -0.70, 0.46, -1.29, 1.69),
    *(-0.56, 0.55, 0.10, 0.98, 0.70, 1.80, 1.30, 2.40, 1.90),
    # adaptive token at slot 4 and more
    *(-2.40, -2.90, -1.80, -2.31, -1.20, -0.36, -0.68, -1.14, -0.29),
    *(-0.50, 0.60, 0.10, 1.20, 0.70, 1.80, 1.30, 2.40, 1.90),
)

COUPLED_WEIGHTS: tuple[float, ...] = (
    # none: nothing, one or several tokens retrieved; + 3 recycled; + 6 ahead
    *(0.00, 2.42, 2.04, 3.02, 3.05, 2.85, 2.70, 2.18, 1.56, 2.43, 2.37, 1.64),
    # retrieved after 1 token: newest and next, four kinds each
    *(0.88, 1.15, 1.39, 1.34, 0.16, 0.80, 0.87, 1.23),
    # retrieved after 2 tokens: newest and next, four kinds each
    *(0.92, 1.47, 1.46, 1.05, 0.30, 0.51, 1.05, 0.31),
    # retrieved after 3 tokens: newest and next, four kinds each
    *(1.36, 1.55, 0.35, 0.83, -0.54, -0.02, -0.10, -0.34),
    # retrieved after 4 tokens: newest and next, four kinds each
    *(2.00, 1.25, 2.37, 0.60, 0.74, -1.42, -0.06, 0.19),
    # retrieved after 5 tokens: newest and next, four kinds each
    *(3.40, 2.06, 1.73, 0.90, -0.63, 0.90, -0.59, -0.59),
    # retrieved after 6 tokens: newest and next, four kinds each
    *(4.58, 5.42, 4.27, 2.85, -0.15, -0.18, -0.15, -0.15),
    # recycled after a token: log-odds of the share from -4 to 4, best and other
    *(-2.40, -0.29, -1.82, -0.59, 0.18, 0.08, 1.03, 0.96, 1.77),
    *(1.72, 2.37, 0.10, 2.68, 0.70, 2.90, 1.30, 3.44, 1.90),
    # recycled after a pair
    *(-2.40, -1.00, -1.81, -0.34, 0.93, 0.40, 1.39, 1.52, 2.27),
    *(2.42, 2.78, 0.10, 3.13, 0.70, 3.06, 1.30, 3.39, 1.90),
    # denoised for depth 1
    *(-2.40, -2.90, -1.80, 0.13, -1.46, 0.74, 1.33, 1.09, 1.76),
    *(1.00, 2.05, 0.10, 2.34, 0.70, 2.46, 1.30, 2.25, 1.90),
    # denoised for depth 2
    *(-2.40, -2.90, -1.80, 0.02, -1.31, 0.22, 1.38, 1.12, 1.81),
    *(-0.72, 1.85, 0.10, 2.28, 0.70, 1.96, 1.30, 1.06, 1.90),
    # denoised for depth 3
    *(-2.40, -2.90, -1.80, -0.47, -1.23, 0.69, 1.23, 0.86, 0.65),
    *(-0.14, 0.60, 0.10, 1.60, 0.70, 1.76, 1.30, 0.50, 1.90),
    # denoised for depth 4 and more
    *(-2.40, -2.90, -1.80, -0.93, -1.20, -0.56, -1.15, -1.02, 0.96),
    *(0.01, 0.85, 0.10, 1.03, 0.70, 1.42, 1.30, 1.19, 1.90),
    # adaptive token at slot 1
    *(-2.40, -2.90, -1.80, 0.46, 0.41, 1.28, 2.04, 2.15, 2.80),
    *(2.85, 3.12, 0.10, 3.64, 0.70, 4.00, 1.30, 4.47, 1.90),
    # adaptive token at slot 2
    *(-2.40, -2.90, -1.80, 0.52, -0.89, 0.96, 2.08, 1.99, 2.64),
    *(0.94, 3.32, 0.10, 2.90, 0.70, 3.51, 1.30, 3.69, 1.90),
    # adaptive token at slot 3
    *(-2.40, -2.90, -1.80, -0.13, -1.29, 0.52, 0.61, 1.14, 1.28),
    *(-0.50, 0.93, 0.10, 1.87, 0.70, 2.61, 1.30, 3.19, 1.90),
    # adaptive token at slot 4 and more
    *(-2.40, -2.90, -1.80, -1.00, -1.21, -0.27, 0.29, -0.05, 1.51),
    *(-0.50, 0.45, 0.10, 2.02, 0.70, 1.80, 1.30, 2.40, 1.90),
)
