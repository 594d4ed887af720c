"""First weights of `fusion`, in the order of its cells.

Measured on the embedded model, validation prompts of nine domains (81 greedy, 81 at temperature 1, 96
new tokens each, loops left out): the softmax of `fusion` fitted to the candidates of every node on the
walked paths, with a pull to a plain guess where a cell was seldom seen. Cross
validated, a target's token costs 0.90 nats greedy and 1.44 sampled; with the plain guess 1.19 and 1.86.
"""

from __future__ import annotations

# fmt: off
GREEDY_WEIGHTS: tuple[float, ...] = (
    # none: nothing, one or several tokens retrieved; + 3 recycled; + 6 ahead
    *(0.00, 1.84, 2.14, 1.42, 1.27, 1.62, 1.84, 1.74, 1.50, 1.17, 1.52, 1.29),
    # retrieved after 1 token: newest and next, four kinds each
    *(1.25, 0.58, -0.85, -0.85, -1.85, 0.51, -1.85, -1.85),
    # retrieved after 2 tokens: newest and next, four kinds each
    *(1.43, 0.25, -0.58, -0.58, -1.58, 0.05, -1.58, -1.58),
    # retrieved after 3 tokens: newest and next, four kinds each
    *(1.98, 0.38, 1.39, 1.39, 0.39, 0.70, 0.39, 0.39),
    # retrieved after 4 tokens: newest and next, four kinds each
    *(2.37, 0.92, 1.73, 1.73, 0.73, 0.74, 0.73, 0.73),
    # retrieved after 5 tokens: newest and next, four kinds each
    *(2.74, 1.64, 2.20, 2.20, 1.20, 0.97, 1.20, 1.20),
    # retrieved after 6 tokens: newest and next, four kinds each
    *(3.55, 0.86, 2.44, 2.44, 1.44, 1.05, 1.44, 1.44),
    # recycled after a token: log-odds of the share from -4 to 4, best and other
    *(-2.40, -2.90, -1.80, -0.15, -0.25, 0.50, 1.42, 1.25, 2.09),
    *(0.59, 2.47, 0.10, 2.11, 0.70, 2.23, 1.30, 2.92, 1.90),
    # recycled after a pair
    *(-2.40, -2.90, -1.80, -0.38, 1.92, 0.89, 2.12, 2.03, 3.04),
    *(1.81, 2.70, 0.10, 2.66, 0.70, 2.74, 1.30, 3.13, 1.90),
    # denoised for depth 1
    *(-2.40, -2.90, -1.80, -1.39, -1.30, -0.72, -0.01, -0.52, 0.55),
    *(0.86, 1.02, 0.10, 0.78, 0.70, -0.02, 1.30, 0.30, 1.90),
    # denoised for depth 2
    *(-2.40, -2.90, -1.80, -0.50, -1.22, -1.18, -0.16, -0.08, 0.17),
    *(-0.69, 0.19, 0.10, 1.09, 0.70, 1.15, 1.30, 0.82, 1.90),
    # denoised for depth 3
    *(-2.40, -2.90, -1.80, -0.63, -1.20, -0.74, 0.46, -0.34, -0.03),
    *(0.12, 0.26, 0.10, -0.01, 0.70, 1.39, 1.30, 0.93, 1.90),
    # denoised for depth 4 and more
    *(-2.40, -2.90, -1.80, -1.87, -1.20, -1.14, -0.63, -1.14, 0.04),
    *(-0.54, -0.21, 0.10, 0.43, 0.70, 1.07, 1.30, 0.47, 1.90),
    # adaptive token at slot 1
    *(-2.40, -2.90, -1.80, -0.26, 0.11, 0.10, 0.75, 1.33, 1.57),
    *(0.65, 2.38, 0.10, 2.56, 0.70, 3.65, 1.30, 2.62, 1.90),
    # adaptive token at slot 2
    *(-2.40, -2.90, -1.80, -1.06, 0.21, -0.41, 0.21, 0.46, 0.80),
    *(-0.57, 0.50, 0.10, 1.01, 0.70, 2.40, 1.30, 2.40, 1.90),
    # adaptive token at slot 3
    *(-2.40, -2.90, -1.80, -2.01, -1.46, -0.44, 0.55, -1.28, 1.23),
    *(-0.56, 0.55, 0.10, 0.86, 0.70, 1.80, 1.30, 2.40, 1.90),
    # adaptive token at slot 4 and more
    *(-2.40, -2.90, -1.80, -2.31, -1.20, -0.36, -0.68, -1.14, -0.29),
    *(-0.50, 0.60, 0.10, 1.20, 0.70, 1.80, 1.30, 2.40, 1.90),
)

COUPLED_WEIGHTS: tuple[float, ...] = (
    # none: nothing, one or several tokens retrieved; + 3 recycled; + 6 ahead
    *(0.00, 2.08, 1.96, 2.30, 2.12, 2.11, 1.88, 1.48, 0.91, 1.33, 1.33, 1.04),
    # retrieved after 1 token: newest and next, four kinds each
    *(0.07, 0.67, 0.53, 1.13, -0.48, 0.31, 0.36, 0.47),
    # retrieved after 2 tokens: newest and next, four kinds each
    *(0.52, 0.64, 0.24, -0.29, -0.49, -0.79, -0.02, -0.09),
    # retrieved after 3 tokens: newest and next, four kinds each
    *(1.03, 0.76, -1.02, 0.44, -2.50, -1.08, -0.38, -1.14),
    # retrieved after 4 tokens: newest and next, four kinds each
    *(2.18, 0.99, 0.97, 0.37, 0.36, -1.41, -0.92, 0.11),
    # retrieved after 5 tokens: newest and next, four kinds each
    *(3.03, 1.31, 2.07, 0.57, -0.62, -0.04, -0.59, -0.59),
    # retrieved after 6 tokens: newest and next, four kinds each
    *(3.68, 4.18, 3.22, 2.55, -0.15, -0.18, -0.15, -0.15),
    # recycled after a token: log-odds of the share from -4 to 4, best and other
    *(-2.40, -0.29, -1.82, -0.23, 0.30, 0.44, 1.64, 1.51, 2.62),
    *(1.07, 3.01, 0.10, 3.65, 0.70, 4.37, 1.30, 3.13, 1.90),
    # recycled after a pair
    *(-2.40, -1.00, -1.81, -0.20, 1.22, 0.76, 2.37, 1.62, 3.14),
    *(1.26, 3.36, 0.10, 3.46, 0.70, 3.25, 1.30, 3.31, 1.90),
    # denoised for depth 1
    *(-2.40, -2.90, -1.80, -0.83, -1.43, -0.34, 0.37, 0.34, 0.82),
    *(0.51, 0.70, 0.10, 1.38, 0.70, 1.28, 1.30, 0.69, 1.90),
    # denoised for depth 2
    *(-2.40, -2.90, -1.80, -1.18, -1.30, -0.61, 0.51, -0.08, 1.06),
    *(-1.03, 0.54, 0.10, 1.02, 0.70, 0.26, 1.30, 0.92, 1.90),
    # denoised for depth 3
    *(-2.40, -2.90, -1.80, -0.58, -1.23, -0.47, 1.07, 0.40, 0.68),
    *(-0.55, 0.17, 0.10, 1.22, 0.70, 1.87, 1.30, 0.89, 1.90),
    # denoised for depth 4 and more
    *(-2.40, -2.90, -1.80, -0.98, -1.20, -0.87, -1.06, -1.39, -0.06),
    *(0.01, 0.86, 0.10, 1.06, 0.70, 1.48, 1.30, 0.71, 1.90),
    # adaptive token at slot 1
    *(-2.40, -2.90, -1.80, -0.43, 0.04, 0.45, 1.36, 1.33, 1.71),
    *(2.07, 2.35, 0.10, 2.42, 0.70, 2.71, 1.30, 3.56, 1.90),
    # adaptive token at slot 2
    *(-2.40, -2.90, -1.80, -0.25, -1.35, 0.29, 1.10, 0.88, 1.65),
    *(0.48, 1.62, 0.10, 2.48, 0.70, 2.70, 1.30, 3.07, 1.90),
    # adaptive token at slot 3
    *(-2.40, -2.90, -1.80, -0.44, -1.28, 0.29, 0.49, 0.13, 1.28),
    *(-0.50, 1.20, 0.10, 2.10, 0.70, 2.43, 1.30, 3.14, 1.90),
    # adaptive token at slot 4 and more
    *(-2.40, -2.90, -1.80, -1.00, -1.21, -0.27, 0.29, -0.05, 1.51),
    *(-0.50, 0.45, 0.10, 2.02, 0.70, 1.80, 1.30, 2.40, 1.90),
)
