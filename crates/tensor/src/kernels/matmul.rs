//! Products of activations with weights in their storage dtype.
//!
//! Up to [`DOT_TOKENS`] tokens the rows are decoded in registers ([`super::row_dot`]); more tokens go through
//! packed panels: the activations once per call, the weights one group of panels at a time. Sums over `n_in`
//! are never split between threads, so results do not depend on their number.
//!
//! Memory: [`matmul_scratch_bytes`].

use super::int8;
use super::isa::{Isa, Kernel};
use super::out::OutPtr;
use super::pack::{KC, PanelSource, WeightPanel, k_step, pack_a_strips, pack_weights};
use super::pool::ThreadPool;
use super::row_dot::{GroupSums, MAX_DOT_TOKENS, RowDots};
use super::simd::{MAX_LANES, Simd};
use super::tile::{TileOut, TilePanels, tile};
use crate::WeightMatrix;

/// The most tokens that take the row kernel, in passes of [`MAX_DOT_TOKENS`].
const DOT_TOKENS: usize = 2 * MAX_DOT_TOKENS;

/// Tokens whose packed activations are in memory at a time.
const PACKED_TOKENS: usize = 512;

/// Weight panels that a thread packs at a time.
const PANELS: usize = 6;

/// Tokens that pass by one weight panel while both stay in the second cache level.
const MC: usize = 96;

/// Weights below which one thread is faster than waking others.
const SERIAL_BYTES: usize = 16 << 10;

/// How activations enter a product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// Rounded to signed bytes with one scale per 32, where the weights are stored as integers with one scale per 32
    /// (q8_0, q4_0, q4_1); the products are exact integers. Against [`Self::F32`] a result is off by at most
    /// `sum over groups of max|x| / 254 * sum|w|`. Other dtypes are multiplied as with [`Self::F32`].
    Int8,
}

/// What becomes of the old values of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Store {
    /// They are overwritten.
    #[default]
    Replace,
    /// The product is added to them.
    Add,
}

/// How [`matmul_with`] works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MatmulMode {
    /// How activations enter.
    pub precision: Precision,
    /// What becomes of the old values.
    pub store: Store,
}

/// Buffers of [`matmul`], kept between calls.
#[derive(Debug, Default)]
pub struct MatmulScratch {
    pub(crate) packed_inputs: Vec<f32>,
    pub(crate) panels: Vec<f32>,
    sums: Vec<f32>,
}

impl MatmulScratch {
    /// Bytes held at the moment.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<f32>() * (self.packed_inputs.capacity() + self.panels.capacity() + self.sums.capacity())
    }
}

/// The most bytes that a [`MatmulScratch`] holds for these sizes; `n_tokens` and `n_in` at their greatest.
///
/// One scratch that serves both precisions needs at most the sum of both.
#[must_use]
pub fn matmul_scratch_bytes(precision: Precision, n_threads: usize, n_tokens: usize, n_in: usize) -> usize {
    let isa = Isa::detect();
    let shape = isa.dispatch(ShapeOf);
    let sums = n_in.div_ceil(32) * MAX_LANES;
    let packed_tokens = n_tokens.min(PACKED_TOKENS).next_multiple_of(shape.mr);
    let by_panels = packed_tokens * n_in + n_threads * shape.panel_values();
    let values = match precision {
        Precision::F32 if n_tokens <= DOT_TOKENS => sums,
        Precision::F32 => sums + by_panels,
        Precision::Int8 => int8::scratch_values(isa, n_threads, n_tokens, n_in),
    };
    size_of::<f32>() * values
}

/// `out = inputs weight'`: `[n_tokens, n_in]` by `[n_out, n_in]` to `[n_tokens, n_out]`.
/// # Panics
/// When the lengths do not belong together.
pub fn matmul(
    pool: &ThreadPool,
    inputs: &[f32],
    weight: &WeightMatrix,
    out: &mut [f32],
    scratch: &mut MatmulScratch,
) {
    matmul_with(pool, inputs, weight, out, scratch, MatmulMode::default());
}

/// `out += inputs weight'`, as [`matmul`].
/// # Panics
/// When the lengths do not belong together.
pub fn matmul_add(
    pool: &ThreadPool,
    inputs: &[f32],
    weight: &WeightMatrix,
    out: &mut [f32],
    scratch: &mut MatmulScratch,
) {
    let mode = MatmulMode { store: Store::Add, ..MatmulMode::default() };
    matmul_with(pool, inputs, weight, out, scratch, mode);
}

/// As [`matmul`], in a chosen precision, replacing the old values or adding to them.
/// # Panics
/// When the lengths do not belong together.
pub fn matmul_with(
    pool: &ThreadPool,
    inputs: &[f32],
    weight: &WeightMatrix,
    out: &mut [f32],
    scratch: &mut MatmulScratch,
    mode: MatmulMode,
) {
    let MatmulMode { precision, store } = mode;
    let accumulate = store == Store::Add;
    Product { inputs, weight, accumulate, precision }.run(Isa::detect(), pool, out, scratch);
}

/// One product, on any instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) inputs: &'a [f32],
    pub(crate) weight: &'a WeightMatrix,
    pub(crate) accumulate: bool,
    pub(crate) precision: Precision,
}

impl Product<'_> {
    pub(crate) fn run(self, isa: Isa, pool: &ThreadPool, out: &mut [f32], scratch: &mut MatmulScratch) {
        let (n_out, n_in) = (self.weight.n_rows(), self.weight.n_cols());
        if n_in == 0 || n_out == 0 {
            assert!(self.inputs.is_empty() && n_out * out.len() == 0, "an empty matrix has no product");
            if !self.accumulate {
                out.fill(0.0);
            }
            return;
        }
        assert!(self.inputs.len().is_multiple_of(n_in), "inputs are not [n_tokens, {n_in}]");
        let n_tokens = self.inputs.len() / n_in;
        assert_eq!(out.len(), n_tokens * n_out, "out is not [{n_tokens}, {n_out}]");
        if self.precision == Precision::Int8 && int8::has_bytes(self.weight.dtype()) {
            return int8::run(self, isa, pool, out, scratch);
        }
        let (is_few, pass) =
            if n_tokens <= DOT_TOKENS { (true, MAX_DOT_TOKENS) } else { (false, PACKED_TOKENS) };
        for (inputs, out) in self.inputs.chunks(pass * n_in).zip(out.chunks_mut(pass * n_out)) {
            let product = Self { inputs, ..self };
            if is_few {
                product.by_rows(isa, pool, out, scratch);
            } else {
                product.by_panels(isa, pool, out, scratch);
            }
        }
    }

    fn by_rows(self, isa: Isa, pool: &ThreadPool, out: &mut [f32], scratch: &mut MatmulScratch) {
        let Self { inputs, weight, accumulate, .. } = self;
        let n_tokens = inputs.len() / weight.n_cols();
        let sums = &mut scratch.sums;
        if n_tokens == 1 {
            grow(sums, weight.n_cols().div_ceil(32) * MAX_LANES);
            isa.dispatch(GroupSums { input: inputs, sums });
        }
        let n_rows = weight.n_rows();
        let share =
            if weight.data().len() < SERIAL_BYTES { n_rows } else { n_rows.div_ceil(4 * pool.n_threads()) };
        let chunk = share.next_multiple_of(4);
        let out = OutPtr::new(out);
        pool.run(n_rows.div_ceil(chunk), &|task_idx| {
            let rows = task_idx * chunk..n_rows.min((task_idx + 1) * chunk);
            isa.dispatch(RowDots { weight, rows, inputs, n_tokens, input_sums: sums, out, accumulate });
        });
    }

    fn by_panels(self, isa: Isa, pool: &ThreadPool, out: &mut [f32], scratch: &mut MatmulScratch) {
        let Self { inputs, weight, accumulate, .. } = self;
        let (n_out, n_in) = (weight.n_rows(), weight.n_cols());
        let n_tokens = inputs.len() / n_in;
        let shape = isa.dispatch(ShapeOf);
        let (Shape { mr, nr }, panel_values) = (shape, shape.panel_values());
        let n_strips = n_tokens.div_ceil(mr);
        let step = k_step(n_in, weight.dtype().block_len().max(32));
        grow(&mut scratch.packed_inputs, n_strips * mr * n_in);
        grow(&mut scratch.panels, pool.n_threads() * panel_values);

        let packed = OutPtr::new(&mut scratch.packed_inputs);
        let strips_per_task = n_strips.div_ceil(4 * pool.n_threads());
        pool.run(n_strips.div_ceil(strips_per_task), &|task_idx| {
            let strips = task_idx * strips_per_task..n_strips.min((task_idx + 1) * strips_per_task);
            isa.dispatch(PackInputs { inputs, n_in, step, n_strips, strips, packed });
        });

        let panels = OutPtr::new(&mut scratch.panels);
        let out = OutPtr::new(out);
        let n_panels = n_out.div_ceil(nr);
        let panels_per_task = n_panels.div_ceil(4 * pool.n_threads()).clamp(1, PANELS);
        pool.run_indexed(n_panels.div_ceil(panels_per_task), &|worker_idx, task_idx| {
            let first = task_idx * panels_per_task * nr;
            let width = (panels_per_task * nr).min(n_out - first);
            // SAFETY: the buffer has `panel_values` for each thread, and no other task has this worker index now.
            let panels = unsafe { panels.slice(worker_idx * panel_values, panel_values) };
            isa.dispatch(PanelTask { weight, first, width, n_tokens, step, packed, panels, out, accumulate });
        });
    }
}

/// The first `len` values of `buffer`, made longer when it is too short; what they hold is left open.
pub(crate) fn grow(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        // Nothing of the old values is needed: freeing first keeps the peak low.
        *buffer = Vec::new();
        *buffer = vec![0.0; len];
    }
    &mut buffer[..len]
}

/// Rows and columns of a tile.
#[derive(Clone, Copy)]
struct Shape {
    mr: usize,
    nr: usize,
}

impl Shape {
    /// f32 values of one thread's packed weights.
    fn panel_values(self) -> usize {
        PANELS * self.nr * KC
    }
}

struct ShapeOf;

impl Kernel for ShapeOf {
    type Output = Shape;
    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> Shape {
        Shape { mr: S::MR, nr: S::NV * S::LANES }
    }
}

/// Packs strips of `MR` tokens: `[n_in / step][n_strips][kc][MR]`.
struct PackInputs<'a> {
    inputs: &'a [f32],
    n_in: usize,
    step: usize,
    n_strips: usize,
    strips: std::ops::Range<usize>,
    packed: OutPtr,
}

impl Kernel for PackInputs<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let n_tokens = self.inputs.len() / self.n_in;
        assert!(
            self.strips.end <= self.n_strips && self.n_strips == n_tokens.div_ceil(S::MR),
            "strips out of range"
        );
        let token = self.strips.start * S::MR;
        let width = n_tokens.min(self.strips.end * S::MR) - token;
        for start in (0..self.n_in).step_by(self.step) {
            let kc = self.step.min(self.n_in - start);
            let from = self.inputs[token * self.n_in + start..].as_ptr();
            let source = PanelSource { from, line_stride: self.n_in, value_stride: 1, width, kc };
            // SAFETY: `width` tokens from `token` on and `kc` columns from `start` on exist; the buffer holds
            // `n_strips * MR * n_in` values, and these strips belong to this task.
            unsafe {
                pack_a_strips(
                    simd,
                    source,
                    self.packed.at((start * self.n_strips + self.strips.start * kc) * S::MR),
                )
            };
        }
    }
}

/// All tokens by the weight rows `first..first + width`.
struct PanelTask<'a> {
    weight: &'a WeightMatrix,
    first: usize,
    width: usize,
    n_tokens: usize,
    step: usize,
    packed: OutPtr,
    panels: &'a mut [f32],
    out: OutPtr,
    accumulate: bool,
}

impl Kernel for PanelTask<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let nr = S::NV * S::LANES;
        let Self { weight, first, width, n_tokens, .. } = self;
        let (n_out, n_in) = (weight.n_rows(), weight.n_cols());
        assert!(first + width <= n_out && width <= PANELS * nr, "rows out of range");
        assert_eq!(self.panels.len(), PANELS * nr * KC, "not one thread's panels");
        let n_strips = n_tokens.div_ceil(S::MR);
        assert!(self.step <= KC, "panels are longer than their buffer");
        for start in (0..n_in).step_by(self.step) {
            let kc = self.step.min(n_in - start);
            for col in (0..width).step_by(nr) {
                let panel = WeightPanel { weight, first: first + col, width: nr.min(width - col), start, kc };
                // SAFETY: panel `col / nr` has `nr * KC` values at `col * KC`, within `PANELS` panels.
                unsafe { pack_weights(simd, panel, self.panels.as_mut_ptr().add(col * KC)) };
            }
            let beta = if start == 0 && !self.accumulate { 0.0 } else { 1.0 };
            for block in (0..n_strips).step_by(MC / S::MR) {
                let strips = block..n_strips.min(block + MC / S::MR);
                for col in (0..width).step_by(nr) {
                    for strip in strips.clone() {
                        let token = strip * S::MR;
                        // SAFETY: strip and panel are packed as `PackInputs` and the loop above laid them out;
                        // the tile lies in `[n_tokens, n_out]`, in columns of this task alone.
                        unsafe {
                            let panels = TilePanels {
                                a: self.packed.at((start * n_strips + strip * kc) * S::MR),
                                b: self.panels.as_ptr().add(col * KC),
                                kc,
                            };
                            let out = TileOut {
                                to: self.out.at(token * n_out + first + col),
                                row_stride: n_out,
                                n_rows: S::MR.min(n_tokens - token),
                                n_cols: nr.min(width - col),
                                alpha: 1.0,
                                beta,
                                skip: TileOut::WHOLE,
                            };
                            tile(simd, panels, out);
                        }
                    }
                }
            }
        }
    }
}
