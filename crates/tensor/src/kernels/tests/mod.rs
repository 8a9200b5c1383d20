//! Fast kernels against their plain twins, over odd sizes, on every instruction set of the machine.

mod attention;
pub(super) mod coverage;
mod elementwise;
mod gemm;
mod int8;
mod isa;
mod matmul;
mod ops;
mod pool;

use super::isa::Isa;
use super::matmul::{MatmulMode, MatmulScratch, Precision, Projection, Store, run_each};
use super::pool::ThreadPool;
use crate::WeightMatrix;

/// One product, on any instruction set.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) inputs: &'a [f32],
    pub(super) weight: &'a WeightMatrix,
    pub(super) accumulate: bool,
    pub(super) precision: Precision,
}

impl Product<'_> {
    pub(super) fn run(self, isa: Isa, pool: &ThreadPool, out: &mut [f32], scratch: &mut MatmulScratch) {
        let store = if self.accumulate { Store::Add } else { Store::Replace };
        let mode = MatmulMode { precision: self.precision, store };
        run_each(isa, pool, self.inputs, &mut [Projection { weight: self.weight, out }], scratch, mode);
    }
}

/// Sizes at and around the edges of vectors, tiles and blocks.
pub(super) const ODD: [usize; 12] = [1, 2, 3, 5, 7, 17, 31, 33, 63, 65, 100, 257];

/// Reproducible values in -1..1.
pub(super) fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x1234_5678);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Runs `check` on every instruction set with one, two and three threads.
pub(super) fn everywhere(check: impl Fn(Isa, &ThreadPool, &str)) {
    for n_threads in [1, 2, 3] {
        let pool = ThreadPool::new(n_threads);
        for isa in Isa::all() {
            check(isa, &pool, &format!("{} on {n_threads} threads", isa.name()));
        }
    }
}

/// Panics with the first value that is further off than `tolerance * scale`.
pub(super) fn assert_close(got: &[f32], want: &[f32], tolerance: f32, scale: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (idx, (got, want)) in got.iter().zip(want).enumerate() {
        let off = (got - want).abs();
        assert!(off <= tolerance * scale, "{what}: value {idx} is {got}, expected {want} (off by {off:e})");
    }
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
