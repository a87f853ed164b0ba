"""Inversion: the noise x_T from which a deterministic sampler generates given data (DDIM, Song et al., ICLR 2021).

Diffusion Autoencoders (Preechakul et al., CVPR 2022) call it the stochastic code of an image: what its representation
does not say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from rcg.core.contracts import Level, Net, Prediction, Process


def invert(
    process: Process[Prediction], net: Net, x: Tensor, cond: Tensor | None, levels: Sequence[Level], iterations: int = 4
) -> Tensor:
    """Return the noise `(B, *S)` at the first of `levels` from which DDIM (eta 0) leads to `x` at the last.

    Args:
        process: a Gaussian process or a flow.
        net: the network.
        x: clean data `(B, *S)`.
        cond: the condition of the samples.
        levels: those that the sampler visits, noisiest first.
        iterations: evaluations of the network for each step, which find the x_t from which the step leads to x_s (a
            fixed point); 0: one evaluation at x_s instead, as published, whose error is of the order of a step.
    """
    *_, (_, noise) = noising(process, net, x, cond, levels, iterations)
    return noise


def noising(
    process: Process[Prediction], net: Net, x: Tensor, cond: Tensor | None, levels: Sequence[Level], iterations: int = 4
) -> Iterator[tuple[Level, Tensor]]:
    """Yield the levels of `invert` but the last, cleanest first, and x_t `(B, *S)` at each."""
    for start, end in pairwise(reversed(levels)):
        # At clean data no noise can be read off a prediction: there, the first step is evaluated where it ends.
        if iterations == 0 and start.sigma > 0:
            here = process.predict(net, x, start, cond)
            x = end.alpha * here.x0 + end.sigma * here.eps
        else:
            ahead = end.alpha / start.alpha * x
            for _ in range(max(1, iterations)):
                ahead = _undo(x, process.predict(net, ahead, end._replace(end=start), cond), start, end)
            x = ahead
        yield end, x


def _undo(x: Tensor, prediction: Prediction, start: Level, end: Level) -> Tensor:
    """Return x at the noisier level `end` from which a DDIM step with this prediction leads to `x` at `start`.

    The step is x_s = alpha_s x_0 + sigma_s eps, where x_t = alpha_t x_0 + sigma_t eps. One of x_0 and eps has to be
    taken from the prediction; the iteration converges faster with the one that x_t says less about.
    """
    if end.alpha > end.sigma or start.sigma == 0:
        run = end.sigma - start.sigma * end.alpha / start.alpha
        return end.alpha / start.alpha * x + run * prediction.eps
    run = end.alpha - start.alpha * end.sigma / start.sigma
    return end.sigma / start.sigma * x + run * prediction.x0
