//! Copies of operands in the order in which the microkernel reads them.

use super::format::{RowFormat, STAGE, decode_row, with_format};
use super::simd::{MAX_LANES, Simd};
use crate::WeightMatrix;
use std::mem::MaybeUninit;

/// The greatest length of the sum that one set of panels covers: one panel of each side stays in the first cache level.
pub(crate) const KC: usize = 320;

/// Cuts a sum of length `k` into equal steps of at most [`KC`], all but the last a multiple of `unit`.
pub(crate) fn k_step(k: usize, unit: usize) -> usize {
    debug_assert!(unit <= STAGE && STAGE.is_multiple_of(unit), "blocks of {unit} values");
    let greatest = KC / unit * unit;
    k.div_ceil(k.div_ceil(greatest).max(1)).next_multiple_of(unit).max(unit)
}

/// A panel to be packed: `width` lines (rows of `a`, columns of `b`) of `kc` values each.
#[derive(Clone, Copy)]
pub(crate) struct PanelSource {
    /// First value.
    pub(crate) from: *const f32,
    /// Distance of the lines.
    pub(crate) line_stride: usize,
    /// Distance of values in a line. This or the other is 1.
    pub(crate) value_stride: usize,
    /// Lines that exist; the rest up to the padded width become zeros.
    pub(crate) width: usize,
    /// Values in each line.
    pub(crate) kc: usize,
}

/// Packs the `a` side: `[kc][MR]`.
/// # Safety
/// The source can be read, `kc * MR` values can be written, and `width <= MR`.
#[inline(always)]
pub(crate) unsafe fn pack_a<S: Simd>(simd: S, source: PanelSource, to: *mut f32) {
    // SAFETY: the caller vouches for source and panel; all indices stay below `width`, `MR` and `kc`.
    unsafe {
        if source.value_stride == 1 && source.width == S::MR {
            let whole = source.kc / S::LANES * S::LANES;
            for at in (0..whole).step_by(S::LANES) {
                simd.interleave_rows(source.from.add(at), source.line_stride, to.add(at * S::MR));
            }
            for at in whole..source.kc {
                for line in 0..S::MR {
                    *to.add(at * S::MR + line) = *source.from.add(line * source.line_stride + at);
                }
            }
        } else if source.line_stride == 1 && source.width == S::MR {
            for at in 0..source.kc {
                let from = source.from.add(at * source.value_stride);
                std::ptr::copy_nonoverlapping(from, to.add(at * S::MR), S::MR);
            }
        } else {
            pack_any(source, S::MR, to);
        }
    }
}

/// Packs the `b` side: `[kc][padded]`, where `padded` is `width` in whole vectors.
/// # Safety
/// The source can be read, `kc * padded` values can be written, and `width <= NV * LANES`.
#[inline(always)]
pub(crate) unsafe fn pack_b<S: Simd>(simd: S, source: PanelSource, to: *mut f32) {
    let padded = source.width.div_ceil(S::LANES) * S::LANES;
    // SAFETY: the caller vouches for source and panel; all indices stay below `width`, `padded` and `kc`.
    unsafe {
        if source.line_stride == 1 && source.width == padded {
            for at in 0..source.kc {
                let from = source.from.add(at * source.value_stride);
                for line in (0..padded).step_by(S::LANES) {
                    simd.store(to.add(at * padded + line), simd.load(from.add(line)));
                }
            }
        } else if source.value_stride == 1 {
            let whole = source.kc / S::LANES * S::LANES;
            for line in (0..padded).step_by(S::LANES) {
                let lines = PanelSource {
                    from: source.from.add(line * source.line_stride),
                    width: (source.width - line).min(S::LANES),
                    ..source
                };
                let to = to.add(line);
                if lines.width < S::LANES {
                    pack_lines(lines, 0, S::LANES, to, padded);
                    continue;
                }
                for at in (0..whole).step_by(S::LANES) {
                    simd.transpose_block(lines.from.add(at), lines.line_stride, to.add(at * padded), padded);
                }
                pack_lines(lines, whole, S::LANES, to, padded);
            }
        } else {
            pack_any(source, padded, to);
        }
    }
}

/// Strips that are packed side by side when a step of the sum lies in one row of the source, so that whole cache lines
/// of it are used while they are there.
const SIDE_BY_SIDE: usize = 8;

/// Packs all lines of `source` for the `a` side: strip after strip, `[kc][MR]` each.
/// # Safety
/// As [`pack_a`], for `width` in whole strips.
#[inline(always)]
pub(crate) unsafe fn pack_a_strips<S: Simd>(simd: S, source: PanelSource, to: *mut f32) {
    // SAFETY: the caller vouches for source and strips.
    unsafe {
        let done = copy_strips(source, S::MR, to);
        for line in (done..source.width).step_by(S::MR) {
            pack_a(simd, strip(source, line, S::MR), to.add(line * source.kc));
        }
    }
}

/// Packs all lines of `source` for the `b` side: panel after panel, `[kc][NV * LANES]` each, the last perhaps narrower.
/// # Safety
/// As [`pack_b`], for `width` in whole vectors.
#[inline(always)]
pub(crate) unsafe fn pack_b_strips<S: Simd>(simd: S, source: PanelSource, to: *mut f32) {
    let nr = S::NV * S::LANES;
    // SAFETY: the caller vouches for source and panels.
    unsafe {
        let done = copy_strips(source, nr, to);
        for line in (done..source.width).step_by(nr) {
            pack_b(simd, strip(source, line, nr), to.add(line * source.kc));
        }
    }
}

/// The lines from `line` on, at most `width`.
/// # Safety
/// The source has `line`.
#[inline(always)]
unsafe fn strip(source: PanelSource, line: usize, width: usize) -> PanelSource {
    // SAFETY: the caller vouches for the line.
    let from = unsafe { source.from.add(line * source.line_stride) };
    PanelSource { from, width: width.min(source.width - line), ..source }
}

/// Copies strips of `width` lines while whole groups of them are left and lines lie side by side; returns the lines done.
/// # Safety
/// The source can be read, and the strips written.
#[inline(always)]
unsafe fn copy_strips(source: PanelSource, width: usize, to: *mut f32) -> usize {
    let group = SIDE_BY_SIDE * width;
    if source.line_stride != 1 {
        return 0;
    }
    let done = source.width / group * group;
    for line in (0..done).step_by(group) {
        for at in 0..source.kc {
            for nth in 0..SIDE_BY_SIDE {
                let line = line + nth * width;
                // SAFETY: `line + width` is within the source, and strip `line / width` has `kc * width` values.
                unsafe {
                    let from = source.from.add(line + at * source.value_stride);
                    std::ptr::copy_nonoverlapping(from, to.add(line * source.kc + at * width), width);
                }
            }
        }
    }
    done
}

/// # Safety
/// As [`pack_b`].
#[inline(always)]
unsafe fn pack_any(source: PanelSource, padded: usize, to: *mut f32) {
    // SAFETY: the caller vouches for source and panel.
    unsafe { pack_lines(source, 0, padded, to, padded) }
}

/// Packs the values `start..kc` of `padded` lines into a panel with `stride` values a step.
/// # Safety
/// The lines can be read and their places in the panel written.
#[inline(always)]
unsafe fn pack_lines(source: PanelSource, start: usize, padded: usize, to: *mut f32, stride: usize) {
    for at in start..source.kc {
        for line in 0..padded {
            // SAFETY: the caller vouches for both sides.
            unsafe {
                *to.add(at * stride + line) = if line < source.width {
                    *source.from.add(line * source.line_stride + at * source.value_stride)
                } else {
                    0.0
                };
            }
        }
    }
}

/// Weight rows `first..first + width` and their columns `start..start + kc`, packed for the `b` side.
#[derive(Clone, Copy)]
pub(crate) struct WeightPanel<'a> {
    pub(crate) weight: &'a WeightMatrix,
    pub(crate) first: usize,
    pub(crate) width: usize,
    pub(crate) start: usize,
    pub(crate) kc: usize,
}

/// Decodes and packs a panel of weights: `[kc][padded]`.
/// # Safety
/// `kc * padded` values can be written; `start` is a multiple of the block length, and `kc <= KC`.
#[inline(always)]
pub(crate) unsafe fn pack_weights<S: Simd>(simd: S, panel: WeightPanel<'_>, to: *mut f32) {
    // SAFETY: the caller vouches for the panel.
    unsafe {
        with_format!(panel.weight.dtype(), |format| pack_format(simd, format, panel, to), else
            pack_staged(simd, panel, to));
    }
}

/// Distance of decoded rows on the stage: more than [`KC`], so that rows do not compete for the same cache sets.
const STAGE_STRIDE: usize = KC + 16;

/// # Safety
/// As [`pack_weights`].
#[inline(always)]
unsafe fn pack_format<S: Simd, F: RowFormat>(simd: S, format: F, panel: WeightPanel<'_>, to: *mut f32) {
    let mut stage = [MaybeUninit::<f32>::uninit(); MAX_LANES * STAGE_STRIDE];
    let stage = stage.as_mut_ptr().cast::<f32>();
    let start_bytes = panel.start / F::GROUP * F::GROUP_BYTES;
    let padded = panel.width.div_ceil(S::LANES) * S::LANES;
    for line in (0..padded).step_by(S::LANES) {
        let n_lines = (panel.width - line).min(S::LANES);
        for row in 0..n_lines {
            let bytes = &panel.weight.row(panel.first + line + row)[start_bytes..];
            assert!(panel.kc.div_ceil(F::GROUP) * F::GROUP_BYTES <= bytes.len(), "columns out of range");
            // SAFETY: the assertion and `kc <= KC` cover both sides.
            unsafe {
                decode_row(simd, format, bytes.as_ptr(), panel.kc, stage.add(row * STAGE_STRIDE));
            }
        }
        // SAFETY: the stage holds `n_lines` rows of `kc` values; the caller vouches for the panel.
        unsafe { spread(simd, stage, n_lines, panel.kc, to.add(line), padded) };
    }
}

/// # Safety
/// As [`pack_weights`].
#[inline(always)]
unsafe fn pack_staged<S: Simd>(simd: S, panel: WeightPanel<'_>, to: *mut f32) {
    let dtype = panel.weight.dtype();
    let mut stage = [0.0_f32; MAX_LANES * STAGE_STRIDE];
    let start_bytes = panel.start / dtype.block_len() * dtype.block_bytes();
    let n_bytes = panel.kc / dtype.block_len() * dtype.block_bytes();
    let padded = panel.width.div_ceil(S::LANES) * S::LANES;
    for line in (0..padded).step_by(S::LANES) {
        let n_lines = (panel.width - line).min(S::LANES);
        for row in 0..n_lines {
            let bytes = &panel.weight.row(panel.first + line + row)[start_bytes..][..n_bytes];
            crate::blocks::dequantize(dtype, bytes, &mut stage[row * STAGE_STRIDE..][..panel.kc]);
        }
        // SAFETY: the stage holds `n_lines` rows of `kc` values; the caller vouches for the panel.
        unsafe { spread(simd, stage.as_ptr(), n_lines, panel.kc, to.add(line), padded) };
    }
}

/// Transposes up to `LANES` rows, staged [`STAGE_STRIDE`] values apart, into the panel at `to`.
/// # Safety
/// The rows can be read, and the places in the panel can be written.
#[inline(always)]
unsafe fn spread<S: Simd>(
    simd: S,
    stage: *const f32,
    n_lines: usize,
    kc: usize,
    to: *mut f32,
    padded: usize,
) {
    let lines = PanelSource { from: stage, line_stride: STAGE_STRIDE, value_stride: 1, width: n_lines, kc };
    let whole = if n_lines == S::LANES { kc / S::LANES * S::LANES } else { 0 };
    for at in (0..whole).step_by(S::LANES) {
        // SAFETY: the stage holds `LANES` rows of `kc` values; the caller vouches for the panel.
        unsafe { simd.transpose_block(stage.add(at), STAGE_STRIDE, to.add(at * padded), padded) };
    }
    // SAFETY: as above, for the values that are left.
    unsafe { pack_lines(lines, whole, S::LANES, to, padded) };
}
