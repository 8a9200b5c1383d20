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
