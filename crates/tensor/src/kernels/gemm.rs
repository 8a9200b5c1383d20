//! General f32 matrix products, Gram and cross products.
//!
//! Each task owns a square block of `c` and packs its own panels, so memory is [`gemm_scratch_bytes`] whatever the sizes,
//! and the sum over `k` is never split between threads: results do not depend on their number.

use super::isa::{Isa, Kernel};
use super::out::OutPtr;
use super::pack::{KC, PanelSource, k_step, pack_a_strips, pack_b_strips};
use super::pool::ThreadPool;
use super::simd::Simd;
use super::tile::{TileOut, TilePanels, tile};
use super::view::{Layout, MatMut, MatRef};

/// Sides of one task's block of `c`, the first that gives each thread [`TASKS_PER_THREAD`]: multiples of every tile's
/// rows and columns. Large blocks pack less.
const BLOCK_SIDES: [usize; 3] = [384, 192, 96];

/// Tasks that keep the threads busy to the end.
const TASKS_PER_THREAD: usize = 4;

/// Rows of `a` that pass by one panel of `b` while they stay in the second cache level.
const SUB_ROWS: usize = 96;

/// f32 values of one thread's panels.
const PANEL_VALUES: usize = 2 * BLOCK_SIDES[0] * KC;

/// Multiplications below which one thread is faster than waking others.
const SERIAL_PRODUCTS: usize = 32 << 10;

/// Bytes that [`gemm`], [`gram_accumulate`] and [`cross_accumulate`] take from the pool, which keeps them.
#[must_use]
pub const fn gemm_scratch_bytes(n_threads: usize) -> usize {
    n_threads * PANEL_VALUES * size_of::<f32>()
}

/// Operands of [`gemm`]: `c = alpha a b + beta c`.
#[derive(Debug)]
pub struct GemmArgs<'a> {
    /// Factor of the product.
    pub alpha: f32,
    /// `[m, k]`.
    pub a: MatRef<'a>,
    /// `[k, n]`.
    pub b: MatRef<'a>,
    /// Factor of what `c` holds; with 0 the old values are not read.
    pub beta: f32,
    /// `[m, n]`.
    pub c: MatMut<'a>,
}

/// General matrix product: `c = alpha a b + beta c`.
/// # Panics
/// When the shapes do not belong together.
pub fn gemm(pool: &ThreadPool, args: GemmArgs<'_>) {
    run_gemm(Isa::detect(), pool, args, Part::Whole);
}

/// Adds `z' z` to the upper triangle of `gram`; `z`: `[n, k]`, `gram`: `[k, k]`. The lower triangle is left alone.
/// # Panics
/// When the lengths do not belong together.
pub fn gram_accumulate(pool: &ThreadPool, z: &[f32], k: usize, gram: &mut [f32]) {
    run_gemm(Isa::detect(), pool, gram_args(z, k, gram), Part::Upper);
}

pub(crate) fn gram_args<'a>(z: &'a [f32], k: usize, gram: &'a mut [f32]) -> GemmArgs<'a> {
    assert_eq!(gram.len(), k * k, "gram is not [{k}, {k}]");
    let n = z.len().checked_div(k).unwrap_or(0);
    assert_eq!(z.len(), n * k, "z is not [n, {k}]");
    let z = MatRef::row_major(z, n, k);
    GemmArgs { alpha: 1.0, a: z.transposed(), b: z, beta: 1.0, c: MatMut::row_major(gram, k, k) }
}

/// Adds `z' t` to `out`; `z`: `[n, k]`, `t`: `[n, d]`, `out`: `[k, d]`.
/// # Panics
/// When the lengths do not belong together.
pub fn cross_accumulate(pool: &ThreadPool, z: &[f32], t: &[f32], k: usize, d: usize, out: &mut [f32]) {
    assert_eq!(out.len(), k * d, "out is not [{k}, {d}]");
    let n = z.len().checked_div(k).unwrap_or(0);
    assert!(z.len() == n * k && (k == 0 || t.len() == n * d), "z and t are not [n, {k}] and [n, {d}]");
    let t = MatRef::row_major(t, n, d);
    let a = MatRef::row_major(z, n, k).transposed();
    gemm(pool, GemmArgs { alpha: 1.0, a, b: t, beta: 1.0, c: MatMut::row_major(out, k, d) });
}

/// Copies the upper triangle of `gram` `[k, k]` to the lower one.
/// # Panics
/// When `gram` is not `[k, k]`.
pub fn mirror_upper(gram: &mut [f32], k: usize) {
    /// Squares of this side are read and written within the first cache level.
    const SIDE: usize = 32;
    assert_eq!(gram.len(), k * k, "gram is not [{k}, {k}]");
    for row_block in (0..k).step_by(SIDE) {
        for col_block in (0..=row_block).step_by(SIDE) {
            for row in row_block..k.min(row_block + SIDE) {
                for col in col_block..row.min(col_block + SIDE) {
                    gram[row * k + col] = gram[col * k + row];
                }
            }
        }
    }
}

/// Which values of `c` are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    /// Columns from the row's own number on.
    Upper,
}

pub(crate) fn run_gemm(isa: Isa, pool: &ThreadPool, args: GemmArgs<'_>, part: Part) {
    let GemmArgs { alpha, a, b, beta, c } = args;
    let (m, k, n) = (a.n_rows(), a.n_cols(), b.n_cols());
    assert_eq!(b.n_rows(), k, "a is [{m}, {k}], b is [{}, {n}]", b.n_rows());
    assert_eq!((c.layout.n_rows, c.layout.n_cols), (m, n), "c is not [{m}, {n}]");
    if m == 0 || n == 0 {
        return;
    }
    if c.layout.col_stride != 1 && 1 < n {
        assert!(part == Part::Whole, "the upper triangle needs a row-major matrix");
        let args = GemmArgs { alpha, a: b.transposed(), b: a.transposed(), beta, c: c.transposed() };
        return run_gemm(isa, pool, args, part);
    }
    let n_blocks_of = |side: usize| m.div_ceil(side) * n.div_ceil(side);
    let enough = TASKS_PER_THREAD * pool.n_threads();
    let side = BLOCK_SIDES.into_iter().find(|side| enough <= n_blocks_of(*side)).unwrap_or(BLOCK_SIDES[2]);
    let (n_col_blocks, n_blocks) = (n.div_ceil(side), n_blocks_of(side));
    let (c_layout, c) = (c.layout, OutPtr::new(c.data));
    pool.with_panels(pool.n_threads() * PANEL_VALUES, |panels| {
        let panels = OutPtr::new(panels);
        let task = |worker_idx: usize, task_idx: usize| {
            let first_row = task_idx / n_col_blocks * side;
            let first_col = task_idx % n_col_blocks * side;
            let (n_rows, n_cols) = (side.min(m - first_row), side.min(n - first_col));
            let block = Block { first_row, first_col, n_rows, n_cols };
            // SAFETY: the buffer has `PANEL_VALUES` for each thread, and no other task has this worker index now.
            let panels = unsafe { panels.slice(worker_idx * PANEL_VALUES, PANEL_VALUES) };
            isa.dispatch(BlockTask { alpha, a, b, beta, c, c_layout, block, part, panels });
        };
        if m * n * k.max(1) <= SERIAL_PRODUCTS {
            (0..n_blocks).for_each(|task_idx| task(0, task_idx));
        } else {
            pool.run_indexed(n_blocks, &task);
        }
    });
}

#[derive(Clone, Copy)]
struct Block {
    first_row: usize,
    first_col: usize,
    n_rows: usize,
    n_cols: usize,
}

struct BlockTask<'a> {
    alpha: f32,
    a: MatRef<'a>,
    b: MatRef<'a>,
    beta: f32,
    c: OutPtr,
    c_layout: Layout,
    block: Block,
    part: Part,
    panels: &'a mut [f32],
}

impl Kernel for BlockTask<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let Block { first_row, first_col, n_rows, n_cols } = self.block;
        if self.part == Part::Upper && first_col + n_cols <= first_row {
            return;
        }
        let k = self.a.n_cols();
        let panels = std::mem::take(&mut self.panels);
        assert_eq!(panels.len(), PANEL_VALUES, "not one thread's panels");
        assert!(n_rows.max(n_cols) <= BLOCK_SIDES[0], "block larger than the panels");
        let (a_panels, b_panels) = panels.split_at_mut(PANEL_VALUES / 2);
        let step = k_step(k, 1);
        for start in (0..k.max(1)).step_by(step) {
            let kc = step.min(k - start);
            let a = lines(self.a, first_row, n_rows, start, kc);
            let b = lines(self.b.transposed(), first_col, n_cols, start, kc);
            // SAFETY: `lines` checked the sources; each buffer holds `BLOCK_SIDES[0]` lines, a multiple of strips and
            // panels, of `KC` values.
            unsafe {
                pack_a_strips(simd, a, a_panels.as_mut_ptr());
                pack_b_strips(simd, b, b_panels.as_mut_ptr());
            }
            let packed = Packed { a: a_panels.as_ptr(), b: b_panels.as_ptr(), kc };
            let beta = if start == 0 { self.beta } else { 1.0 };
            for sub in (0..n_rows).step_by(SUB_ROWS) {
                let rows = sub..n_rows.min(sub + SUB_ROWS);
                for col in (0..n_cols).step_by(S::NV * S::LANES) {
                    for row in rows.clone().step_by(S::MR) {
                        // SAFETY: both panels are packed.
                        unsafe { self.tile(simd, packed, row, col, beta) };
                    }
                }
            }
        }
    }
}

/// One block's packed operands.
#[derive(Clone, Copy)]
struct Packed {
    a: *const f32,
    b: *const f32,
    kc: usize,
}

impl BlockTask<'_> {
    /// Computes the tile at `row` and `col` of the block.
    /// # Safety
    /// The panels are packed, and `row` and `col` start a strip and a panel of them.
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, simd: S, packed: Packed, row: usize, col: usize, beta: f32) {
        let Block { first_row, first_col, n_rows, n_cols } = self.block;
        let (c_row, c_col) = (first_row + row, first_col + col);
        let skip = c_row as isize - c_col as isize;
        let width = (S::NV * S::LANES).min(n_cols - col);
        if self.part == Part::Upper && width as isize <= skip {
            return;
        }
        let Packed { a, b, kc } = packed;
        // SAFETY: the caller vouches for the panels; the tile lies in `c`, in the block of this task alone.
        unsafe {
            let panels = TilePanels { a: a.add(row * kc), b: b.add(col * kc), kc };
            let out = TileOut {
                to: self.c.at(c_row * self.c_layout.row_stride + c_col),
                row_stride: self.c_layout.row_stride,
                n_rows: S::MR.min(n_rows - row),
                n_cols: width,
                alpha: self.alpha,
                beta,
                skip: if self.part == Part::Upper { skip } else { TileOut::WHOLE },
            };
            tile(simd, panels, out);
        }
    }
}

/// Rows `first..first + width` of `matrix` and their values `start..start + kc`, as the source of a panel.
#[inline(always)]
fn lines(matrix: MatRef<'_>, first: usize, width: usize, start: usize, kc: usize) -> PanelSource {
    let Layout { n_rows, n_cols, row_stride, col_stride } = matrix.layout;
    assert!(first + width <= n_rows && start + kc <= n_cols, "panel out of range");
    let at = if kc == 0 { 0 } else { first * row_stride + start * col_stride };
    PanelSource {
        from: matrix.data[at..].as_ptr(),
        line_stride: row_stride,
        value_stride: col_stride,
        width,
        kc,
    }
}
