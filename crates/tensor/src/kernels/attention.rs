//! Causal attention of grouped heads with an online softmax over blocks of keys.
//!
//! Query rows lie along the lanes: scores are kept as `[key, row]`, so the softmax works lane by lane and its result is
//! already packed for the product with the values. Rows of one group of heads share packed keys and values. One token
//! takes [`super::attention_decode`] instead.
//!
//! Memory: [`attention_scratch_bytes`], independent of the context length except for one partial result per
//! [`super::attention_decode::CHUNK`] keys.

use super::attention_decode::decode;
use super::buffer::sized;
use super::elementwise::exp_or_zero;
use super::format::{F16, Q8_0, RowFormat, decode_row};
use super::isa::{Isa, Kernel};
use super::out::OutPtr;
use super::pack::{PanelSource, pack_a, pack_b};
use super::pool::ThreadPool;
use super::simd::{MAX_LANES, Simd};
use super::tile::{MAX_NV, TileOut, TilePanels, tile};
use half::f16;

/// Keys of one block: whole strips on every instruction set.
const KEYS: usize = 144;

/// Query rows that share a packed block of keys: whole panels on every instruction set.
const ROWS: usize = 144;

/// The most query rows in a panel on any instruction set.
const MAX_NR: usize = MAX_NV * MAX_LANES;

/// Keys or values: `[n_kv_heads, context_len, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub enum KvSlice<'a> {
    /// As f32.
    F32(&'a [f32]),
    /// As f16.
    F16(&'a [f16]),
    /// As blocks of `q8_0`, 34 bytes for 32 values: for heads of whole blocks.
    Q8_0(&'a [u8]),
}

impl KvSlice<'_> {
    /// Number of values; `None` when these are not whole blocks for heads of `head_dim` values.
    fn n_values(self, head_dim: usize) -> Option<usize> {
        match self {
            Self::F32(data) => Some(data.len()),
            Self::F16(data) => Some(data.len()),
            Self::Q8_0(data) => {
                let is_whole =
                    head_dim.is_multiple_of(Q8_0::GROUP) && data.len().is_multiple_of(Q8_0::GROUP_BYTES);
                is_whole.then_some(data.len() / Q8_0::GROUP_BYTES * Q8_0::GROUP)
            }
        }
    }

    /// Where value `start` begins, with room for `n` values behind it.
    /// # Panics
    /// When there is less.
    pub(crate) fn bytes_at(self, start: usize, n: usize) -> *const u8 {
        match self {
            Self::F32(data) => data[start..start + n].as_ptr().cast(),
            Self::F16(data) => data[start..start + n].as_ptr().cast(),
            Self::Q8_0(data) => {
                let bytes = |n_values: usize| n_values / Q8_0::GROUP * Q8_0::GROUP_BYTES;
                data[bytes(start)..bytes(start + n)].as_ptr()
            }
        }
    }
}

/// Inputs of [`attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// `[n_tokens, n_heads, head_dim]`.
    pub queries: &'a [f32],
    /// Keys up to and with those of the new tokens.
    pub keys: KvSlice<'a>,
    /// Values up to and with those of the new tokens.
    pub values: KvSlice<'a>,
    /// Tokens before the new ones.
    pub past_len: usize,
    /// New tokens.
    pub n_tokens: usize,
    /// Query heads, a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Values in one head.
    pub head_dim: usize,
    /// Rows of each head in the cache.
    pub context_len: usize,
}

impl AttentionArgs<'_> {
    /// Query heads that share one head of keys and values.
    pub(crate) fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    fn check(&self, out: &[f32]) {
        let &Self { n_tokens, n_heads, n_kv_heads, head_dim, .. } = self;
        assert!(
            0 < n_kv_heads && n_heads.is_multiple_of(n_kv_heads),
            "{n_heads} heads in {n_kv_heads} groups"
        );
        assert!(0 < head_dim, "heads of no values");
        assert_eq!(
            self.queries.len(),
            n_tokens * n_heads * head_dim,
            "queries are not [n_tokens, n_heads, head_dim]"
        );
        assert_eq!(out.len(), self.queries.len(), "out is not [n_tokens, n_heads * head_dim]");
        assert!(self.past_len + n_tokens <= self.context_len, "more tokens than the cache holds");
        let n_values = n_kv_heads * self.context_len * head_dim;
        let same = matches!(
            (self.keys, self.values),
            (KvSlice::F32(_), KvSlice::F32(_))
                | (KvSlice::F16(_), KvSlice::F16(_))
                | (KvSlice::Q8_0(_), KvSlice::Q8_0(_))
        );
        assert!(same, "keys and values of different types");
        assert!(
            [self.keys, self.values].iter().all(|slice| slice.n_values(head_dim) == Some(n_values)),
            "cache is not [n_kv_heads, ..]"
        );
    }
}

/// Buffers of [`attention`], kept between calls.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    pub(crate) buffer: Vec<f32>,
}

/// The most bytes that an [`AttentionScratch`] holds for these sizes.
#[must_use]
pub fn attention_scratch_bytes(
    n_threads: usize,
    n_heads: usize,
    head_dim: usize,
    context_len: usize,
) -> usize {
    let decode = super::attention_decode::scratch_values(n_threads, n_heads, head_dim, context_len);
    size_of::<f32>() * (n_threads * Buffers::n_values(head_dim)).max(decode)
}

/// Causal attention with scale `1 / sqrt(head_dim)`: query head `h` reads head `h / (n_heads / n_kv_heads)` of keys and
/// values. `out`: `[n_tokens, n_heads * head_dim]`.
/// # Panics
/// When the lengths do not belong together.
pub fn attention(
    pool: &ThreadPool,
    args: &AttentionArgs<'_>,
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    attention_on(Isa::detect(), pool, args, out, scratch);
}

pub(crate) fn attention_on(
    isa: Isa,
    pool: &ThreadPool,
    args: &AttentionArgs<'_>,
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    args.check(out);
    match args.n_tokens {
        0 => {}
        1 => decode(isa, pool, args, out, scratch),
        _ => prefill(isa, pool, args, out, scratch),
    }
}

fn prefill(
    isa: Isa,
    pool: &ThreadPool,
    args: &AttentionArgs<'_>,
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let n_rows = args.n_tokens * args.group();
    let n_blocks = n_rows.div_ceil(ROWS);
    let n_values = Buffers::n_values(args.head_dim);
    let buffer = OutPtr::new(sized(&mut scratch.buffer, pool.n_threads() * n_values));
    let out = OutPtr::new(out);
    pool.run_indexed(args.n_kv_heads * n_blocks, &|worker_idx, task_idx| {
        // The last rows see the most keys: they go first, so that the threads finish together.
        let block = n_blocks - 1 - task_idx / args.n_kv_heads;
        let first_row = block * ROWS;
        // SAFETY: the buffer has `n_values` for each thread, and no other task has this worker index now.
        let buffer = unsafe { buffer.slice(worker_idx * n_values, n_values) };
        isa.dispatch(RowsTask {
            args,
            kv_head: task_idx % args.n_kv_heads,
            first_row,
            n_rows: ROWS.min(n_rows - first_row),
            buffers: Buffers::split(buffer, args.head_dim),
            out,
        });
    });
}

/// One thread's buffers.
struct Buffers<'a> {
    /// Queries, `[ROWS / nr][head_dim][nr]`.
    queries: &'a mut [f32],
    /// Sums of weighted values, as the queries.
    mixed: &'a mut [f32],
    /// Greatest score and sum of weights, `[ROWS / nr][2][nr]`.
    state: &'a mut [f32],
    /// Scores, then weights: `[KEYS][nr]`.
    scores: &'a mut [f32],
    /// `[KEYS / MR][head_dim][MR]`.
    keys: &'a mut [f32],
    /// `[head_dim / MR][KEYS][MR]`.
    values: &'a mut [f32],
    /// Rows in plain order: `[max(KEYS, nr)][head_dim]`.
    stage: &'a mut [f32],
}

impl<'a> Buffers<'a> {
    fn sizes(head_dim: usize) -> [usize; 7] {
        // A last strip of values may have fewer than `MR` rows.
        let padded = head_dim + super::tile::MAX_MR;
        [ROWS * padded, ROWS * padded, 2 * ROWS, KEYS * MAX_NR, KEYS * padded, KEYS * padded, KEYS * padded]
    }

    fn n_values(head_dim: usize) -> usize {
        Self::sizes(head_dim).iter().sum()
    }

    fn split(buffer: &'a mut [f32], head_dim: usize) -> Self {
        let mut rest = buffer;
        let mut parts = Self::sizes(head_dim).map(|size| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(size);
            rest = tail;
            part
        });
        let [queries, mixed, state, scores, keys, values, stage] = parts.each_mut().map(std::mem::take);
        Self { queries, mixed, state, scores, keys, values, stage }
    }
}

/// Query rows `first_row..first_row + n_rows` of one group of heads. Row `r` is token `r / group`, head `r % group`.
struct RowsTask<'a> {
    args: &'a AttentionArgs<'a>,
    kv_head: usize,
    first_row: usize,
    n_rows: usize,
    buffers: Buffers<'a>,
    out: OutPtr,
}

/// One panel of rows.
#[derive(Clone, Copy)]
struct Panel {
    /// First row within the task.
    start: usize,
    /// First row within the group of heads.
    first_row: usize,
    n_rows: usize,
    /// `n_rows` in whole vectors.
    width: usize,
}

impl Kernel for RowsTask<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let nr = S::NV * S::LANES;
        const { assert!(ROWS.is_multiple_of(S::NV * S::LANES) && KEYS.is_multiple_of(S::MR)) };
        assert!(self.n_rows <= ROWS, "too many rows");
        let n_panels = self.n_rows.div_ceil(nr);
        for idx in 0..n_panels {
            self.load_queries(simd, self.panel::<S>(idx));
        }
        let n_keys = self.n_keys(self.first_row + self.n_rows - 1);
        for first_key in (0..n_keys).step_by(KEYS) {
            self.pack_block(simd, first_key, KEYS.min(n_keys - first_key));
            for idx in 0..n_panels {
                let panel = self.panel::<S>(idx);
                let visible = self.n_keys(panel.first_row + panel.n_rows - 1);
                if first_key < visible {
                    self.add_block(simd, panel, first_key, KEYS.min(visible - first_key));
                }
            }
        }
        for idx in 0..n_panels {
            self.finish(self.panel::<S>(idx));
        }
    }
}

impl RowsTask<'_> {
    #[inline(always)]
    fn panel<S: Simd>(&self, idx: usize) -> Panel {
        let nr = S::NV * S::LANES;
        let n_rows = nr.min(self.n_rows - idx * nr);
        Panel {
            start: idx * nr,
            first_row: self.first_row + idx * nr,
            n_rows,
            width: n_rows.next_multiple_of(S::LANES),
        }
    }

    /// Keys that `row` sees.
    #[inline(always)]
    fn n_keys(&self, row: usize) -> usize {
        self.args.past_len + row / self.args.group() + 1
    }

    /// Where `row` starts in queries and output.
    #[inline(always)]
    fn row_start(&self, row: usize) -> usize {
        let group = self.args.group();
        (row / group * self.args.n_heads + self.kv_head * group + row % group) * self.args.head_dim
    }

    #[inline(always)]
    fn load_queries<S: Simd>(&mut self, simd: S, panel: Panel) {
        let head_dim = self.args.head_dim;
        for row in 0..panel.n_rows {
            let start = self.row_start(panel.first_row + row);
            let query = &self.args.queries[start..start + head_dim];
            self.buffers.stage[row * head_dim..][..head_dim].copy_from_slice(query);
        }
        let source = PanelSource {
            from: self.buffers.stage.as_ptr(),
            line_stride: head_dim,
            value_stride: 1,
            width: panel.n_rows,
            kc: head_dim,
        };
        let at = panel.start * head_dim;
        let to = &mut self.buffers.queries[at..at + head_dim * panel.width];
        // SAFETY: the stage holds `n_rows` rows, and `to` has `head_dim * width` values.
        unsafe { pack_b(simd, source, to.as_mut_ptr()) };
        self.buffers.mixed[at..at + head_dim * panel.width].fill(0.0);
        let (max, sum) = self.state(panel);
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
    }

    #[inline(always)]
    fn state(&mut self, panel: Panel) -> (&mut [f32], &mut [f32]) {
        let state = &mut self.buffers.state[2 * panel.start..][..2 * panel.width];
        state.split_at_mut(panel.width)
    }

    /// Packs the keys and values `first..first + n`.
    #[inline(always)]
    fn pack_block<S: Simd>(&mut self, simd: S, first: usize, n: usize) {
        let head_dim = self.args.head_dim;
        let start = (self.kv_head * self.args.context_len + first) * head_dim;
        let stage = &mut *self.buffers.stage;
        let keys = plain_rows(simd, self.args.keys, start, n * head_dim, stage);
        for key in (0..n).step_by(S::MR) {
            let width = S::MR.min(n - key);
            let from = keys[key * head_dim..].as_ptr();
            let source = PanelSource { from, line_stride: head_dim, value_stride: 1, width, kc: head_dim };
            let to = &mut self.buffers.keys[key * head_dim..][..S::MR * head_dim];
            // SAFETY: `keys` holds `n` rows, and `to` has `MR * head_dim` values.
            unsafe { pack_a(simd, source, to.as_mut_ptr()) };
        }
        let values = plain_rows(simd, self.args.values, start, n * head_dim, stage);
        for dim in (0..head_dim).step_by(S::MR) {
            let width = S::MR.min(head_dim - dim);
            let from = values[dim..].as_ptr();
            let source = PanelSource { from, line_stride: 1, value_stride: head_dim, width, kc: n };
            let to = &mut self.buffers.values[dim * KEYS..][..S::MR * n];
            // SAFETY: `values` holds `n` rows of `head_dim` values, and `to` has `MR * n` values.
            unsafe { pack_a(simd, source, to.as_mut_ptr()) };
        }
    }

    /// Takes the packed block of `n` keys into the panel's running softmax.
    #[inline(always)]
    fn add_block<S: Simd>(&mut self, simd: S, panel: Panel, first_key: usize, n: usize) {
        self.score(simd, panel, n);
        self.mask(panel, first_key, n);
        let head_dim = self.args.head_dim;
        let at = panel.start * head_dim;
        for lane in (0..panel.width).step_by(S::LANES) {
            let rescale = self.weigh(simd, panel, lane, n);
            let mixed = &mut self.buffers.mixed[at..at + head_dim * panel.width];
            for dim in 0..head_dim {
                // SAFETY: row `dim` of `mixed` has `width` values, and `lane + LANES <= width`.
                unsafe {
                    let to = mixed.as_mut_ptr().add(dim * panel.width + lane);
                    simd.store(to, simd.mul(rescale, simd.load(to)));
                }
            }
        }
        let mixed = &mut self.buffers.mixed[at..at + head_dim * panel.width];
        for dim in (0..head_dim).step_by(S::MR) {
            // SAFETY: values and weights are packed for `n` keys; the tile lies in `mixed`.
            unsafe {
                let panels = TilePanels {
                    a: self.buffers.values.as_ptr().add(dim * KEYS),
                    b: self.buffers.scores.as_ptr(),
                    kc: n,
                };
                let to = mixed.as_mut_ptr().add(dim * panel.width);
                tile(simd, panels, panel_out(to, panel, S::MR.min(head_dim - dim), 1.0, 1.0));
            }
        }
    }

    /// `scores[key, row] = key . query / sqrt(head_dim)`.
    #[inline(always)]
    fn score<S: Simd>(&mut self, simd: S, panel: Panel, n: usize) {
        let head_dim = self.args.head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let scores = &mut self.buffers.scores[..n * panel.width];
        let queries = &self.buffers.queries[panel.start * head_dim..][..head_dim * panel.width];
        for key in (0..n).step_by(S::MR) {
            // SAFETY: keys and queries are packed; the tile lies in `scores`.
            unsafe {
                let panels = TilePanels {
                    a: self.buffers.keys.as_ptr().add(key * head_dim),
                    b: queries.as_ptr(),
                    kc: head_dim,
                };
                let to = scores.as_mut_ptr().add(key * panel.width);
                tile(simd, panels, panel_out(to, panel, S::MR.min(n - key), scale, 0.0));
            }
        }
    }

    /// Hides from each row the keys after its token.
    #[inline(always)]
    fn mask(&mut self, panel: Panel, first_key: usize, n: usize) {
        let group = self.args.group();
        for key in self.n_keys(panel.first_row).saturating_sub(first_key)..n {
            // Rows before this one belong to tokens before the key.
            let first_seeing = (first_key + key - self.args.past_len) * group;
            let n_hidden = first_seeing.saturating_sub(panel.first_row).min(panel.n_rows);
            self.buffers.scores[key * panel.width..][..n_hidden].fill(f32::NEG_INFINITY);
        }
    }

    /// Turns the scores of the rows at `lane` into weights; returns the factor for what was summed before.
    #[inline(always)]
    fn weigh<S: Simd>(&mut self, simd: S, panel: Panel, lane: usize, n: usize) -> S::F {
        let scores = self.buffers.scores[..n * panel.width].as_mut_ptr();
        let (max, sum) = self.state(panel);
        let (max, sum) = (&mut max[lane..lane + S::LANES], &mut sum[lane..lane + S::LANES]);
        // SAFETY: `scores` has `n` rows of `width` values, `lane + LANES <= width`; `max` and `sum` have `LANES` values.
        unsafe {
            let old_max = simd.load(max.as_ptr());
            let mut new_max = old_max;
            for key in 0..n {
                new_max = simd.max(new_max, simd.load(scores.add(key * panel.width + lane)));
            }
            let rescale = exp_or_zero(simd, simd.sub(old_max, new_max));
            let mut total = simd.mul(simd.load(sum.as_ptr()), rescale);
            for key in 0..n {
                let at = scores.add(key * panel.width + lane);
                let weight = exp_or_zero(simd, simd.sub(simd.load(at), new_max));
                simd.store(at, weight);
                total = simd.add(total, weight);
            }
            simd.store(max.as_mut_ptr(), new_max);
            simd.store(sum.as_mut_ptr(), total);
            rescale
        }
    }

    /// Divides by the sums of weights and writes the rows out.
    #[inline(always)]
    fn finish(&mut self, panel: Panel) {
        let head_dim = self.args.head_dim;
        let (_, sum) = self.state(panel);
        let mut inverse = [0.0_f32; MAX_NR];
        for (inverse, sum) in inverse.iter_mut().zip(sum) {
            *inverse = 1.0 / *sum;
        }
        let mixed = &self.buffers.mixed[panel.start * head_dim..][..head_dim * panel.width];
        for row in 0..panel.n_rows {
            let start = self.row_start(panel.first_row + row);
            // SAFETY: `check` made sure of the length of `out`, and these rows belong to this task alone.
            let out = unsafe { self.out.slice(start, head_dim) };
            for (dim, out) in out.iter_mut().enumerate() {
                *out = mixed[dim * panel.width + row] * inverse[row];
            }
        }
    }
}

#[inline(always)]
fn panel_out(to: *mut f32, panel: Panel, n_rows: usize, alpha: f32, beta: f32) -> TileOut {
    TileOut { to, row_stride: panel.width, n_rows, n_cols: panel.width, alpha, beta, skip: TileOut::WHOLE }
}

/// `n` values from `start` on as f32, through the stage when they are stored otherwise.
#[inline(always)]
fn plain_rows<'a, S: Simd>(
    simd: S,
    slice: KvSlice<'a>,
    start: usize,
    n: usize,
    stage: &'a mut [f32],
) -> &'a [f32] {
    if let KvSlice::F32(data) = slice {
        return &data[start..start + n];
    }
    let from = slice.bytes_at(start, n);
    let stage = &mut stage[..n];
    // SAFETY: both have `n` values, which are whole groups, since heads are (`check`).
    unsafe {
        if matches!(slice, KvSlice::F16(_)) {
            decode_row(simd, F16, from, n, stage.as_mut_ptr());
        } else {
            decode_row(simd, Q8_0, from, n, stage.as_mut_ptr());
        }
    }
    stage
}
