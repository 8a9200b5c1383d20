//! Attention of one token: keys and values are read once, straight from the cache.
//!
//! The keys are cut into chunks of [`CHUNK`] whatever the number of threads; each task makes the partial result of one
//! chunk for one group of heads, and the caller joins them in order.

use super::attention::{AttentionArgs, AttentionScratch, KvSlice};
use super::buffer::sized;
use super::elementwise::exp_in_place;
use super::format::{F16, F32, Q8_0, RowFormat};
use super::isa::{Isa, Kernel};
use super::out::OutPtr;
use super::pool::ThreadPool;
use super::row_dot::dots;
use super::simd::Simd;

/// Keys of one task.
pub(crate) const CHUNK: usize = 256;

/// Heads that share one read of keys and values.
const HEADS: usize = 4;

/// Products below which one thread is faster than waking others.
const SERIAL_PRODUCTS: usize = 32 << 10;

/// f32 values of all buffers: one partial result per head and chunk, and each thread's weights.
pub(crate) fn scratch_values(n_threads: usize, n_heads: usize, head_dim: usize, context_len: usize) -> usize {
    n_heads * context_len.div_ceil(CHUNK) * (head_dim + 2) + n_threads * HEADS * CHUNK
}

pub(crate) fn decode(
    isa: Isa,
    pool: &ThreadPool,
    args: &AttentionArgs<'_>,
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let n_keys = args.past_len + 1;
    let n_chunks = n_keys.div_ceil(CHUNK);
    let partial_len = args.head_dim + 2;
    let n_partials = args.n_heads * n_chunks * partial_len;
    let n_values = scratch_values(pool.n_threads(), args.n_heads, args.head_dim, args.context_len);
    let (partials, weights) = sized(&mut scratch.buffer, n_values).split_at_mut(n_partials);
    let (partials_out, weights) = (OutPtr::new(partials), OutPtr::new(weights));
    let task = |worker_idx: usize, task_idx: usize| {
        let (kv_head, chunk) = (task_idx / n_chunks, task_idx % n_chunks);
        let keys = chunk * CHUNK..n_keys.min((chunk + 1) * CHUNK);
        // SAFETY: there are `HEADS * CHUNK` weights for each thread, and no other task has this worker index now.
        let weights = unsafe { weights.slice(worker_idx * HEADS * CHUNK, HEADS * CHUNK) };
        isa.dispatch(ChunkTask { args, kv_head, keys, weights, partials: partials_out, n_chunks });
    };
    let n_tasks = args.n_kv_heads * n_chunks;
    if args.n_heads * args.head_dim * n_keys <= SERIAL_PRODUCTS {
        (0..n_tasks).for_each(|task_idx| task(0, task_idx));
    } else {
        pool.run_indexed(n_tasks, &task);
    }
    for (partials, out) in
        partials.chunks_exact(n_chunks * partial_len).zip(out.chunks_exact_mut(args.head_dim))
    {
        join(partials, out);
    }
}

/// Joins the partial results of one head: `[n_chunks][max, sum, mixed...]`.
fn join(partials: &[f32], out: &mut [f32]) {
    let partial_len = out.len() + 2;
    let max = partials.chunks_exact(partial_len).map(|partial| partial[0]).fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    out.fill(0.0);
    for partial in partials.chunks_exact(partial_len) {
        let factor = (partial[0] - max).exp();
        total += factor * partial[1];
        out.iter_mut().zip(&partial[2..]).for_each(|(out, value)| *out += factor * value);
    }
    let inverse = 1.0 / total;
    out.iter_mut().for_each(|out| *out *= inverse);
}

/// One chunk of keys for one group of heads.
struct ChunkTask<'a> {
    args: &'a AttentionArgs<'a>,
    kv_head: usize,
    keys: std::ops::Range<usize>,
    weights: &'a mut [f32],
    partials: OutPtr,
    n_chunks: usize,
}

/// The rows of keys and values that a task reads, in one format.
#[derive(Clone, Copy)]
struct Rows<F> {
    _format: F,
    keys: *const u8,
    values: *const u8,
}

impl Kernel for ChunkTask<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let args = self.args;
        let start = (self.kv_head * args.context_len + self.keys.start) * args.head_dim;
        let n_values = self.keys.len() * args.head_dim;
        let (keys, values) = (args.keys.bytes_at(start, n_values), args.values.bytes_at(start, n_values));
        match (args.keys, args.values) {
            (KvSlice::F32(_), KvSlice::F32(_)) => self.heads(simd, Rows { _format: F32, keys, values }),
            (KvSlice::F16(_), KvSlice::F16(_)) => self.heads(simd, Rows { _format: F16, keys, values }),
            (KvSlice::Q8_0(_), KvSlice::Q8_0(_)) => self.heads(simd, Rows { _format: Q8_0, keys, values }),
            _ => unreachable!("keys and values of different types"),
        }
    }
}

impl ChunkTask<'_> {
    #[inline(always)]
    fn heads<S: Simd, F: RowFormat>(&mut self, simd: S, rows: Rows<F>) {
        let group = self.args.group();
        for first in (0..group).step_by(HEADS) {
            let head = self.kv_head * group + first;
            match group - first {
                1 => self.some_heads::<S, F, 1>(simd, rows, head),
                2 => self.some_heads::<S, F, 2>(simd, rows, head),
                3 => self.some_heads::<S, F, 3>(simd, rows, head),
                _ => self.some_heads::<S, F, HEADS>(simd, rows, head),
            }
        }
    }

    #[inline(always)]
    fn some_heads<S: Simd, F: RowFormat, const H: usize>(&mut self, simd: S, rows: Rows<F>, head: usize) {
        let head_dim = self.args.head_dim;
        let n_keys = self.keys.len();
        let row_bytes = head_dim / F::GROUP * F::GROUP_BYTES;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let queries: [*const f32; H] =
            std::array::from_fn(|h| self.args.queries[(head + h) * head_dim..][..head_dim].as_ptr());
        for key in 0..n_keys {
            // SAFETY: `keys` has `n_keys` rows of `head_dim` values, as has each query.
            let scores =
                unsafe { dots::<S, F, 1, H>(simd, [rows.keys.add(key * row_bytes)], queries, head_dim) };
            for (h, [score]) in scores.into_iter().enumerate() {
                self.weights[h * CHUNK + key] = score * scale;
            }
        }
        let partial_len = head_dim + 2;
        for h in 0..H {
            let weights = &mut self.weights[h * CHUNK..][..n_keys];
            let max = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum = exp_in_place(simd, weights, max);
            let at = ((head + h) * self.n_chunks + self.keys.start / CHUNK) * partial_len;
            // SAFETY: partials hold `n_heads * n_chunks` results, and this one belongs to this task alone.
            unsafe {
                *self.partials.at(at) = max;
                *self.partials.at(at + 1) = sum;
            }
        }
        self.mix::<S, F, H>(simd, rows, head);
    }

    /// Sums the values, weighted, into the partial results.
    #[inline(always)]
    fn mix<S: Simd, F: RowFormat, const H: usize>(&self, simd: S, rows: Rows<F>, head: usize) {
        let head_dim = self.args.head_dim;
        let row_bytes = head_dim / F::GROUP * F::GROUP_BYTES;
        let weights = self.weights.as_ptr();
        let partial = |h: usize| ((head + h) * self.n_chunks + self.keys.start / CHUNK) * (head_dim + 2) + 2;
        let mut dim = 0;
        // SAFETY: `values` has a row of `head_dim` values for each key, whole groups of them; there are `H * CHUNK` weights,
        // and the partial results of these heads belong to this task alone. Two vectors divide a group of 32, so that no
        // single values are left where the format has none.
        unsafe {
            while dim + 2 * S::LANES <= head_dim {
                let mut sums = [[simd.splat(0.0); 2]; H];
                for key in 0..self.keys.len() {
                    let row = rows.values.add(key * row_bytes);
                    let low = decode_at::<S, F>(simd, row, dim);
                    let high = decode_at::<S, F>(simd, row, dim + S::LANES);
                    for (h, sums) in sums.iter_mut().enumerate() {
                        let weight = simd.splat(*weights.add(h * CHUNK + key));
                        sums[0] = simd.fma(weight, low, sums[0]);
                        sums[1] = simd.fma(weight, high, sums[1]);
                    }
                }
                for (h, sums) in sums.into_iter().enumerate() {
                    simd.store(self.partials.at(partial(h) + dim), sums[0]);
                    simd.store(self.partials.at(partial(h) + dim + S::LANES), sums[1]);
                }
                dim += 2 * S::LANES;
            }
            for dim in dim..head_dim {
                for h in 0..H {
                    let mut sum = 0.0;
                    for key in 0..self.keys.len() {
                        let at = rows.values.add(key * row_bytes + dim * F::GROUP_BYTES);
                        sum += *weights.add(h * CHUNK + key) * F::decode_one(at);
                    }
                    *self.partials.at(partial(h) + dim) = sum;
                }
            }
        }
    }
}

/// The `LANES` values of `row` from value `at` on, a multiple of `LANES`.
/// # Safety
/// They can be read, with the group in which they lie.
#[inline(always)]
unsafe fn decode_at<S: Simd, F: RowFormat>(simd: S, row: *const u8, at: usize) -> S::F {
    let piece = if F::GROUP == 1 { 0 } else { at % F::GROUP / S::LANES };
    // SAFETY: the caller vouches for the group.
    unsafe { F::decode(simd, row.add(at / F::GROUP * F::GROUP_BYTES), piece) }
}
