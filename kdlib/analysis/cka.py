"""Are the features of two networks alike? (lecture, equations 3 and 4)"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from kdlib import inputs
from kdlib.stages import Tap, evaluating, stage_names


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features of the same n samples, in [0, 1].

        CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),   HSIC(K, L) = tr(K H L H) / (n - 1)^2

    with K = X X^T, L = Y Y^T and the centring matrix H (lecture, equations 3 and 4). The estimate
    is biased upwards when the features are wide and n is small; `minibatch_cka` is not.

    Args:
        x, y: floating-point features [n, ...]; they are flattened and may differ in width.

    Raises:
        ValueError: features that are constant or not finite, sets of unlike size.
        TypeError: features of another type.
    """
    inputs.lengths(x=x, y=y)
    # CKA does not depend on the scale, and neither does it overflow at norm 1.
    x, y = (f / f.norm() for f in (_centred("x", x), _centred("y", y)))
    if max(x.shape[1], y.shape[1]) < len(x):  # tr(K H L H) = |X^T H Y|^2: no n x n matrix
        xy, xx, yy = ((a.T @ b).square().sum() for a, b in ((x, y), (x, x), (y, y)))
    else:
        k, ell = x @ x.T, y @ y.T
        xy, xx, yy = (k * ell).sum(), k.square().sum(), ell.square().sum()
    return (xy / (xx * yy).sqrt()).item()


def minibatch_cka(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """CKA over minibatches, each a pair of features (x, y) [n, ...] of the same at least four
    samples.

    The unbiased HSIC of every batch is averaged before the ratio is taken, so the result does not
    depend on the batch size, apart from noise (Nguyen et al. 2021); for unrelated features it is
    near 0 and may be negative. Errors as in `cka_heatmap`.
    """
    return cka_heatmap(([x], [y]) for x, y in batches).item()


def cka_heatmap(batches: Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]]) -> Tensor:
    """`minibatch_cka` of every stage of one model with every stage of another.

    Args:
        batches: pairs (features of the first model, features of the second), each a list of
            tensors [n, ...], one per stage, of the same n >= 4 samples.

    Returns:
        float64 [stages of the first, stages of the second].

    Raises:
        ValueError: no batches, fewer than four samples, features that are constant or not finite,
            batches too small for a ratio (an estimated HSIC(K, K) of 0 or less).
        TypeError: a list of features that is none.
    """
    sums: list[Tensor] = []
    for xs, ys in batches:
        ks, ls = _grams("x", xs), _grams("y", ys)
        if ks.shape[1] != ls.shape[1]:
            raise ValueError(
                f"x and y must hold the same samples, got {ks.shape[1]} in x and {ls.shape[1]} in y"
            )
        terms = [_hsic(ks[:, None], ls[None]), _hsic(ks, ks), _hsic(ls, ls)]
        if sums and sums[0].shape != terms[0].shape:
            raise ValueError(
                f"every batch must hold the same stages, got {list(sums[0].shape)} and then "
                f"{list(terms[0].shape)}"
            )
        sums = [a + b for a, b in zip(sums, terms)] if sums else terms
    if not sums:
        raise ValueError("batches must hold at least one pair of features, got none")
    xy, xx, yy = sums
    if not bool((torch.cat([xx, yy]) > 0).all()):
        raise ValueError(
            "batches must be large enough for an estimate, got an HSIC(K, K) of 0 or less: use "
            "more samples in a batch"
        )
    return xy / (xx.sqrt()[:, None] * yy.sqrt()[None])


@torch.no_grad()
def network_cka(
    first: nn.Module,
    second: nn.Module,
    images: Tensor,
    stages: Sequence[str | int] | None = None,
    *,
    batch_size: int = 250,
) -> Tensor:
    """`cka_heatmap` of two networks on the same images [n, ...].

    Args:
        stages: names or indices that both networks know; default: all that each declares.
        batch_size: at least 4; the last batch is left out if it is smaller.

    Returns:
        float64 [stages of the first, stages of the second].

    Raises:
        ValueError: fewer images than a batch, unknown stages; further errors as in `cka_heatmap`.
    """
    batch_size = inputs.whole("batch_size", batch_size, low=4, high=len(images))
    with ExitStack() as stack:
        taps = []
        for network in (first, second):
            stack.enter_context(evaluating(network))
            known = stage_names(network) if stages is None else stages
            taps.append(stack.enter_context(Tap(network, known)))

        def features(tap: Tap, batch: Tensor) -> list[Tensor]:
            found = tap(batch)[1]
            return [found[stage] for stage in tap.stages]

        whole = images[: len(images) // batch_size * batch_size]
        return cka_heatmap(
            (features(taps[0], batch), features(taps[1], batch))
            for batch in whole.split(batch_size)
        )


def _centred(name: str, features: Tensor) -> Tensor:
    """Features as float64 [n, d] of mean 0, an error where they carry nothing."""
    found = inputs.float64(inputs.tensor(name, features).detach()).flatten(1)
    centred = found - found.mean(0)
    if not bool(centred.any()):
        raise ValueError(
            f"{name} must differ between the samples, got a constant: CKA is undefined"
        )
    return centred


def _grams(name: str, features: Sequence[Tensor]) -> Tensor:
    """Gram matrices [stages, n, n] with an empty diagonal, as the unbiased HSIC wants them."""
    if not isinstance(features, (list, tuple)) or not features:
        raise TypeError(
            f"{name} must be a list of tensors, one per stage, got {inputs.describe(features)}"
        )
    named = {f"{name}[{stage}]": tensor for stage, tensor in enumerate(features)}
    inputs.lengths(**named)
    inputs.whole(f"the number of samples in {name}", len(features[0]), low=4)
    centred = [_centred(stage, tensor) for stage, tensor in named.items()]
    grams = torch.stack([x @ x.T for x in centred])
    grams.diagonal(dim1=1, dim2=2).zero_()
    return grams


def _hsic(k: Tensor, ell: Tensor) -> Tensor:
    """Unbiased HSIC of Gram matrices [..., n, n] with an empty diagonal (Song et al. 2012)."""
    n = k.shape[-1]
    both = (k * ell).sum((-2, -1))
    totals = k.sum((-2, -1)) * ell.sum((-2, -1)) / ((n - 1) * (n - 2))
    rows = 2 * (k.sum(-1) * ell.sum(-1)).sum(-1) / (n - 2)
    return (both + totals - rows) / (n * (n - 3))
