"""Stress cases of attention and attention_qkvpacked, for both backward passes."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels._attention.operators import dropout_mask
from kernels._attention.tiles import Tile, Tiles
from kernels.attention import attention, attention_qkvpacked, attention_reference
from kernels.documents import document_bounds
from tests.campaigns.stress.case import Case, Check, Returning, beyond, nothing_else, unspoilt
from tests.campaigns.stress.draw import Draw

LOG2E = math.log2(math.e)  # which the kernels fold into the scale
# From here on float32 does not tell scores apart that differ by 1/16: the backward's P, computed
# again, is no longer that of the forward in any digit.
COARSE = 2.0**20
WIDTHS = (1, 2, 3, 8, 15, 16, 16, 17, 20, 32, 32, 40, 64, 64, 80, 96, 128, 160, 256)


def _draw(packed: bool, draw: Draw) -> Case:
    d = draw.choose(*WIDTHS)
    t = draw.size(180)
    b_and_h = draw.rows(15000, max(t * t, t * d, 1000))
    b, h = (1, 1, *b_and_h)[-2:]
    if math.prod(b_and_h) == 0:
        b, t, h = draw.choose((0, t, 2), (2, 0, 1), (1, t, 0))
    shape = (b, t, h, d)
    dtype = draw.dtype()
    values = {name: draw.values(shape, dtype) for name in ("q", "k", "v")}
    if packed:
        inputs = draw.inputs({"qkv": torch.stack([*values.values()], 2)}, unit_last=True)
        qkv = dict(zip("qkv", inputs["qkv"].unbind(2), strict=True))
    elif draw.chance(1 / 3):  # views of one projection
        whole = draw.place(torch.stack([*values.values()], 2), "qkv", unit_last=True)
        parts = zip("qkv", whole.unbind(2), strict=True)
        inputs = qkv = {name: draw.ask(x) for name, x in parts}
    else:
        inputs = qkv = draw.inputs(values, unit_last=True)
    options = {
        "window": draw.choose(None, draw.size(max(1, t)), draw.size(max(1, t)), 2**40),
        "scale": draw.choose(None, None, 10 ** draw.number(-3, 1)),
        "dropout_p": 0.0,
        "documents": None,
    }
    if draw.chance(1 / 4):
        first = draw.uniform(b, t) < 10 ** draw.number(-3, 0)
        options["documents"] = document_bounds(first.to(draw.memory.device))
    keep, seed = None, None
    if draw.chance(1 / 4) and 0 not in shape:
        options["dropout_p"] = draw.choose(0.1, 0.5, 0.9)
        seed = torch.tensor([draw.integer(0, 2**63 - 1)], device=draw.memory.device)
        keep = dropout_mask(seed, (b, t, h), options["dropout_p"])
        _check_mask(keep, seed, options["dropout_p"])
    upstream = draw.upstream(shape, dtype)
    kernel = partial(
        attention_qkvpacked if packed else attention,
        dropout_seed=seed, deterministic=draw.chance(1 / 2), **options,
    )  # fmt: skip
    if not packed:
        kernel.keywords["return_lse"] = True

    def reference(**given: Tensor) -> Any:
        parts = given["qkv"].unbind(2) if packed else given.values()
        o, lse = attention_reference(*parts, keep=keep, **options)
        return o if packed else (o, lse)

    patches: dict[str, Any] = {}
    if draw.chance(3 / 4):  # small tiles, so that short sequences have many
        sizes = [16, 32, 64]
        if draw.on_gpu:  # what fits the shared memory of any GPU
            sizes = [16, 32] if d * dtype.itemsize <= 256 else [16]
        tile = Tile(draw.choose(*sizes), draw.choose(*sizes), 4, 2)
        tiles = Tiles(tile, tile, tile)
        patches["kernels._attention.operators.choose_tiles"] = Returning(tiles)
    if draw.chance(1 / 4):
        patches["kernels._attention.operators.l2_bytes"] = Returning(1)
    return Case(
        draw.memory, kernel, reference, inputs, [upstream] if packed else [upstream, None],
        _cancelled(qkv, upstream, keep, options), patches, _also(draw, inputs, options["window"]),
    )  # fmt: skip


def _check_mask(keep: Tensor, seed: Tensor, dropout_p: float) -> None:
    """Assert that a mask drops its share, and is another one for another seed or head.

    A right one would fail by chance in less than a billionth of all cases.
    """
    b, h, t, _ = keep.shape
    if t < 24:
        return
    spread = 6.5 * math.sqrt(keep.numel() * dropout_p * (1 - dropout_p))
    dropped = int((~keep).sum())
    assert abs(dropped - dropout_p * keep.numel()) < spread, f"{dropped} of {keep.numel()} dropped"
    assert not torch.equal(dropout_mask(seed ^ 2**40, (b, t, h), dropout_p), keep), "seed ignored"
    heads = keep.reshape(b * h, t * t)
    assert len(heads.unique(dim=0)) == b * h, "two heads have one mask"


def _cancelled(qkv, do, keep, options):
    """Compute the magnitudes of what cancels: the equations with every difference made a sum.

    S has roundings of the size of scale |q| |k|^T, and P = exp(S - L) has them relative to itself,
    as long as they are small against 1.
    dP - delta is a difference, exactly zero where a row sees one key; so are the sums after it.
    Delta is made of o as it is stored: of numbers with a rounding of their dtype, which weighs as
    many roundings of float32 as `ratio` says.

    Infinite magnitudes promise nothing. Where o overflows, or did before it was divided by the sum
    of exp(S - max S), delta is NaN.
    """
    signed = [x.detach().double() for x in qkv.values()]
    q, k, v = (x.abs() for x in signed)
    if q.numel() == 0:
        return {}
    scale = q.shape[-1] ** -0.5 if options["scale"] is None else options["scale"]
    known = {name: options[name] for name in ("window", "dropout_p", "documents")}
    o_exact, lse = attention_reference(*signed, scale=scale, keep=keep, **known)
    scores = scale * torch.einsum("bihd,bjhd->bhij", *signed[:2])
    sizes = scale * torch.einsum("bihd,bjhd->bhij", q, k)
    behind = torch.arange(q.shape[1], device=q.device)
    behind = behind[:, None] - behind
    visible = (behind >= 0) & (behind < (options["window"] or math.inf))
    if options["documents"] is not None:
        begins = options["documents"][0][:, None]
        visible = visible & (begins[..., None] == begins[..., None, :])
    p = torch.exp(scores - lse[..., None]).where(visible, 0)
    # Sums of q k^T overflow or not by their order where they do so without their signs.
    rough = p * (1 + sizes) + beyond(LOG2E * sizes) + beyond(sizes / scale)
    z = 1.0 if keep is None else keep / (1 - options["dropout_p"])
    dp = torch.einsum("bihd,bjhd->bhij", do.double().abs(), v) * z
    o = torch.einsum("bhij,bjhd->bihd", rough * z, v)
    lse_size = rough.amax(-1)
    overflow = beyond(torch.einsum("bhij,bjhd->bihd", p / p.amax(-1, keepdim=True) * z, v))
    o = o + overflow
    overflow = overflow + beyond(o_exact.abs(), torch.finfo(do.dtype).max / 2)
    rough = rough + beyond(sizes, COARSE) + overflow.transpose(1, 2)
    ds = rough * (dp + (p * dp).sum(-1, keepdim=True)) + beyond(dp)
    ratio = torch.finfo(do.dtype).eps / torch.finfo(torch.float32).eps
    ds += ratio * p * torch.einsum("bihd,bihd->bhi", do.double().abs(), o_exact.abs())[..., None]
    dq = torch.einsum("bhij,bjhd->bihd", ds, k)
    dk = torch.einsum("bhij,bihd->bjhd", ds, q)
    # The kernels multiply by the scale last. With q = 0 and k near the largest number of float32,
    # the sum of dS k overflows though dq, scaled, would not: such rows are left out.
    dq, dk = (scale * (x + beyond(x)) for x in (dq, dk))
    dv = torch.einsum("bhij,bihd->bjhd", rough * z, do.double().abs())
    return {
        "out": o, "out0": o, "out1": lse_size,
        "dq": dq, "dk": dk, "dv": dv, "dqkv": torch.stack([dq, dk, dv], 2),
    }  # fmt: skip


def _also(draw: Draw, inputs: dict[str, Tensor], window: int | None) -> Check:
    """Return a check that no row depends, in any bit, on a position after it or before its window.

    One case in four has it.
    """
    first = next(iter(inputs.values()))
    shared = any(0 in x.stride() for x in inputs.values())
    if first.numel() == 0 or shared or not draw.chance(1 / 4):
        return nothing_else
    cut = draw.integer(0, first.shape[1] - 1)
    changed, kept = slice(cut, None), slice(0, cut)
    if window is not None and draw.chance(1 / 2):
        changed, kept = slice(0, cut), slice(cut + window - 1, None)

    def spoil(given: dict[str, Any]) -> None:
        for x in given.values():
            x[:, changed] = 7.0

    def kept_part(name: str, was: Tensor, spoilt: dict[str, Any]) -> Any:
        if not name.startswith("out"):
            return None
        return (..., kept) if name == "out1" else (slice(None), kept)

    return unspoilt(spoil, kept_part)


OPERATORS = {"attention": partial(_draw, False), "attention_qkvpacked": partial(_draw, True)}
