//! Products of activations with weights in their storage dtype.
//!
//! Up to [`DOT_TOKENS`] tokens the rows are decoded in registers ([`super::row_dot`]); more tokens go through
//! packed panels: the activations once per call, the weights one group of panels at a time. Sums over `n_in`
//! are never split between threads, so results do not depend on their number.
//!
//! Memory: [`matmul_scratch_bytes`].

use super::buffer::sized;
use super::int8;
use super::isa::{Isa, Kernel};
use super::out::OutPtr;
use super::pack::{KC, PanelSource, WeightPanel, k_step, pack_a_strips, pack_weights};
use super::pool::ThreadPool;
use super::row_dot::{GroupSums, MAX_DOT_TOKENS, RowDots};
use super::simd::{MAX_LANES, Simd};
use super::tile::{TileOut, TilePanels, tile};
use crate::WeightMatrix;
use std::ops::Range;

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

/// Tasks that keep the threads busy to the end.
const TASKS_PER_THREAD: usize = 8;

/// The most bytes of a task of a row kernel: threads must not wait long for the last one.
const TASK_BYTES: usize = 256 << 10;

/// Rows that a row kernel takes together.
const ROW_UNIT: usize = 4;

/// How activations enter a product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// Rounded to signed bytes with one scale per 32, where the weights are stored as integers: q8_0, q4_0, q4_1, q5_0, q5_1,
    /// q4_K, q5_K and q6_K. The products are exact integers. Against [`Self::F32`] a result is off by at most
    /// `sum over groups of max|x| / 254 * sum|w|`. Everything else is multiplied as with [`Self::F32`].
    Int8,
}

impl Precision {
    /// Name as users write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
        }
    }

    /// The precision with this name; case does not matter.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F32, Self::Int8].into_iter().find(|precision| precision.name().eq_ignore_ascii_case(name))
    }
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
    matmul_each(pool, inputs, &mut [Projection { weight, out }], scratch, mode);
}

/// One of several products of the same inputs.
#[derive(Debug)]
pub struct Projection<'a> {
    /// `[n_out, n_in]`.
    pub weight: &'a WeightMatrix,
    /// `[n_tokens, n_out]`.
    pub out: &'a mut [f32],
}

/// The most products of one [`matmul_each`].
pub const MAX_PROJECTIONS: usize = 4;

/// Several products of the same inputs `[n_tokens, n_in]`, as if by [`matmul_with`] one after the other: the inputs are
/// rounded or packed once, and the threads are started once.
/// # Panics
/// When the lengths do not belong together, or for more than [`MAX_PROJECTIONS`].
pub fn matmul_each(
    pool: &ThreadPool,
    inputs: &[f32],
    projections: &mut [Projection<'_>],
    scratch: &mut MatmulScratch,
    mode: MatmulMode,
) {
    run_each(Isa::detect(), pool, inputs, projections, scratch, mode);
}

pub(crate) fn run_each(
    isa: Isa,
    pool: &ThreadPool,
    inputs: &[f32],
    projections: &mut [Projection<'_>],
    scratch: &mut MatmulScratch,
    mode: MatmulMode,
) {
    let accumulate = mode.store == Store::Add;
    for by_bytes in [true, false] {
        let mut targets = Targets::default();
        for Projection { weight, out } in projections.iter_mut() {
            let bytes = mode.precision == Precision::Int8 && int8::has_bytes(weight.dtype());
            if bytes != by_bytes {
                continue;
            }
            let (n_out, n_in) = (weight.n_rows(), weight.n_cols());
            if n_in == 0 || n_out == 0 {
                assert!(inputs.is_empty() && n_out * out.len() == 0, "an empty matrix has no product");
                if !accumulate {
                    out.fill(0.0);
                }
                continue;
            }
            assert!(inputs.len().is_multiple_of(n_in), "inputs are not [n_tokens, {n_in}]");
            let n_tokens = inputs.len() / n_in;
            assert_eq!(out.len(), n_tokens * n_out, "out is not [{n_tokens}, {n_out}]");
            targets.push(Target { weight, out: OutPtr::new(out) });
        }
        let Some(first) = targets.iter().next() else { continue };
        let n_in = first.weight.n_cols();
        assert!(targets.iter().all(|target| target.weight.n_cols() == n_in), "inputs of two widths");
        let product = Products { inputs, n_in, targets, accumulate };
        if by_bytes {
            int8::run(product, isa, pool, scratch);
        } else {
            product.run(isa, pool, scratch);
        }
    }
}

/// A weight and where its results go: `[n_tokens, weight.n_rows()]`.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) weight: &'a WeightMatrix,
    pub(crate) out: OutPtr,
}

/// A few targets that share their inputs; a list without allocation.
#[derive(Clone, Copy, Default)]
pub(crate) struct Targets<'a> {
    slots: [Option<Target<'a>>; MAX_PROJECTIONS],
    len: usize,
}

impl<'a> Targets<'a> {
    fn push(&mut self, target: Target<'a>) {
        assert!(self.len < MAX_PROJECTIONS, "more than {MAX_PROJECTIONS} products of the same inputs");
        self.slots[self.len] = Some(target);
        self.len += 1;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Target<'a>> {
        self.slots.iter().flatten().copied()
    }

    /// The same weights for the tokens from `token` on.
    fn skip_tokens(mut self, token: usize) -> Self {
        for target in self.slots.iter_mut().flatten() {
            // SAFETY: `run_each` checked that each output has a row for every token.
            target.out = OutPtr::from_ptr(unsafe { target.out.at(token * target.weight.n_rows()) });
        }
        self
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.iter().map(|target| target.weight.n_rows()).sum()
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.iter().map(|target| target.weight.data().len()).sum()
    }

    /// Tasks when every target is cut into `chunk` rows.
    pub(crate) fn n_tasks(&self, chunk: usize) -> usize {
        self.iter().map(|target| target.weight.n_rows().div_ceil(chunk)).sum()
    }

    /// The target of a task, and its rows.
    pub(crate) fn task(&self, mut task_idx: usize, chunk: usize) -> (Target<'a>, Range<usize>) {
        for target in self.iter() {
            let n_rows = target.weight.n_rows();
            let n_tasks = n_rows.div_ceil(chunk);
            if task_idx < n_tasks {
                return (target, task_idx * chunk..n_rows.min((task_idx + 1) * chunk));
            }
            task_idx -= n_tasks;
        }
        unreachable!("more tasks than there are rows")
    }
}

/// Checked products of the same inputs, on any instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Products<'a> {
    /// `[n_tokens, n_in]`.
    pub(crate) inputs: &'a [f32],
    pub(crate) n_in: usize,
    pub(crate) targets: Targets<'a>,
    pub(crate) accumulate: bool,
}

impl Products<'_> {
    pub(crate) fn n_tokens(&self) -> usize {
        self.inputs.len() / self.n_in
    }

    /// The products of at most `pass` tokens at a time.
    pub(crate) fn passes(self, pass: usize) -> impl Iterator<Item = Self> {
        self.inputs.chunks(pass * self.n_in).enumerate().map(move |(nth, inputs)| Self {
            inputs,
            targets: self.targets.skip_tokens(nth * pass),
            ..self
        })
    }

    fn run(self, isa: Isa, pool: &ThreadPool, scratch: &mut MatmulScratch) {
        if self.n_tokens() <= DOT_TOKENS {
            self.passes(MAX_DOT_TOKENS).for_each(|pass| pass.by_rows(isa, pool, scratch));
        } else {
            self.passes(PACKED_TOKENS).for_each(|pass| pass.by_panels(isa, pool, scratch));
        }
    }

    fn by_rows(self, isa: Isa, pool: &ThreadPool, scratch: &mut MatmulScratch) {
        let Self { inputs, n_in, targets, accumulate } = self;
        let n_tokens = self.n_tokens();
        let sums = &mut scratch.sums;
        if n_tokens == 1 {
            sized(sums, n_in.div_ceil(32) * MAX_LANES);
            isa.dispatch(GroupSums { input: inputs, sums });
        }
        run_rows(pool, &targets, |Target { weight, out }, rows| {
            isa.dispatch(RowDots { weight, rows, inputs, n_tokens, input_sums: sums, out, accumulate });
        });
    }

    fn by_panels(self, isa: Isa, pool: &ThreadPool, scratch: &mut MatmulScratch) {
        let Self { inputs, n_in, targets, accumulate } = self;
        let n_tokens = self.n_tokens();
        let shape = isa.dispatch(ShapeOf);
        let (Shape { mr, nr }, panel_values) = (shape, shape.panel_values());
        let n_strips = n_tokens.div_ceil(mr);
        // All block lengths divide the greatest.
        let unit = targets.iter().map(|target| target.weight.dtype().block_len()).max().unwrap_or(1);
        let step = k_step(n_in, unit.max(32));
        sized(&mut scratch.packed_inputs, n_strips * mr * n_in);
        sized(&mut scratch.panels, pool.n_threads() * panel_values);

        let packed = OutPtr::new(&mut scratch.packed_inputs);
        let strips_per_task = n_strips.div_ceil(4 * pool.n_threads());
        pool.run(n_strips.div_ceil(strips_per_task), &|task_idx| {
            let strips = task_idx * strips_per_task..n_strips.min((task_idx + 1) * strips_per_task);
            isa.dispatch(PackInputs { inputs, n_in, step, n_strips, strips, packed });
        });

        let panels = OutPtr::new(&mut scratch.panels);
        let n_panels = targets.n_tasks(nr);
        let chunk = n_panels.div_ceil(4 * pool.n_threads()).clamp(1, PANELS) * nr;
        pool.run_indexed(targets.n_tasks(chunk), &|worker_idx, task_idx| {
            let (Target { weight, out }, rows) = targets.task(task_idx, chunk);
            let (first, width) = (rows.start, rows.len());
            // SAFETY: the buffer has `panel_values` for each thread, and no other task has this worker index now.
            let panels = unsafe { panels.slice(worker_idx * panel_values, panel_values) };
            isa.dispatch(PanelTask { weight, first, width, n_tokens, step, packed, panels, out, accumulate });
        });
    }
}

/// Calls `task` for chunks of all rows, each once, on all threads when there is enough to do.
pub(crate) fn run_rows(
    pool: &ThreadPool,
    targets: &Targets<'_>,
    task: impl Fn(Target<'_>, Range<usize>) + Sync,
) {
    if targets.n_bytes() < SERIAL_BYTES {
        targets.iter().for_each(|target| task(target, 0..target.weight.n_rows()));
        return;
    }
    let row_bytes = targets.iter().map(|target| target.weight.row_bytes()).max().unwrap_or(1);
    let share = targets.n_rows().div_ceil(TASKS_PER_THREAD * pool.n_threads());
    let chunk = share.min(TASK_BYTES / row_bytes).max(1).next_multiple_of(ROW_UNIT);
    pool.run(targets.n_tasks(chunk), &|task_idx| {
        let (target, rows) = targets.task(task_idx, chunk);
        task(target, rows);
    });
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
