"""The Triton kernels of `kernels.layer_norm` and `kernels.rms_norm`, which differ by the mean only.

A program holds ROWS whole rows in registers, so every element is read once. A row is held in
pieces whose widths are powers of two, as Triton wants them, and add up to its own: 1600 is
3 * 512 + 64, where rounding up to 2048 would leave a fifth of the lanes idle. A piece is as wide as
the lanes that share a row can load at 16 bytes each; in the forward a warp usually has a row to
itself, and no sum leaves the warp.

Forward: one tile of rows per program. Weight and bias are read once per program, from the cache.

Backward: as many programs as the device runs at a time walk over the tiles, the next of which is
fetched while one is computed. Each program sums its share of the weight and bias gradients in
registers, in float32, and writes one row of partial sums; `kernels._common.partials` adds these up.
The order of all sums is fixed: the same bits every time.
"""

import triton
import triton.language as tl


@triton.jit
def _append(pieces, piece):
    return pieces + (piece,)  # noqa: RUF005  (Triton does not unpack)


@triton.jit
def _load(ptrs, exists, C: tl.constexpr, STARTS: tl.constexpr, WIDTHS: tl.constexpr):
    """Load the rows that begin at `ptrs`, in pieces and in float32; zero where none exist."""
    pieces = ()
    for i in tl.static_range(len(WIDTHS)):
        cols = STARTS[i] + tl.arange(0, WIDTHS[i])[None, :]
        inside = exists if STARTS[i] + WIDTHS[i] <= C else exists & (cols < C)
        pieces = _append(pieces, tl.load(ptrs + cols, mask=inside, other=0.0).to(tl.float32))
    return pieces


@triton.jit
def _load_weight(
    ptr, C: tl.constexpr, ROWS: tl.constexpr, STARTS: tl.constexpr, WIDTHS: tl.constexpr
):
    """Load a vector that all rows share, in pieces of ROWS equal rows."""
    first = ptr + tl.zeros((ROWS, 1), tl.int32)
    return _load(first, tl.full((ROWS, 1), True, tl.int1), C, STARTS, WIDTHS)


@triton.jit
def _store(ptrs, pieces, exists, C: tl.constexpr, STARTS: tl.constexpr, WIDTHS: tl.constexpr):
    for i in tl.static_range(len(WIDTHS)):
        cols = STARTS[i] + tl.arange(0, WIDTHS[i])[None, :]
        inside = exists if STARTS[i] + WIDTHS[i] <= C else exists & (cols < C)
        tl.store(ptrs + cols, pieces[i].to(ptrs.dtype.element_ty), mask=inside)


@triton.jit
def _add(a, b):
    total = ()
    for i in tl.static_range(len(a)):
        total = _append(total, a[i] + b[i])
    return total


@triton.jit
def _multiply(a, b):
    product = ()
    for i in tl.static_range(len(a)):
        product = _append(product, a[i] * b[i])
    return product


@triton.jit
def _row_mean(pieces, C: tl.constexpr):
    """Compute the mean of each row; pieces of one width are added before their one reduction."""
    equal = pieces[0]
    for i in tl.static_range(1, len(pieces)):
        if pieces[i].shape[1] == pieces[0].shape[1]:
            equal += pieces[i]
    total = tl.sum(equal, 1, keep_dims=True)
    for i in tl.static_range(1, len(pieces)):
        if pieces[i].shape[1] != pieces[0].shape[1]:
            total += tl.sum(pieces[i], 1, keep_dims=True)
    return total / C


@triton.jit
def _fold(piece, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Add up neighbours in the rows of a piece, which is WIDTH wide then."""
    if piece.shape[1] > WIDTH:
        piece = tl.sum(tl.reshape(piece, (ROWS, WIDTH, piece.shape[1] // WIDTH)), 2)
    return piece


@triton.jit
def _fold_all(pieces):
    """Add up the pieces, which get narrower: what one reduction over each row can then finish."""
    total = pieces[0]
    for i in tl.static_range(1, len(pieces)):
        total = _fold(total, pieces[i].shape[0], pieces[i].shape[1]) + pieces[i]
    return total


@triton.jit
def _row_means(first, second, C: tl.constexpr):
    """Compute the means of the rows of two matrices with one reduction, and so one exchange."""
    one, other = tl.split(tl.sum(tl.join(_fold_all(first), _fold_all(second)), 1))
    return one[:, None] / C, other[:, None] / C


@triton.jit
def _centre(pieces, mean, C: tl.constexpr, STARTS: tl.constexpr, WIDTHS: tl.constexpr):
    """Subtract the mean, and keep zeros past the end of the row."""
    centred = ()
    for i in tl.static_range(len(pieces)):
        piece = pieces[i] - mean
        if STARTS[i] + WIDTHS[i] > C:
            piece = tl.where(STARTS[i] + tl.arange(0, WIDTHS[i])[None, :] < C, piece, 0.0)
        centred = _append(centred, piece)
    return centred


@triton.jit(do_not_specialize=["N"])
def norm_fwd_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, total_ptr, stats_ptr,
    stride_x, stride_residual, N, eps,
    C: tl.constexpr, CENTRED: tl.constexpr, ROWS: tl.constexpr,
    STARTS: tl.constexpr, WIDTHS: tl.constexpr,
):  # fmt: skip
    """Compute y and the statistics of the rows; with a residual, norm and store x + residual."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    exists = rows < N
    x = _load(x_ptr + rows * stride_x, exists, C, STARTS, WIDTHS)
    if residual_ptr is not None:
        residual = _load(residual_ptr + rows * stride_residual, exists, C, STARTS, WIDTHS)
        x = _add(x, residual)
        _store(total_ptr + rows * C, x, exists, C, STARTS, WIDTHS)
        # The backward sees the sum as it is stored: norm that, not the sum before its rounding.
        rounded = ()
        for i in tl.static_range(len(x)):
            rounded = _append(rounded, x[i].to(total_ptr.dtype.element_ty).to(tl.float32))
        x = rounded
    weight = _load_weight(weight_ptr, C, 1, STARTS, WIDTHS)
    if CENTRED:
        mean = _row_mean(x, C)
        x = _centre(x, mean, C, STARTS, WIDTHS)
        tl.store(stats_ptr + N + rows, mean, exists)
    rstd = tl.rsqrt(_row_mean(_multiply(x, x), C) + eps)
    tl.store(stats_ptr + rows, rstd, exists)
    y = ()
    for i in tl.static_range(len(x)):
        y = _append(y, x[i] * rstd * weight[i])
    if bias_ptr is not None:
        y = _add(y, _load_weight(bias_ptr, C, 1, STARTS, WIDTHS))
    _store(y_ptr + rows * C, y, exists, C, STARTS, WIDTHS)


@triton.jit(do_not_specialize=["N"])
def norm_bwd_kernel(
    dy_ptr, dtotal_ptr, x_ptr, weight_ptr, stats_ptr, dx_ptr, dbranch_ptr, dweight_ptr, dbias_ptr,
    stride_dy, stride_dtotal, stride_x, N,
    C: tl.constexpr, CENTRED: tl.constexpr, ROWS: tl.constexpr,
    STARTS: tl.constexpr, WIDTHS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Compute dx of all rows, and this program's sums for the gradients of weight and bias.

    dtotal is the gradient that reaches x around the norm; dbranch, if wanted, is dx again in the
    other dtype of a mixed sum. A null dweight or dbias is not computed; if neither is null they are
    one buffer, (2, programs, C).
    """
    # As many rows as x has: the compiler then lays the weight out as x, and not x as the weight.
    weight = _load_weight(weight_ptr, C, ROWS, STARTS, WIDTHS)
    dweight = ()
    dbias = ()
    for i in tl.static_range(len(WIDTHS)):
        zeros = tl.full((ROWS, WIDTHS[i]), 0.0, tl.float32)
        dweight = _append(dweight, zeros)
        dbias = _append(dbias, zeros)
    first = tl.program_id(0)
    for tile in tl.range(first, tl.cdiv(N, ROWS), tl.num_programs(0), num_stages=STAGES):
        rows = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        exists = rows < N
        x = _load(x_ptr + rows * stride_x, exists, C, STARTS, WIDTHS)
        dy = _load(dy_ptr + rows * stride_dy, exists, C, STARTS, WIDTHS)
        rstd = tl.load(stats_ptr + rows, exists, 0.0)
        mean = tl.load(stats_ptr + N + rows, exists, 0.0) if CENTRED else 0.0
        normed = ()
        for i in tl.static_range(len(x)):
            normed = _append(normed, (x[i] - mean) * rstd)
        # dy is zero wherever nothing exists, so these sums need no mask.
        if dweight_ptr is not None:
            dweight = _add(dweight, _multiply(dy, normed))
        if dbias_ptr is not None:
            dbias = _add(dbias, dy)
        dnormed = _multiply(dy, weight)
        if CENTRED:
            slope, shift = _row_means(_multiply(dnormed, normed), dnormed, C)
        else:
            slope = _row_mean(_multiply(dnormed, normed), C)
            shift = 0.0
        slope *= rstd
        shift *= rstd
        dx = ()
        for i in tl.static_range(len(x)):
            dx = _append(dx, dnormed[i] * rstd - (normed[i] * slope + shift))
        if dtotal_ptr is not None:
            dx = _add(dx, _load(dtotal_ptr + rows * stride_dtotal, exists, C, STARTS, WIDTHS))
        _store(dx_ptr + rows * C, dx, exists, C, STARTS, WIDTHS)
        if dbranch_ptr is not None:
            _store(dbranch_ptr + rows * C, dx, exists, C, STARTS, WIDTHS)

    own = first.to(tl.int64) * C
    if dweight_ptr is not None and dbias_ptr is not None:
        dbias_ptr += tl.num_programs(0).to(tl.int64) * C
    for i in tl.static_range(len(WIDTHS)):
        cols = STARTS[i] + tl.arange(0, WIDTHS[i])
        if dweight_ptr is not None:
            tl.store(dweight_ptr + own + cols, tl.sum(dweight[i], 0), cols < C)
        if dbias_ptr is not None:
            tl.store(dbias_ptr + own + cols, tl.sum(dbias[i], 0), cols < C)
