"""The Triton kernels of `kernels.attention`: how its equations are cut into tiles.

Forward: one program owns BLOCK_M rows of q and walks over the keys in tiles of BLOCK_N, with the
softmax kept up to date: `row_max` is the running maximum of a row's scores, `row_sum` the running
sum of exp2(score - row_max), and `acc` is rescaled whenever the maximum grows. Fewer queries than
keys (SHIFTED) are the last positions, `shift` after those without a query.

Backward: the probabilities are recomputed from the log-sum-exp. In one pass, a program owns BLOCK_N
keys, keeps dk and dv in registers, walks over the rows that see them, and adds its share of dq
atomically to a float32 buffer, each lane its elements or, by a descriptor, whole tiles: five
products. In two passes, dq is computed by programs that own
rows, as in the forward, and dk and dv by those of the one-pass kernel without its atomics: seven
products, and the same bits every time.

A walk has up to three parts: tiles cut by the edge of a window or by the beginning of a document,
whole tiles, and tiles cut by the diagonal. Documents come as (2, B, T) int32, for each position the
beginning and the end of its document. Tiles outside this band are never visited, and whole tiles
are not masked. Programs start with the heaviest tiles, over as many heads at a time as keep their
keys and values in the L2 cache.

Products take the input's dtype and sum in float32; everything else is float32. Exponentials are in
base 2, with log2(e) * scale folded into one multiplication; the log-sum-exp that goes from the
forward to the backward is in base 2 too, which saves it two roundings.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# The parts of a walk: tiles cut by the window's edge, whole tiles, tiles cut by the diagonal.
EDGE = tl.constexpr(0)
WHOLE = tl.constexpr(1)
DIAGONAL = tl.constexpr(2)


@triton.jit
def _assign(T, batch_heads, heads_per_group, BLOCK: tl.constexpr):
    """The (tile, head) of this program: tile by tile over a group of heads, then the next group."""
    tiles = tl.cdiv(T, BLOCK)
    program = tl.program_id(0)
    first = program // (heads_per_group * tiles) * heads_per_group
    width = tl.minimum(heads_per_group, batch_heads - first)
    place = program % (heads_per_group * tiles)
    return place // width, first + place % width


@triton.jit
def _visible(rows, cols, window, WINDOW: tl.constexpr):
    seen = cols <= rows
    if WINDOW:
        seen = seen & (cols > rows - window)
    return seen


@triton.jit
def _key_ranges(
    m, T, window, begins_ptr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr
):
    """Keys seen by rows m..m+BLOCK_M: [edge, whole) [whole, diagonal) [diagonal, end)."""
    diagonal = m // BLOCK_N * BLOCK_N
    end = tl.minimum(m + BLOCK_M, T)
    # The first keys of the first and of the last row.
    edge = 0
    whole = 0
    if WINDOW:
        edge = tl.maximum(m - window + 1, 0)
        whole = tl.maximum(m + BLOCK_M - window, 0)
    if begins_ptr is not None:
        edge = tl.maximum(edge, tl.load(begins_ptr + m))
        whole = tl.maximum(whole, tl.load(begins_ptr + end - 1))
    if WINDOW or begins_ptr is not None:
        edge = edge // BLOCK_N * BLOCK_N
        whole = tl.minimum(tl.cdiv(whole, BLOCK_N) * BLOCK_N, diagonal)
    return edge, whole, diagonal, end


@triton.jit
def _tile_offsets(start, stride, ROWS: tl.constexpr, COLS: tl.constexpr):
    rows = tl.arange(0, ROWS)
    return tl.cast(start, tl.int64) * stride + (
        rows[:, None] * stride + tl.arange(0, COLS)[None, :]
    )


@triton.jit
def _inside(start, T, D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """True for the elements of rows start..start+ROWS that exist in a (T, D) matrix."""
    exists = (tl.arange(0, ROWS) < T - start)[:, None]
    if D < COLS:
        exists = exists & (tl.arange(0, COLS) < D)[None, :]
    return exists


@triton.jit
def _load(
    ptr, start, stride, T,
    D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, COMPLETE: tl.constexpr,
):  # fmt: skip
    """Load rows start..start+ROWS of a (T, D) matrix, zero outside; COMPLETE if all rows exist."""
    ptrs = ptr + _tile_offsets(start, stride, ROWS, COLS)
    if not COMPLETE:
        tile = tl.load(ptrs, mask=_inside(start, T, D, ROWS, COLS), other=0.0)
    elif D == COLS:
        tile = tl.load(ptrs)
    else:
        tile = tl.load(ptrs, mask=(tl.arange(0, COLS) < D)[None, :], other=0.0)
    return tile


@triton.jit
def _keep(seed, head, rows, n, dropout_p, BLOCK_N: tl.constexpr):
    """True for the probabilities of rows x (n..n+BLOCK_N) that dropout keeps.

    The mask depends only on the seed and the position. The Philox counter is (row, column // 4,
    head), 32 bits each, so that no length repeats it; its four outputs serve four adjacent columns.
    """
    quads = n // 4 + tl.arange(0, BLOCK_N // 4)
    r0, r1, r2, r3 = tl.philox(seed, rows[:, None], quads[None, :], head, 0)
    r = tl.join(tl.join(r0, r2), tl.join(r1, r3))
    r = tl.reshape(r, (rows.shape[0], BLOCK_N))
    return tl.uint_to_uniform_float(r) >= dropout_p


@triton.jit
def attention_dropout_kernel(seed_ptr, keep_ptr, T, dropout_p, BLOCK: tl.constexpr):
    """Store one tile of the dropout mask, for tests."""
    head = tl.program_id(0)
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(2) * BLOCK
    cols = n + tl.arange(0, BLOCK)
    keep = _keep(tl.load(seed_ptr), head, rows, n, dropout_p, BLOCK)
    place = (head.to(tl.int64) * T + rows[:, None]) * T + cols[None, :]
    tl.store(keep_ptr + place, keep, (rows < T)[:, None] & (cols < T)[None, :])


@triton.jit(do_not_specialize=["batch_heads", "H", "T", "heads_per_group", "window", "shift"])
def attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, max_ptr, seed_ptr, documents_ptr,
    stride_qb, stride_qt, stride_qh,
    stride_kb, stride_kt, stride_kh,
    stride_vb, stride_vt, stride_vh,
    batch_heads, H, T, heads_per_group, scale, window, dropout_p, shift,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr, SHIFTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute o and the log-sum-exp of BLOCK_M rows, and the largest score of each on request."""
    BAND: tl.constexpr = WINDOW or documents_ptr is not None  # rows do not begin at key 0
    tile, head = _assign(T, batch_heads, heads_per_group, BLOCK_M)
    m = (tl.cdiv(T, BLOCK_M) - 1 - tile) * BLOCK_M
    b = (head // H).to(tl.int64)
    h = (head % H).to(tl.int64)
    k_ptr += b * stride_kb + h * stride_kh
    v_ptr += b * stride_vb + h * stride_vh
    q = _load(q_ptr + b * stride_qb + h * stride_qh, m, stride_qt, T, D, BLOCK_M, BLOCK_D, False)
    rows = m + tl.arange(0, BLOCK_M)
    first_position = m
    keys = T
    if SHIFTED:
        first_position += shift
        keys += shift
    positions = first_position + tl.arange(0, BLOCK_M)
    scale2 = scale * LOG2E
    row_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if seed_ptr is not None:
        seed = tl.load(seed_ptr)
    if documents_ptr is not None:
        documents_ptr += b * T
        begins = tl.load(documents_ptr + rows, rows < T, 0)

    edge, whole, diagonal, end = _key_ranges(
        first_position, keys, window, documents_ptr, BLOCK_M, BLOCK_N, WINDOW
    )
    for part in tl.static_range(EDGE if BAND else WHOLE, DIAGONAL + 1):
        start = edge if part == EDGE else (whole if part == WHOLE else diagonal)
        stop = whole if part == EDGE else (diagonal if part == WHOLE else end)
        # In a band, ptxas lets products overlap only in loops over the number of a tile, of
        # which that over the diagonal has constant bounds; otherwise, positions are cheaper.
        if not BAND:
            first, last, by = start, stop, BLOCK_N
        elif part == DIAGONAL and not SHIFTED:
            first, last, by = 0, tl.cdiv(BLOCK_M, BLOCK_N), 1
        else:
            first, last, by = 0, tl.cdiv(stop - start, BLOCK_N), 1
        for i in range(first, last, by):
            n = start + i * BLOCK_N if BAND else i
            k = _load(k_ptr, n, stride_kt, keys, D, BLOCK_N, BLOCK_D, part == WHOLE)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if part != WHOLE:
                # Relative positions take fewer instructions, but from sm_100 on more registers.
                origin = 0 if tl.target_info.cuda_capability_geq(10) else n
                cols = (n - origin + tl.arange(0, BLOCK_N))[None, :]
                seen = _visible((positions - origin)[:, None], cols, window, WINDOW)
                if documents_ptr is not None:
                    seen = seen & (cols >= (begins - origin)[:, None])
                s = tl.where(seen, s, float("-inf"))
            new_max = tl.maximum(row_max, tl.max(s, 1) * scale2)
            if BAND and part != WHOLE:
                # A row may see nothing of the tiles so far: keep -inf - -inf from making a NaN.
                top = tl.where(new_max == float("-inf"), 0.0, new_max)
            else:
                top = new_max
            p = tl.exp2(s * scale2 - top[:, None])
            rescale = tl.exp2(row_max - top)
            row_sum = row_sum * rescale + tl.sum(p, 1)
            row_max = new_max
            if seed_ptr is not None:
                p = tl.where(_keep(seed, head, positions, n, dropout_p, BLOCK_N), p, 0.0)
            v = _load(v_ptr, n, stride_vt, keys, D, BLOCK_N, BLOCK_D, part == WHOLE)
            acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision=PRECISION)

    if seed_ptr is not None:
        acc /= 1.0 - dropout_p
    o = (acc / row_sum[:, None]).to(o_ptr.dtype.element_ty)
    o_ptr += b * T * H * D + h * D
    tl.store(
        o_ptr + _tile_offsets(m, H * D, BLOCK_M, BLOCK_D), o, _inside(m, T, D, BLOCK_M, BLOCK_D)
    )
    own = head.to(tl.int64) * T
    tl.store(lse_ptr + own + rows, row_max + tl.log2(row_sum), rows < T)
    if max_ptr is not None:
        tl.store(max_ptr + own + rows, row_max, rows < T)


@triton.jit(do_not_specialize=["batch_heads", "H", "T", "heads_per_group"])
def attention_bwd_delta_kernel(
    o_ptr, do_ptr, delta_ptr, dq_sum_ptr,
    stride_dob, stride_dot, stride_doh,
    batch_heads, H, T, heads_per_group,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Compute delta, and fill the buffer in which the one-pass kernel adds up dq with zeros."""
    tile, head = _assign(T, batch_heads, heads_per_group, BLOCK_M)
    m = tile * BLOCK_M
    b = (head // H).to(tl.int64)
    h = (head % H).to(tl.int64)
    own = b * T * H * D + h * D
    o = _load(o_ptr + own, m, H * D, T, D, BLOCK_M, BLOCK_D, False)
    do = _load(
        do_ptr + b * stride_dob + h * stride_doh, m, stride_dot, T, D, BLOCK_M, BLOCK_D, False
    )
    rows = m + tl.arange(0, BLOCK_M)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta_ptr + head.to(tl.int64) * T + rows, delta, rows < T)
    if dq_sum_ptr is not None:
        tl.store(
            dq_sum_ptr + own + _tile_offsets(m, H * D, BLOCK_M, BLOCK_D),
            tl.zeros((BLOCK_M, BLOCK_D), tl.float32),
            _inside(m, T, D, BLOCK_M, BLOCK_D),
        )


@triton.jit(do_not_specialize=["batch_heads", "H", "T", "heads_per_group", "window"])
def attention_bwd_dq_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, seed_ptr,
    documents_ptr,
    stride_qb, stride_qt, stride_qh,
    stride_kb, stride_kt, stride_kh,
    stride_vb, stride_vt, stride_vh,
    stride_dob, stride_dot, stride_doh,
    stride_gb, stride_gt,
    batch_heads, H, T, heads_per_group, scale, window, dropout_p,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute dq of BLOCK_M rows, and their delta for the next kernel."""
    BAND: tl.constexpr = WINDOW or documents_ptr is not None
    tile, head = _assign(T, batch_heads, heads_per_group, BLOCK_M)
    m = (tl.cdiv(T, BLOCK_M) - 1 - tile) * BLOCK_M
    b = (head // H).to(tl.int64)
    h = (head % H).to(tl.int64)
    q_ptr += b * stride_qb + h * stride_qh
    k_ptr += b * stride_kb + h * stride_kh
    v_ptr += b * stride_vb + h * stride_vh
    do_ptr += b * stride_dob + h * stride_doh
    rows = m + tl.arange(0, BLOCK_M)
    scale2 = scale * LOG2E
    if seed_ptr is not None:
        seed = tl.load(seed_ptr)
    if documents_ptr is not None:
        documents_ptr += b * T
        begins = tl.load(documents_ptr + rows, rows < T, 0)

    do = _load(do_ptr, m, stride_dot, T, D, BLOCK_M, BLOCK_D, False)
    o = _load(o_ptr + b * T * H * D + h * D, m, H * D, T, D, BLOCK_M, BLOCK_D, False)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta_ptr + head.to(tl.int64) * T + rows, delta, rows < T)
    # Rows past the end have lse = inf, so that their probabilities are zero.
    lse = tl.load(lse_ptr + head.to(tl.int64) * T + rows, rows < T, float("inf"))
    q = _load(q_ptr, m, stride_qt, T, D, BLOCK_M, BLOCK_D, False)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)

    edge, whole, diagonal, end = _key_ranges(m, T, window, documents_ptr, BLOCK_M, BLOCK_N, WINDOW)
    for part in tl.static_range(EDGE if BAND else WHOLE, DIAGONAL + 1):
        start = edge if part == EDGE else (whole if part == WHOLE else diagonal)
        stop = whole if part == EDGE else (diagonal if part == WHOLE else end)
        for n in range(start, stop, BLOCK_N):
            k = _load(k_ptr, n, stride_kt, T, D, BLOCK_N, BLOCK_D, part == WHOLE)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            p = tl.exp2(s * scale2 - lse[:, None])
            if part != WHOLE:
                cols = n + tl.arange(0, BLOCK_N)
                seen = _visible(rows[:, None], cols[None, :], window, WINDOW)
                if documents_ptr is not None:
                    seen = seen & (cols[None, :] >= begins[:, None])
                p = tl.where(seen, p, 0.0)
            v = _load(v_ptr, n, stride_vt, T, D, BLOCK_N, BLOCK_D, part == WHOLE)
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            if seed_ptr is not None:
                keep = _keep(seed, head, rows, n, dropout_p, BLOCK_N)
                dp = tl.where(keep, dp / (1.0 - dropout_p), 0.0)
            ds = p * (dp - delta[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)

    tl.store(
        dq_ptr + b * stride_gb + h * D + _tile_offsets(m, stride_gt, BLOCK_M, BLOCK_D),
        (dq * scale).to(dq_ptr.dtype.element_ty),
        _inside(m, T, D, BLOCK_M, BLOCK_D),
    )


@triton.jit
def _row_ranges(
    n, T, window, ends_ptr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr
):
    """Rows that see keys n..n+BLOCK_N: [n, whole) on the diagonal, [whole, edge), [edge, end)."""
    if WINDOW:
        end = tl.minimum(n + BLOCK_N - 1 + window, T)
        edge = n + window // BLOCK_M * BLOCK_M
    else:
        end = T
        edge = T
    if ends_ptr is not None:
        # The rows that see the first key, and those that see the last.
        edge = tl.minimum(edge, n + (tl.load(ends_ptr + n) - n) // BLOCK_M * BLOCK_M)
        end = tl.minimum(end, tl.load(ends_ptr + tl.minimum(n + BLOCK_N, T) - 1))
    whole = tl.minimum(n + tl.cdiv(BLOCK_N - 1, BLOCK_M) * BLOCK_M, end)
    edge = tl.minimum(tl.maximum(edge, whole), end)
    return whole, edge, end


@triton.jit(do_not_specialize=["batch_heads", "H", "T", "heads_per_group", "window"])
def attention_bwd_dkv_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_sum_ptr, dq_sum_tiles, dk_ptr, dv_ptr,
    seed_ptr, documents_ptr,
    stride_qb, stride_qt, stride_qh,
    stride_kb, stride_kt, stride_kh,
    stride_vb, stride_vt, stride_vh,
    stride_dob, stride_dot, stride_doh,
    stride_gb, stride_gt,
    batch_heads, H, T, heads_per_group, scale, window, dropout_p,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute dk and dv of BLOCK_N keys, and add their part of dq to dq_sum if there is one.

    It comes as a pointer and, if whole tiles are to be added, as a descriptor (B, T, H, D) too.
    Tiles of scores are (keys, rows) here.
    """
    BAND: tl.constexpr = WINDOW or documents_ptr is not None
    tile, head = _assign(T, batch_heads, heads_per_group, BLOCK_N)
    n = tile * BLOCK_N
    b = (head // H).to(tl.int64)
    h = (head % H).to(tl.int64)
    q_ptr += b * stride_qb + h * stride_qh
    do_ptr += b * stride_dob + h * stride_doh
    if dq_sum_ptr is not None:
        dq_sum_ptr += b * T * H * D + h * D
    lse_ptr += head.to(tl.int64) * T
    delta_ptr += head.to(tl.int64) * T
    cols = n + tl.arange(0, BLOCK_N)
    scale2 = scale * LOG2E
    if seed_ptr is not None:
        seed = tl.load(seed_ptr)
    if documents_ptr is not None:
        documents_ptr += batch_heads // H * T + b * T  # past those of the beginnings
        ends = tl.load(documents_ptr + cols, cols < T, 0)

    k = _load(k_ptr + b * stride_kb + h * stride_kh, n, stride_kt, T, D, BLOCK_N, BLOCK_D, False)
    v = _load(v_ptr + b * stride_vb + h * stride_vh, n, stride_vt, T, D, BLOCK_N, BLOCK_D, False)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)

    whole, edge, end = _row_ranges(n, T, window, documents_ptr, BLOCK_M, BLOCK_N, WINDOW)
    for part in tl.static_range(DIAGONAL, EDGE - 1 if BAND else EDGE, -1):
        start = n if part == DIAGONAL else (whole if part == WHOLE else edge)
        stop = whole if part == DIAGONAL else (edge if part == WHOLE else end)
        if part == DIAGONAL and (dq_sum_ptr is None or BLOCK_N <= BLOCK_M):
            # A constant number of tiles, some past the end: else ptxas serialises the products of
            # two passes. With more than one tile, it spills registers in one pass.
            steps = tl.cdiv(BLOCK_N, BLOCK_M)
        else:
            steps = tl.cdiv(stop - start, BLOCK_M)
        for step in range(steps):
            m = start + step * BLOCK_M
            q = _load(q_ptr, m, stride_qt, T, D, BLOCK_M, BLOCK_D, False)
            s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            rows = m + tl.arange(0, BLOCK_M)
            # Rows past the end have probabilities of 1, and zeros in q, do and delta.
            lse = tl.load(lse_ptr + rows, rows < T, 0.0)
            p = tl.exp2(s * scale2 - lse[None, :])
            if part != WHOLE:
                seen = _visible(rows[None, :], cols[:, None], window, WINDOW)
                if documents_ptr is not None:
                    seen = seen & (rows[None, :] < ends[:, None])
                p = tl.where(seen, p, 0.0)
            do = _load(do_ptr, m, stride_dot, T, D, BLOCK_M, BLOCK_D, False)
            dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
            delta = tl.load(delta_ptr + rows, rows < T, 0.0)
            if seed_ptr is not None:
                keep = tl.trans(_keep(seed, head, rows, n, dropout_p, BLOCK_N))
                dp = tl.where(keep, dp / (1.0 - dropout_p), 0.0)
                zp = tl.where(keep, p / (1.0 - dropout_p), 0.0)
            else:
                zp = p
            ds = (p * (dp - delta[None, :])).to(q.dtype)
            dv = tl.dot(zp.to(do.dtype), do, dv, input_precision=PRECISION)
            dk = tl.dot(ds, q, dk, input_precision=PRECISION)
            if dq_sum_ptr is not None:
                dq = tl.dot(tl.trans(ds), k, input_precision=PRECISION)
                if dq_sum_tiles is not None:
                    dq = tl.reshape(dq, (1, BLOCK_M, 1, BLOCK_D))
                    dq_sum_tiles.atomic_add([head // H, m, head % H, 0], dq)
                else:
                    tl.atomic_add(
                        dq_sum_ptr + _tile_offsets(m, H * D, BLOCK_M, BLOCK_D),
                        dq,
                        _inside(m, T, D, BLOCK_M, BLOCK_D),
                        sem="relaxed",
                    )

    place = b * stride_gb + h * D + _tile_offsets(n, stride_gt, BLOCK_N, BLOCK_D)
    inside = _inside(n, T, D, BLOCK_N, BLOCK_D)
    tl.store(dk_ptr + place, (dk * scale).to(dk_ptr.dtype.element_ty), inside)
    tl.store(dv_ptr + place, dv.to(dv_ptr.dtype.element_ty), inside)
