//! Rotary position embedding: turns heads by angles that come as a table.
//!
//! The table holds, for each token, `head_dim` cosines and `head_dim` signed sines, so that both layouts are
//! `x * cos + partner(x) * sin` and differ only in which value is the partner.

use super::isa::{Isa, Kernel};
use super::out::OutPtr;
use super::pool::ThreadPool;
use super::simd::Simd;

/// Values below which one thread is faster than waking others.
const SERIAL_VALUES: usize = 16 << 10;

/// Which values of a head are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryPairs {
    /// `2i` with `2i + 1`.
    Neighbours,
    /// `i` with `i + head_dim / 2`.
    Halves,
}

/// The angles of some tokens.
#[derive(Clone, Copy, Debug)]
pub struct RotaryTable<'a> {
    /// Which values belong together.
    pub pairs: RotaryPairs,
    /// Values of a head, an even number.
    pub head_dim: usize,
    /// `[n_tokens, 2, head_dim]`: cosines, then sines, negative for the first of each pair.
    pub values: &'a [f32],
}

/// Turns every head of `rows`: `[n_tokens, n_heads * head_dim]`.
/// # Panics
/// When the lengths do not belong together.
pub fn rotate_heads(pool: &ThreadPool, table: RotaryTable<'_>, rows: &mut [f32]) {
    rotate_on(Isa::detect(), pool, table, rows);
}

pub(crate) fn rotate_on(isa: Isa, pool: &ThreadPool, table: RotaryTable<'_>, rows: &mut [f32]) {
    let head_dim = table.head_dim;
    assert!(0 < head_dim && head_dim.is_multiple_of(2), "heads of {head_dim} values have no pairs");
    let n_tokens = table.values.len() / (2 * head_dim);
    assert_eq!(table.values.len(), n_tokens * 2 * head_dim, "table is not [n_tokens, 2, {head_dim}]");
    if rows.is_empty() {
        return;
    }
    let width = rows.len().checked_div(n_tokens).unwrap_or(0);
    assert!(
        width * n_tokens == rows.len() && width.is_multiple_of(head_dim),
        "rows are not [{n_tokens}, n_heads * {head_dim}]"
    );
    if rows.len() < SERIAL_VALUES {
        isa.dispatch(Rotate { table, width, rows });
        return;
    }
    let n_tasks = (4 * pool.n_threads()).min(n_tokens);
    let chunk = n_tokens.div_ceil(n_tasks);
    let out = OutPtr::new(rows);
    pool.run(n_tokens.div_ceil(chunk), &|task_idx| {
        let first = task_idx * chunk;
        let n = chunk.min(n_tokens - first);
        // SAFETY: `rows` has `n_tokens * width` values, and these tokens belong to this task alone.
        let rows = unsafe { out.slice(first * width, n * width) };
        let values = &table.values[first * 2 * head_dim..(first + n) * 2 * head_dim];
        isa.dispatch(Rotate { table: RotaryTable { values, ..table }, width, rows });
    });
}

struct Rotate<'a> {
    table: RotaryTable<'a>,
    width: usize,
    rows: &'a mut [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let RotaryTable { pairs, head_dim, values } = self.table;
        for (row, angles) in self.rows.chunks_exact_mut(self.width).zip(values.chunks_exact(2 * head_dim)) {
            let (cos, sin) = angles.split_at(head_dim);
            for head in row.chunks_exact_mut(head_dim) {
                match pairs {
                    RotaryPairs::Neighbours => neighbours(simd, head, cos, sin),
                    RotaryPairs::Halves => halves(simd, head, cos, sin),
                }
            }
        }
    }
}

#[inline(always)]
fn neighbours<S: Simd>(simd: S, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert!(head.len() == cos.len() && head.len() == sin.len(), "table of another head size");
    let whole = head.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        // SAFETY: `at + LANES` is within all three, which are equally long.
        unsafe {
            let to = head.as_mut_ptr().add(at);
            let value = simd.load(to);
            let turned = simd.mul(simd.swap_pairs(value), simd.load(sin.as_ptr().add(at)));
            simd.store(to, simd.fma(value, simd.load(cos.as_ptr().add(at)), turned));
        }
    }
    for at in (whole..head.len()).step_by(2) {
        let (a, b) = (head[at], head[at + 1]);
        head[at] = a * cos[at] + b * sin[at];
        head[at + 1] = b * cos[at + 1] + a * sin[at + 1];
    }
}

#[inline(always)]
fn halves<S: Simd>(simd: S, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert!(head.len() == cos.len() && head.len() == sin.len(), "table of another head size");
    let half = head.len() / 2;
    let whole = half / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        // SAFETY: `at + LANES` is within the first half, so `half + at + LANES` is within the head.
        unsafe {
            let (low, high) = (head.as_mut_ptr().add(at), head.as_mut_ptr().add(half + at));
            let (a, b) = (simd.load(low), simd.load(high));
            let cos = [simd.load(cos.as_ptr().add(at)), simd.load(cos.as_ptr().add(half + at))];
            let sin = [simd.load(sin.as_ptr().add(at)), simd.load(sin.as_ptr().add(half + at))];
            simd.store(low, simd.fma(a, cos[0], simd.mul(b, sin[0])));
            simd.store(high, simd.fma(b, cos[1], simd.mul(a, sin[1])));
        }
    }
    for at in whole..half {
        let (a, b) = (head[at], head[half + at]);
        head[at] = a * cos[at] + b * sin[at];
        head[half + at] = b * cos[half + at] + a * sin[half + at];
    }
}
