//! Products of many tokens with interleaved panels of nibbles: the kernel of prefill.
//!
//! A panel is two vectors of weight rows wide. For each group of 32 columns it holds the nibbles as
//! `[8][2][LANES][4]` bytes, so that a lane multiplies four columns of one row, then the scales and the offsets of the
//! rows. Bytes of q8_0 are two nibbles: `16 high + low - 128`, each with a scale of its own.

use super::inputs::{STRIP, STRIP_VALUES};
use super::{ByteFormat, GROUP, with_byte_format};
use crate::WeightMatrix;
use crate::kernels::isa::{Isa, Kernel, Lanes};
use crate::kernels::out::OutPtr;
use crate::kernels::simd::{MAX_LANES, STEPS, Simd};
use std::mem::MaybeUninit;

/// Panels that a thread packs at a time.
pub(crate) const PANELS: usize = 4;

/// Vectors of rows in a panel.
const NV: usize = 2;

/// Strips that pass by one panel while both stay in the second cache level.
const STRIPS: usize = 16;

const _: () = assert!(GROUP / 4 == STEPS);

/// f32 values of one group of a panel, for each lane.
const GROUP_VALUES: usize = NV * (STEPS + 2);

/// f32 values of one thread's panels.
pub(crate) fn panel_values(isa: Isa, n_in: usize, planes: usize) -> usize {
    PANELS * n_in / GROUP * planes * GROUP_VALUES * isa.dispatch(Lanes)
}

/// All tokens by the weight rows `first..first + width`.
pub(crate) struct PanelsTask<'a> {
    pub(crate) weight: &'a WeightMatrix,
    pub(crate) first: usize,
    pub(crate) width: usize,
    pub(crate) n_tokens: usize,
    pub(crate) kc: usize,
    /// As `QuantizeStrips` laid them out.
    pub(crate) strips: OutPtr,
    pub(crate) panels: &'a mut [f32],
    pub(crate) out: OutPtr,
    pub(crate) accumulate: bool,
}

impl Kernel for PanelsTask<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        with_byte_format!(self.weight.dtype(), |format| self.format(simd, format));
    }
}

impl PanelsTask<'_> {
    #[inline(always)]
    fn format<S: Simd, F: ByteFormat>(&mut self, simd: S, _: F) {
        let nr = NV * S::LANES;
        let (n_out, n_in) = (self.weight.n_rows(), self.weight.n_cols());
        assert!(self.first + self.width <= n_out && self.width <= PANELS * nr, "rows out of range");
        let n_strips = self.n_tokens.div_ceil(STRIP);
        for start in (0..n_in).step_by(self.kc) {
            let n_groups = self.kc.min(n_in - start) / GROUP;
            let panel_len = n_groups * F::PLANES * GROUP_VALUES * S::LANES;
            assert!(PANELS * panel_len <= self.panels.len(), "panels are longer than their buffer");
            for (panel, col) in (0..self.width).step_by(nr).enumerate() {
                let to = &mut self.panels[panel * panel_len..][..panel_len];
                let rows = PanelRows {
                    weight: self.weight,
                    first: self.first + col,
                    width: nr.min(self.width - col),
                    first_group: start / GROUP,
                };
                rows.pack::<S, F>(simd, to);
            }
            let accumulate = self.accumulate || 0 < start;
            for block in (0..n_strips).step_by(STRIPS) {
                for (panel, col) in (0..self.width).step_by(nr).enumerate() {
                    for strip in block..n_strips.min(block + STRIPS) {
                        let at = (start / GROUP * n_strips + strip * n_groups) * STRIP_VALUES;
                        let token = strip * STRIP;
                        // SAFETY: strip and panel are packed as `QuantizeStrips` and the loop above laid them out;
                        // the tile lies in `[n_tokens, n_out]`, in columns of this task alone.
                        unsafe {
                            simd.call(Tile {
                                strip: self.strips.at(at),
                                panel: self.panels[panel * panel_len..].as_ptr(),
                                n_groups,
                                planes: F::PLANES,
                                out: self.out.at(token * n_out + self.first + col),
                                row_stride: n_out,
                                n_rows: STRIP.min(self.n_tokens - token),
                                n_cols: nr.min(self.width - col),
                                accumulate,
                            });
                        }
                    }
                }
            }
        }
    }
}

/// The weight rows of one panel and the groups of columns to pack.
struct PanelRows<'a> {
    weight: &'a WeightMatrix,
    first: usize,
    width: usize,
    first_group: usize,
}

impl PanelRows<'_> {
    #[inline(always)]
    fn pack<S: Simd, F: ByteFormat>(&self, simd: S, to: &mut [f32]) {
        let nr = NV * S::LANES;
        let mut rows = [&[][..]; NV * MAX_LANES];
        for (nth, row) in rows[..self.width].iter_mut().enumerate() {
            *row = &self.weight.row(self.first + nth)[self.first_group * F::GROUP_BYTES..];
        }
        for (group, to) in to.chunks_exact_mut(F::PLANES * GROUP_VALUES * S::LANES).enumerate() {
            for v in 0..NV {
                let first = v * S::LANES;
                let n_rows = self.width.saturating_sub(first).min(S::LANES);
                if n_rows < S::LANES {
                    // What no row fills: zeros make zeros.
                    for plane in to.chunks_exact_mut(GROUP_VALUES * S::LANES) {
                        plane.chunks_exact_mut(nr).for_each(|line| line[first..first + S::LANES].fill(0.0));
                    }
                }
                let bytes = group * F::GROUP_BYTES;
                let rows = &rows[first..first + n_rows];
                assert!(rows.iter().all(|row| bytes + F::GROUP_BYTES <= row.len()), "columns out of range");
                // SAFETY: the assertion covers the rows; `to` has room for one group of each plane.
                unsafe { pack_vector::<S, F>(simd, rows, bytes, &mut to[first..]) };
            }
        }
    }
}

/// Packs one group of up to `LANES` rows.
/// # Safety
/// Each row has a group at `bytes`; `to` starts at the first row's lane of a whole group of a panel.
#[inline(always)]
unsafe fn pack_vector<S: Simd, F: ByteFormat>(simd: S, rows: &[&[u8]], bytes: usize, to: &mut [f32]) {
    let nr = NV * S::LANES;
    let plane_values = GROUP_VALUES * S::LANES;
    // For each plane, `LANES` rows of 32 bytes.
    let mut stage = [MaybeUninit::<[f32; STEPS]>::uninit(); 2 * MAX_LANES];
    for (lane, row) in rows.iter().enumerate() {
        // SAFETY: the caller vouches for the group.
        let (planes, scale, offset) = unsafe {
            let at = row.as_ptr().add(bytes);
            let (scale, offset) = F::scales(simd, at);
            (F::planes(simd, F::load(simd, at)), simd.first(scale), simd.first(offset))
        };
        for (plane, q) in planes.into_iter().enumerate().take(F::PLANES) {
            // SAFETY: a row of the stage has room for 32 bytes.
            unsafe { simd.store_q(stage[plane * MAX_LANES + lane].as_mut_ptr().cast(), q) };
            let (scale, offset) = match (F::PLANES, plane) {
                (1, _) => (scale, F::OFFSET * offset),
                (_, 0) => (16.0 * scale, -128.0 * scale),
                _ => (scale, 0.0),
            };
            to[plane * plane_values + STEPS * nr + lane] = scale;
            to[plane * plane_values + (STEPS + 1) * nr + lane] = offset;
        }
    }
    for (stage, to) in stage.chunks(MAX_LANES).zip(to.chunks_mut(plane_values)).take(F::PLANES) {
        let stage = stage.as_ptr().cast::<f32>();
        if rows.len() == S::LANES && S::LANES <= STEPS {
            for step in (0..STEPS).step_by(S::LANES) {
                // SAFETY: the loop above filled `LANES` rows of `STEPS` values; `to` has `STEPS` lines at distance `nr`,
                // each with room for `LANES` values.
                unsafe { simd.transpose_block(stage.add(step), STEPS, to[step * nr..].as_mut_ptr(), nr) };
            }
        } else {
            for step in 0..STEPS {
                for lane in 0..rows.len() {
                    // SAFETY: the loop above filled row `lane`.
                    to[step * nr + lane] = unsafe { *stage.add(lane * STEPS + step) };
                }
            }
        }
    }
}

/// One strip by one panel.
struct Tile {
    strip: *const f32,
    panel: *const f32,
    n_groups: usize,
    planes: usize,
    out: *mut f32,
    row_stride: usize,
    n_rows: usize,
    n_cols: usize,
    accumulate: bool,
}

impl Kernel for Tile {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut sums = [[simd.splat(0.0); NV]; STRIP];
        let (mut strip, mut panel) = (self.strip, self.panel);
        // A number unknown to the compiler: it unrolls a known one, moves all loads to the front and spills them.
        let n_steps = std::hint::black_box(STEPS);
        for _ in 0..self.n_groups {
            for _ in 0..self.planes {
                // SAFETY: `PanelsTask` made this tile of a strip and a panel with `n_groups` groups.
                unsafe { add_group(simd, n_steps, strip, panel, &mut sums) };
                panel = panel.wrapping_add(GROUP_VALUES * S::LANES);
            }
            strip = strip.wrapping_add(STRIP_VALUES);
        }
        for (row, sums) in sums.into_iter().enumerate().take(self.n_rows) {
            // SAFETY: `PanelsTask` made this tile of `n_rows` rows of `n_cols` values of the output.
            unsafe { self.store(simd, self.out.add(row * self.row_stride), sums) };
        }
    }
}

impl Tile {
    /// # Safety
    /// `n_cols` values at `to` can be read and written.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, simd: S, to: *mut f32, sums: [S::F; NV]) {
        if self.n_cols == NV * S::LANES {
            for (v, sum) in sums.into_iter().enumerate() {
                // SAFETY: the caller vouches for all values.
                unsafe {
                    let to = to.add(v * S::LANES);
                    simd.store(to, if self.accumulate { simd.add(simd.load(to), sum) } else { sum });
                }
            }
            return;
        }
        let mut stage = [0.0_f32; NV * MAX_LANES];
        for (v, sum) in sums.into_iter().enumerate() {
            // SAFETY: the stage has room for `NV * LANES` values.
            unsafe { simd.store(stage.as_mut_ptr().add(v * S::LANES), sum) };
        }
        for (col, value) in stage.iter().enumerate().take(self.n_cols) {
            // SAFETY: the caller vouches for `n_cols` values.
            unsafe {
                let to = to.add(col);
                *to = if self.accumulate { *to + value } else { *value };
            }
        }
    }
}

/// Adds the products of one group: integers first, then one multiplication by both scales.
/// # Safety
/// `n_steps` is [`STEPS`]; one group of a strip and one of a panel can be read.
#[inline(always)]
unsafe fn add_group<S: Simd>(
    simd: S,
    n_steps: usize,
    strip: *const f32,
    panel: *const f32,
    sums: &mut [[S::F; NV]; STRIP],
) {
    // SAFETY: the caller vouches for the group, which begins with the bytes of all steps.
    let products: [[S::A; NV]; STRIP] = unsafe { simd.steps(n_steps, strip.cast(), panel.cast()) };
    // SAFETY: behind the nibbles lie `NV * LANES` scales and as many offsets, behind the bytes `STRIP` scales and sums.
    unsafe {
        let scales = panel.add(STEPS * NV * S::LANES);
        let input_scales = strip.add(STEPS * STRIP);
        for v in 0..NV {
            let scale = simd.load(scales.add(v * S::LANES));
            let offset = simd.load(scales.add((NV + v) * S::LANES));
            for token in 0..STRIP {
                let factor = simd.mul(scale, simd.splat(*input_scales.add(token)));
                let sum = simd.fma(offset, simd.splat(*input_scales.add(STRIP + token)), sums[token][v]);
                sums[token][v] = simd.fma(simd.to_f(simd.finish(products[token][v])), factor, sum);
            }
        }
    }
}
