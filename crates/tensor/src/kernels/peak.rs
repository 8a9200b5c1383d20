//! The greatest speed of f32 arithmetic, measured: what no kernel can beat.

use super::isa::{Isa, Kernel};
use super::pool::ThreadPool;
use super::simd::Simd;
use std::hint::black_box;

/// Sums that run side by side: more than latency times throughput of any core, fewer than the registers.
const CHAINS: usize = 12;

/// Runs `n_steps` of independent multiply-adds in registers on every thread; returns the floating-point operations done.
pub fn multiply_add_loop(pool: &ThreadPool, n_steps: usize) -> f64 {
    let isa = Isa::detect();
    let n_threads = pool.n_threads();
    pool.run(n_threads, &|_| isa.dispatch(Loop { n_steps }));
    let lanes = super::active_isa().f32_lanes;
    2.0 * (n_threads * CHAINS * lanes) as f64 * n_steps as f64
}

/// Reads every byte of `parts` once, on every thread, and does nothing else: how fast weights can come at best.
pub fn read_loop(pool: &ThreadPool, parts: &[&[u8]]) {
    const PIECE_BYTES: usize = 1 << 20;
    let isa = Isa::detect();
    let n_pieces = |part: &&[u8]| part.len().div_ceil(PIECE_BYTES);
    pool.run(parts.iter().map(n_pieces).sum(), &|task_idx| {
        let mut nth = task_idx;
        for part in parts {
            let pieces = n_pieces(part);
            if nth < pieces {
                let piece = &part[nth * PIECE_BYTES..part.len().min((nth + 1) * PIECE_BYTES)];
                isa.dispatch(Read { bytes: piece });
                return;
            }
            nth -= pieces;
        }
    });
}

struct Read<'a> {
    bytes: &'a [u8],
}

impl Kernel for Read<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let step = 4 * 4 * S::LANES;
        let mut sums = [simd.splat_i(0); 4];
        for (nth, chunk) in self.bytes.chunks_exact(step).enumerate() {
            simd.prefetch_ahead(self.bytes.as_ptr(), nth * step..(nth + 1) * step);
            for (at, sum) in sums.iter_mut().enumerate() {
                // SAFETY: a chunk holds four vectors of 32-bit lanes.
                let value = unsafe { simd.load_i(chunk.as_ptr().add(at * 4 * S::LANES)) };
                *sum = simd.add_i(*sum, value);
            }
        }
        let total = simd.add_i(simd.add_i(sums[0], sums[1]), simd.add_i(sums[2], sums[3]));
        black_box(simd.sum(simd.to_f(total)));
    }
}

struct Loop {
    n_steps: usize,
}

impl Kernel for Loop {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (factor, summand) = (simd.splat(black_box(0.999)), simd.splat(black_box(0.001)));
        let mut sums = [simd.splat(1.0); CHAINS];
        for _ in 0..self.n_steps {
            for sum in &mut sums {
                *sum = simd.fma(*sum, factor, summand);
            }
        }
        let total: f32 = sums.into_iter().map(|sum| simd.sum(sum)).sum();
        black_box(total);
    }
}
