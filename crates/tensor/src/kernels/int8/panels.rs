//! Products of many tokens with interleaved panels of bytes: the kernel of prefill.
//!
//! A panel is two vectors of weight rows wide. For each group of 32 columns it holds integers of 4 to 6 bits as
//! `[8][2][LANES][4]` bytes, so that a lane multiplies four columns of one row, then the scales and the offsets of the
//! rows. Bytes of q8_0 are two nibbles: `16 high + low - 128`, each with a scale of its own. Groups of 6 bits have a
//! scale for each half in these places, and all of them the offset -32.

use super::block_rows::{Blocks, Q4K, Q5K, Q6K};
use super::inputs::{STRIP, STRIP_VALUES};
use super::{ByteFormat, GROUP, with_byte_format};
use crate::kernels::isa::{Isa, Kernel, Lanes};
use crate::kernels::out::OutPtr;
use crate::kernels::simd::{MAX_LANES, STEPS, Simd};
use crate::{DType, WeightMatrix};
use std::mem::MaybeUninit;

/// Panels that a thread packs at a time.
pub(crate) const PANELS: usize = 4;

/// Vectors of rows in a panel.
const NV: usize = 2;

/// Strips that pass by one panel while both stay in the second cache level.
const STRIPS: usize = 8;

const _: () = assert!(GROUP / 4 == STEPS);

/// f32 values of one group of a panel, for each lane.
const GROUP_VALUES: usize = NV * (STEPS + 2);

/// Groups in the longest block.
pub(crate) const MAX_GROUPS: usize = 8;

/// The two numbers of each group of a block: scale and offset, or the scales of both halves.
pub(crate) type Scales = [[f32; 2]; MAX_GROUPS];

/// A dtype as panels read it.
pub(crate) trait PanelFormat: Copy {
    /// Bytes of a block.
    const BYTES: usize;
    /// Groups in a block.
    const GROUPS: usize;
    /// How many integers one weight takes, each with numbers of its own.
    const PLANES: usize;
    /// Bits of an integer: 4 or 5, with scale and offset, or 6, with a scale for each half.
    const BITS: usize;

    /// The numbers of each group of a block.
    /// # Safety
    /// The block can be read.
    unsafe fn scales<S: Simd>(simd: S, block: *const u8, to: &mut Scales);
    /// The integers of a group, plane by plane; the second is unused with one plane.
    /// # Safety
    /// The block can be read, and `group < GROUPS`.
    unsafe fn planes<S: Simd>(simd: S, block: *const u8, group: usize) -> [S::Q; 2];
}

impl<F: ByteFormat> PanelFormat for F {
    const BYTES: usize = F::GROUP_BYTES;
    const GROUPS: usize = 1;
    const PLANES: usize = F::PLANES;
    const BITS: usize = F::BITS;
    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, block: *const u8, to: &mut Scales) {
        // SAFETY: the caller vouches for the block.
        let (scale, offset) = unsafe { F::scales(simd, block) };
        to[0] = [simd.first(scale), F::OFFSET * simd.first(offset)];
    }
    #[inline(always)]
    unsafe fn planes<S: Simd>(simd: S, block: *const u8, _group: usize) -> [S::Q; 2] {
        // SAFETY: the caller vouches for the block.
        F::planes(simd, unsafe { F::load(simd, block) })
    }
}

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
        match self.weight.dtype() {
            DType::Q4_K => self.format(simd, Blocks(Q4K)),
            DType::Q5_K => self.format(simd, Blocks(Q5K)),
            DType::Q6_K => self.format(simd, Blocks(Q6K)),
            dtype => with_byte_format!(dtype, |format| self.format(simd, format)),
        }
    }
}

impl PanelsTask<'_> {
    #[inline(always)]
    fn format<S: Simd, F: PanelFormat>(&mut self, simd: S, _: F) {
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
                                bits: F::BITS,
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
    fn pack<S: Simd, F: PanelFormat>(&self, simd: S, to: &mut [f32]) {
        let nr = NV * S::LANES;
        let group_values = F::PLANES * GROUP_VALUES * S::LANES;
        let mut rows = [&[][..]; NV * MAX_LANES];
        for (nth, row) in rows[..self.width].iter_mut().enumerate() {
            *row = &self.weight.row(self.first + nth)[self.first_group / F::GROUPS * F::BYTES..];
        }
        for (block, to) in to.chunks_exact_mut(F::GROUPS * group_values).enumerate() {
            for v in 0..NV {
                let first = v * S::LANES;
                let n_rows = self.width.saturating_sub(first).min(S::LANES);
                if n_rows < S::LANES {
                    // What no row fills: zeros make zeros.
                    to.chunks_exact_mut(nr).for_each(|line| line[first..first + S::LANES].fill(0.0));
                }
                let bytes = block * F::BYTES;
                let rows = &rows[first..first + n_rows];
                assert!(rows.iter().all(|row| bytes + F::BYTES <= row.len()), "columns out of range");
                let blocks = rows.iter().map(|row| row[bytes..].as_ptr());
                let mut scales = [[[0.0; 2]; MAX_GROUPS]; MAX_LANES];
                // SAFETY: the assertion covers the rows.
                blocks.clone().zip(&mut scales).for_each(|(at, to)| unsafe { F::scales(simd, at, to) });
                for (group, to) in to.chunks_exact_mut(group_values).enumerate() {
                    let lanes = blocks.clone().zip(scales.iter().map(|scales| scales[group]));
                    // SAFETY: as above; `to` has room for one group of each plane.
                    unsafe { pack_vector::<S, F>(simd, lanes, group, &mut to[first..]) };
                }
            }
        }
    }
}

/// Packs one group of up to `LANES` rows, of each a block and the two numbers of the group.
/// # Safety
/// The blocks can be read; `to` starts at the first row's lane of a whole group of a panel.
#[inline(always)]
unsafe fn pack_vector<S: Simd, F: PanelFormat>(
    simd: S,
    lanes: impl ExactSizeIterator<Item = (*const u8, [f32; 2])>,
    group: usize,
    to: &mut [f32],
) {
    let nr = NV * S::LANES;
    let plane_values = GROUP_VALUES * S::LANES;
    // For each plane, `LANES` rows of 32 bytes.
    let mut stage = [MaybeUninit::<[f32; STEPS]>::uninit(); 2 * MAX_LANES];
    for plane in stage.chunks_mut(MAX_LANES) {
        plane[lanes.len()..].fill(MaybeUninit::new([0.0; STEPS]));
    }
    for (lane, (block, scales)) in lanes.enumerate() {
        // SAFETY: the caller vouches for the block.
        let planes = unsafe { F::planes(simd, block, group) };
        for (plane, q) in planes.into_iter().enumerate().take(F::PLANES) {
            // SAFETY: a row of the stage has room for 32 bytes.
            unsafe { simd.store_q(stage[plane * MAX_LANES + lane].as_mut_ptr().cast(), q) };
            let scales = match (F::PLANES, plane) {
                (1, _) => scales,
                (_, 0) => [16.0 * scales[0], -128.0 * scales[0]],
                _ => [scales[0], 0.0],
            };
            to[plane * plane_values + STEPS * nr + lane] = scales[0];
            to[plane * plane_values + (STEPS + 1) * nr + lane] = scales[1];
        }
    }
    for (stage, to) in stage.chunks(MAX_LANES).zip(to.chunks_mut(plane_values)).take(F::PLANES) {
        // SAFETY: the loops above filled `LANES` rows of each plane; `to` has `STEPS` lines at distance `nr`, each with room for
        // `LANES` values.
        unsafe { simd.transpose_steps(stage.as_ptr().cast(), to.as_mut_ptr(), nr) };
    }
}

/// One strip by one panel.
struct Tile {
    strip: *const f32,
    panel: *const f32,
    n_groups: usize,
    planes: usize,
    bits: usize,
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
        for first in (0..self.n_rows).step_by(S::TOKENS) {
            match S::TOKENS {
                8 => self.tokens::<S, 8>(simd, first),
                _ => self.tokens::<S, 4>(simd, first),
            }
        }
    }
}

impl Tile {
    /// The tokens of the strip from `first` on.
    #[inline(always)]
    fn tokens<S: Simd, const T: usize>(&self, simd: S, first: usize) {
        let sums = match self.bits {
            6 => self.sums::<S, T, true>(simd, first),
            _ => self.sums::<S, T, false>(simd, first),
        };
        for (row, sums) in (first..self.n_rows).zip(sums) {
            // SAFETY: `PanelsTask` made this tile of `n_rows` rows of `n_cols` values of the output.
            unsafe { self.store(simd, self.out.add(row * self.row_stride), sums) };
        }
    }

    #[inline(always)]
    fn sums<S: Simd, const T: usize, const HALVES: bool>(&self, simd: S, first: usize) -> [[S::F; NV]; T] {
        let mut sums = [[simd.splat(0.0); NV]; T];
        let (mut strip, mut panel) = (self.strip.wrapping_add(first), self.panel);
        let n_runs = STEPS / run_steps::<S>(if HALVES { 6 } else { self.bits });
        // A number unknown to the compiler: it unrolls a known one, moves all loads to the front and spills them.
        let n_steps = std::hint::black_box(STEPS / n_runs);
        let mut plane = 0;
        // One loop: out of an inner one over planes the compiler moves all that it reads of a strip, and spills it.
        for _ in 0..self.n_groups * self.planes {
            // SAFETY: `PanelsTask` made this tile of a strip and a panel with `n_groups` groups.
            unsafe { add_group::<S, T, HALVES>(simd, (n_runs, n_steps), strip, panel, &mut sums) };
            panel = panel.wrapping_add(GROUP_VALUES * S::LANES);
            plane += 1;
            if plane == self.planes {
                (plane, strip) = (0, strip.wrapping_add(STRIP_VALUES));
            }
        }
        sums
    }

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

/// Steps that share a scale and do not overflow: a power of two.
const fn run_steps<S: Simd>(bits: usize) -> usize {
    let mut n_steps = if bits == 6 { STEPS / 2 } else { STEPS };
    while 1 << 15 <= n_steps * S::PRODUCTS_IN_16_BITS * ((1 << bits) - 1) * 127 {
        n_steps /= 2;
    }
    n_steps
}

/// Adds the products of one group: integers first, then one multiplication by both scales.
/// # Safety
/// `n_steps` is as [`run_steps`] tells, and `n_runs` times so many make a group; one group of a panel can be read, and of a
/// strip the `T` tokens of which `strip` is the first.
#[inline(always)]
unsafe fn add_group<S: Simd, const T: usize, const HALVES: bool>(
    simd: S,
    (n_runs, n_steps): (usize, usize),
    strip: *const f32,
    panel: *const f32,
    sums: &mut [[S::F; NV]; T],
) {
    for run in 0..n_runs {
        let step = run * STEPS / n_runs;
        // Behind the bytes of a panel lie two lines of `NV * LANES` numbers, behind those of a strip three of `STRIP`.
        let half = if HALVES { step / (STEPS / 2) } else { 0 };
        let lines = panel.wrapping_add((STEPS + half) * NV * S::LANES);
        let inputs = strip.wrapping_add(STEPS * STRIP);
        // The offset -32 of six bits is part of the integers.
        let is_wide = S::PRODUCTS_IN_16_BITS == 0;
        let mut start = [simd.splat_i(0); T];
        if HALVES && step.is_multiple_of(STEPS / 2) {
            for (token, start) in start.iter_mut().enumerate() {
                // SAFETY: the caller vouches for the strip, whose third line has two sums of 16 bits for each token.
                let minus = unsafe { *inputs.add(2 * STRIP + token).cast::<i16>().add(half) };
                *start = simd.splat_i(32 * i32::from(minus));
            }
        }
        let begin = start.map(
            #[inline(always)]
            |start| if HALVES && is_wide { simd.begin(start) } else { simd.zero_a() },
        );
        // SAFETY: the caller vouches for the group, which begins with the bytes of all steps.
        let products: [[S::A; NV]; T] = unsafe {
            let quants = (strip.add(step * STRIP).cast(), STRIP);
            simd.steps(n_steps, quants, panel.add(step * NV * S::LANES).cast(), begin)
        };
        for v in 0..NV {
            // SAFETY: as told above.
            unsafe {
                let scale = simd.load(lines.add(v * S::LANES));
                for token in 0..T {
                    let factor = simd.mul(scale, simd.splat(*inputs.add(token)));
                    if !HALVES && step == 0 {
                        let offset = simd.load(lines.add((NV + v) * S::LANES));
                        let input = simd.splat(*inputs.add(STRIP + token));
                        sums[token][v] = simd.fma(offset, input, sums[token][v]);
                    }
                    let mut product = simd.finish(products[token][v]);
                    if HALVES && !is_wide {
                        product = simd.add_i(product, start[token]);
                    }
                    sums[token][v] = simd.fma(simd.to_f(product), factor, sums[token][v]);
                }
            }
        }
    }
}
