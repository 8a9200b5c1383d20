//! SIMD kernels with run-time dispatch, and the thread pool they run on.
//!
//! Kernels are written once over the vector vocabulary in `simd` and compiled for each instruction set; [`active_isa`]
//! names the one in use. Every kernel has a plain twin in [`naive`]. Results do not depend on the number of threads.
//!
//! Memory: only [`MatmulScratch`] and [`AttentionScratch`], which callers keep, and the panels of [`gemm`] and its
//! relatives, which the pool keeps; `*_scratch_bytes` give their sizes.
#![deny(clippy::undocumented_unsafe_blocks)]

mod attention;
mod attention_decode;
mod buffer;
pub mod disk;
mod elementwise;
mod exp;
mod format;
mod gemm;
pub mod heap;
mod int8;
mod isa;
mod matmul;
pub mod naive;
mod out;
mod pack;
mod peak;
mod pool;
mod rope;
mod row_dot;
mod simd;
mod tile;
mod view;

#[cfg(test)]
mod tests;

pub use attention::{AttentionArgs, AttentionScratch, KvSlice, attention, attention_scratch_bytes};
pub use buffer::sized;
pub use elementwise::{
    add_in_place, all_finite, argmax, axpy, dot, log_sum_exp, max, rms_norm, silu_mul, softmax_in_place,
    sum_exp, sum_exp_gap,
};
pub use gemm::{GemmArgs, cross_accumulate, gemm, gemm_scratch_bytes, gram_accumulate, mirror_upper};
pub use isa::{KernelInfo, active_isa};
pub use matmul::{
    MAX_PROJECTIONS, MatmulMode, MatmulScratch, Precision, Projection, Store, matmul, matmul_add,
    matmul_each, matmul_scratch_bytes, matmul_with,
};
pub use peak::{multiply_add_loop, read_loop};
pub use pool::{MAX_THREADS, ThreadPool};
pub use rope::{RotaryPairs, RotaryTable, rotate_heads};
pub use view::{MatMut, MatRef};
