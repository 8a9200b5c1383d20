//! The matrix microkernel: one tile of `c` from one packed panel of `a` and one of `b`.

use super::isa::Kernel;
use super::simd::{MAX_LANES, Simd};

/// The most rows of a tile on any instruction set.
pub(crate) const MAX_MR: usize = 8;

/// The most vectors in a row of a tile.
pub(crate) const MAX_NV: usize = 3;

/// Where a tile of `c` goes, and how.
#[derive(Clone, Copy)]
pub(crate) struct TileOut {
    /// First value of the tile.
    pub(crate) to: *mut f32,
    /// Distance of its rows; the values of a row follow each other.
    pub(crate) row_stride: usize,
    /// Rows, `1..=MR`.
    pub(crate) n_rows: usize,
    /// Columns, `1..=NV * LANES`.
    pub(crate) n_cols: usize,
    /// Factor of the product.
    pub(crate) alpha: f32,
    /// Factor of the old value; with 0 it is not read.
    pub(crate) beta: f32,
    /// In row `r` only the columns `r + skip` and beyond are written, so that a triangle stays a triangle.
    pub(crate) skip: isize,
}

impl TileOut {
    /// Every column of every row is written.
    pub(crate) const WHOLE: isize = isize::MIN / 2;
}

/// Packed operands of a tile.
#[derive(Clone, Copy)]
pub(crate) struct TilePanels {
    /// `[kc][MR]`.
    pub(crate) a: *const f32,
    /// `[kc][nv * LANES]`, where `nv` vectors hold `n_cols`.
    pub(crate) b: *const f32,
    /// Length of the sum.
    pub(crate) kc: usize,
}

/// Computes one tile: `c = alpha a b + beta c`.
/// # Safety
/// The panels can be read, the tile can be read and written, and `n_rows`, `n_cols` are within the tile's bounds.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd>(simd: S, panels: TilePanels, out: TileOut) {
    simd.call(Tile { panels, out });
}

/// A tile whose maker vouches for what [`tile`] demands; a kernel so that its many sizes are compiled once.
struct Tile {
    panels: TilePanels,
    out: TileOut,
}

impl Kernel for Tile {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { panels, out } = self;
        // SAFETY: only `tile` makes this value, and its caller vouches for panels and tile.
        unsafe {
            match out.n_cols.div_ceil(S::LANES) {
                1 => tile_rows::<S, 1>(simd, panels, out),
                2 => tile_rows::<S, 2>(simd, panels, out),
                3 if 2 < S::NV => tile_rows::<S, 3>(simd, panels, out),
                n => unreachable!("{n} vectors in a tile"),
            }
        }
    }
}

/// # Safety
/// As [`tile`], with `NV` vectors.
#[inline(always)]
unsafe fn tile_rows<S: Simd, const NV: usize>(simd: S, panels: TilePanels, out: TileOut) {
    // SAFETY: the caller vouches for panels and tile. Arms beyond `S::MR` are compiled away.
    unsafe {
        match out.n_rows {
            1 => tile_sized::<S, 1, NV>(simd, panels, out),
            2 => tile_sized::<S, 2, NV>(simd, panels, out),
            3 => tile_sized::<S, 3, NV>(simd, panels, out),
            4 => tile_sized::<S, 4, NV>(simd, panels, out),
            5 if 4 < S::MR => tile_sized::<S, 5, NV>(simd, panels, out),
            6 if 4 < S::MR => tile_sized::<S, 6, NV>(simd, panels, out),
            7 if 6 < S::MR => tile_sized::<S, 7, NV>(simd, panels, out),
            8 if 6 < S::MR => tile_sized::<S, 8, NV>(simd, panels, out),
            n => unreachable!("{n} rows in a tile"),
        }
    }
}

/// # Safety
/// As [`tile`], with `MR` rows and `NV` vectors.
#[inline(always)]
unsafe fn tile_sized<S: Simd, const MR: usize, const NV: usize>(simd: S, panels: TilePanels, out: TileOut) {
    let mut sums = [[simd.splat(0.0); NV]; MR];
    for row in 0..MR {
        // The tile is needed last, and comes from afar.
        simd.prefetch(out.to.wrapping_add(row * out.row_stride));
        simd.prefetch(out.to.wrapping_add(row * out.row_stride + NV * S::LANES - 1));
    }
    let (mut a, mut b) = (panels.a, panels.b);
    for _ in 0..panels.kc {
        // SAFETY: step `i < kc` reads `NV * LANES` values of `b` and `MR <= S::MR` values of `a`.
        unsafe {
            let mut row = [simd.splat(0.0); NV];
            for (v, value) in row.iter_mut().enumerate() {
                *value = simd.load(b.add(v * S::LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let factor = simd.splat(*a.add(r));
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum = simd.fma(factor, value, *sum);
                }
            }
            a = a.add(S::MR);
            b = b.add(NV * S::LANES);
        }
    }
    // SAFETY: the caller vouches for the tile.
    unsafe {
        if out.n_cols == NV * S::LANES && out.skip <= -(MAX_MR as isize) {
            store_whole(simd, sums, out);
        } else {
            store_part(simd, sums, out);
        }
    }
}

/// # Safety
/// `MR` rows of `NV * LANES` values can be read and written.
#[inline(always)]
unsafe fn store_whole<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    sums: [[S::F; NV]; MR],
    out: TileOut,
) {
    let (alpha, beta) = (simd.splat(out.alpha), simd.splat(out.beta));
    for (r, sums) in sums.into_iter().enumerate() {
        for (v, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller vouches for the tile.
            unsafe {
                let to = out.to.add(r * out.row_stride + v * S::LANES);
                let product = simd.mul(alpha, sum);
                let value =
                    if out.beta == 0.0 { product } else { simd.add(simd.mul(beta, simd.load(to)), product) };
                simd.store(to, value);
            }
        }
    }
}

/// # Safety
/// `MR` rows of `out.n_cols` values can be read and written.
#[inline(always)]
unsafe fn store_part<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    sums: [[S::F; NV]; MR],
    out: TileOut,
) {
    let mut stage = [0.0_f32; MAX_NV * MAX_LANES];
    for (r, sums) in sums.into_iter().enumerate() {
        for (v, sum) in sums.into_iter().enumerate() {
            // SAFETY: `NV * LANES` values fit into the stage.
            unsafe { simd.store(stage.as_mut_ptr().add(v * S::LANES), simd.mul(simd.splat(out.alpha), sum)) };
        }
        let first = usize::try_from(r as isize + out.skip).unwrap_or(0);
        for (col, product) in stage.iter().enumerate().take(out.n_cols).skip(first) {
            // SAFETY: the caller vouches for `n_cols` values in each row.
            unsafe {
                let to = out.to.add(r * out.row_stride + col);
                *to = if out.beta == 0.0 { *product } else { out.beta * *to + product };
            }
        }
    }
}
