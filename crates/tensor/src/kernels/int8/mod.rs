//! Products with activations rounded to bytes: [`Precision::Int8`](super::Precision::Int8).
//!
//! Each group of 32 activations becomes signed bytes and one scale, and each group of weights keeps its own integers, so
//! the sums of products are exact integers that are scaled once per group. The only error beyond f32 rounding is that of
//! the activations: for each group at most half a step, so
//! `|error| <= sum over groups of max|x| / 254 * sum |w|` (tested).
//!
//! One to [`ROW_TOKENS`] tokens read the weight rows as they are stored ([`rows`], [`block_rows`]); more go through
//! interleaved panels ([`panels`]). Sums are never split between threads.

mod block_rows;
mod inputs;
mod panels;
mod rows;

use super::buffer::sized;
use super::isa::Isa;
use super::matmul::{MatmulScratch, Products, Target, run_rows};
use super::out::OutPtr;
use super::pool::ThreadPool;
use super::simd::Simd;
use crate::DType;
use block_rows::{BlockRows, has_blocks};
use inputs::{QuantizeRows, QuantizeStrips, QuantizedRows, STRIP, STRIP_VALUES};
use panels::{PANELS, PanelsTask, panel_values};
use rows::RowBytes;

/// The most tokens of one pass over the weight rows.
pub(crate) const ROW_TOKENS: usize = 8;

/// Tokens whose packed bytes are in memory at a time.
const PACKED_TOKENS: usize = 512;

/// Activations that one set of panels covers.
const KC: usize = 2048;

/// Values in a group: those that share a scale.
pub(crate) const GROUP: usize = 32;

/// Whether rows of `dtype` are multiplied as integers.
pub(crate) const fn has_bytes(dtype: DType) -> bool {
    has_blocks(dtype) || matches!(dtype, DType::Q8_0 | DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1)
}

/// A dtype whose groups of 32 weights are integers with a scale: `scale * q + OFFSET * offset`, where `offset` is
/// the scale itself or a second stored number.
pub(crate) trait ByteFormat: Copy + Send + Sync + 'static {
    /// Bytes of a group.
    const GROUP_BYTES: usize;
    /// Factor of the offset; 0 when there is none.
    const OFFSET: f32;
    /// How many integers of [`Self::BITS`] one integer takes in panels.
    const PLANES: usize;
    /// Bits of an integer in panels.
    const BITS: usize;

    /// Scale and offset of a group, in all lanes.
    /// # Safety
    /// The group can be read.
    unsafe fn scales<S: Simd>(simd: S, group: *const u8) -> (S::F, S::F);
    /// The scales of `LANES / 4` groups, each in the four lanes of its group, and likewise the offsets where they are stored.
    /// # Safety
    /// The groups can be read.
    unsafe fn step_scales<S: Simd>(simd: S, groups: *const u8) -> (S::F, S::F);
    /// The integers of `LANES / 4` groups, first halves first.
    /// # Safety
    /// The groups can be read.
    unsafe fn load_step<S: Simd>(simd: S, groups: *const u8) -> [S::P; 2];
    /// For each group the sum of its products with activations, without the offsets that are stored; `minus` holds minus the
    /// sum of its activations.
    fn dot_step<S: Simd>(simd: S, q: [S::P; 2], x: [S::P; 2], minus: S::I) -> S::I;
    /// The integers of a group.
    /// # Safety
    /// The group can be read.
    unsafe fn load<S: Simd>(simd: S, group: *const u8) -> S::Q;
    /// The integers in panels, plane by plane; the second is unused with one plane.
    fn planes<S: Simd>(simd: S, q: S::Q) -> [S::Q; 2];
}

macro_rules! unsigned_format {
    (
        $name:ident, $bytes:literal, $bits:literal, $offset:literal,
        |$simd:ident, $group:ident| $scales:expr, $load:expr, $load_step:expr
    ) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;
        impl ByteFormat for $name {
            const GROUP_BYTES: usize = $bytes;
            const OFFSET: f32 = $offset;
            const PLANES: usize = 1;
            const BITS: usize = $bits;
            #[inline(always)]
            unsafe fn scales<S: Simd>($simd: S, $group: *const u8) -> (S::F, S::F) {
                // SAFETY: the caller vouches for the group.
                unsafe { $scales }
            }
            #[inline(always)]
            unsafe fn step_scales<S: Simd>(simd: S, groups: *const u8) -> (S::F, S::F) {
                // SAFETY: the caller vouches for the groups.
                unsafe { simd.load_f16s::<$bytes, { $offset == 1.0 }>(groups) }
            }
            #[inline(always)]
            unsafe fn load_step<S: Simd>($simd: S, $group: *const u8) -> [S::P; 2] {
                // SAFETY: the caller vouches for the groups.
                unsafe { $load_step }
            }
            #[inline(always)]
            fn dot_step<S: Simd>(simd: S, q: [S::P; 2], x: [S::P; 2], minus: S::I) -> S::I {
                // An offset that is a whole number of scales joins the integers: 8 or 16 is half of their range.
                let sums = match ($offset == 1.0, $bits) {
                    (true, _) => simd.splat_i(0),
                    (false, 4) => simd.shl_i::<3>(minus),
                    (false, _) => simd.shl_i::<4>(minus),
                };
                simd.dot_bits(q, x, sums)
            }
            #[inline(always)]
            unsafe fn load<S: Simd>($simd: S, $group: *const u8) -> S::Q {
                // SAFETY: the caller vouches for the group.
                unsafe { $load }
            }
            #[inline(always)]
            fn planes<S: Simd>(_simd: S, q: S::Q) -> [S::Q; 2] {
                [q, q]
            }
        }
    };
}

unsigned_format!(
    Q4_0,
    18,
    4,
    -8.0,
    |simd, group| [simd.splat_f16(group); 2].into(),
    simd.load_q4(group.add(2)),
    simd.load_q4s::<18>(group.add(2))
);
unsigned_format!(
    Q4_1,
    20,
    4,
    1.0,
    |simd, group| simd.splat_f16_pair(group),
    simd.load_q4(group.add(4)),
    simd.load_q4s::<20>(group.add(4))
);
// Four bytes of fifth bits are followed by 16 bytes of nibbles.
unsigned_format!(
    Q5_0,
    22,
    5,
    -16.0,
    |simd, group| [simd.splat_f16(group); 2].into(),
    simd.load_q5(group.add(6), group.add(2)),
    simd.load_q5s::<22>(group.add(6), group.add(2))
);
unsigned_format!(
    Q5_1,
    24,
    5,
    1.0,
    |simd, group| simd.splat_f16_pair(group),
    simd.load_q5(group.add(8), group.add(4)),
    simd.load_q5s::<24>(group.add(8), group.add(4))
);

#[derive(Clone, Copy)]
pub(crate) struct Q8_0;

impl ByteFormat for Q8_0 {
    const GROUP_BYTES: usize = 34;
    const OFFSET: f32 = 0.0;
    const PLANES: usize = 2;
    const BITS: usize = 4;
    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, group: *const u8) -> (S::F, S::F) {
        // SAFETY: the caller vouches for the group.
        unsafe { [simd.splat_f16(group); 2].into() }
    }
    #[inline(always)]
    unsafe fn step_scales<S: Simd>(simd: S, groups: *const u8) -> (S::F, S::F) {
        // SAFETY: the caller vouches for the groups.
        unsafe { simd.load_f16s::<34, false>(groups) }
    }
    #[inline(always)]
    unsafe fn load_step<S: Simd>(simd: S, groups: *const u8) -> [S::P; 2] {
        // SAFETY: the caller vouches for the groups.
        unsafe { simd.load_q8s::<34>(groups.add(2)) }
    }
    #[inline(always)]
    fn dot_step<S: Simd>(simd: S, q: [S::P; 2], x: [S::P; 2], minus: S::I) -> S::I {
        simd.dot_q8s(q, x, minus)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, group: *const u8) -> S::Q {
        // SAFETY: the caller vouches for the group.
        unsafe { simd.load_q8(group.add(2)) }
    }
    #[inline(always)]
    fn planes<S: Simd>(simd: S, q: S::Q) -> [S::Q; 2] {
        simd.split_q8(q)
    }
}

/// Calls `$body` with `$format` bound to the byte format of `$dtype`.
macro_rules! with_byte_format {
    ($dtype:expr, |$format:ident| $body:expr) => {
        match $dtype {
            $crate::DType::Q8_0 => {
                let $format = $crate::kernels::int8::Q8_0;
                $body
            }
            $crate::DType::Q4_0 => {
                let $format = $crate::kernels::int8::Q4_0;
                $body
            }
            $crate::DType::Q4_1 => {
                let $format = $crate::kernels::int8::Q4_1;
                $body
            }
            $crate::DType::Q5_0 => {
                let $format = $crate::kernels::int8::Q5_0;
                $body
            }
            $crate::DType::Q5_1 => {
                let $format = $crate::kernels::int8::Q5_1;
                $body
            }
            dtype => unreachable!("{dtype} rows are not integers"),
        }
    };
}
pub(crate) use with_byte_format;

/// f32 values of the buffers: packed activations, and each thread's panels.
pub(crate) fn scratch_values(isa: Isa, n_threads: usize, n_tokens: usize, n_in: usize) -> usize {
    let rows = QuantizedRows::n_values(n_tokens.min(ROW_TOKENS), n_in);
    let strips = n_tokens.min(PACKED_TOKENS).div_ceil(STRIP) * (n_in / GROUP) * STRIP_VALUES;
    // Two planes are the most of any dtype.
    let panels = n_threads * panel_values(isa, n_in.min(KC), 2);
    if n_tokens <= ROW_TOKENS { rows } else { strips.max(rows) + panels }
}

/// The products of all tokens, by the way that suits their number.
pub(crate) fn run(products: Products<'_>, isa: Isa, pool: &ThreadPool, scratch: &mut MatmulScratch) {
    if products.n_tokens() <= ROW_TOKENS {
        by_rows(products, isa, pool, scratch);
    } else {
        products.passes(PACKED_TOKENS).for_each(|pass| by_panels(pass, isa, pool, scratch));
    }
}

fn by_rows(products: Products<'_>, isa: Isa, pool: &ThreadPool, scratch: &mut MatmulScratch) {
    let Products { inputs, n_in, targets, accumulate } = products;
    let buffer = sized(&mut scratch.packed_inputs, QuantizedRows::n_values(products.n_tokens(), n_in));
    let inputs = isa.dispatch(QuantizeRows { inputs, n_in, buffer });
    run_rows(pool, &targets, |Target { weight, out }, rows| {
        if has_blocks(weight.dtype()) {
            isa.dispatch_bytes(BlockRows { weight, rows, inputs, out, accumulate });
        } else {
            isa.dispatch_bytes(RowBytes { weight, rows, inputs, out, accumulate });
        }
    });
}

fn by_panels(products: Products<'_>, isa: Isa, pool: &ThreadPool, scratch: &mut MatmulScratch) {
    let Products { inputs, n_in, targets, accumulate } = products;
    let n_tokens = products.n_tokens();
    let n_strips = n_tokens.div_ceil(STRIP);
    let strips = OutPtr::new(sized(&mut scratch.packed_inputs, n_strips * (n_in / GROUP) * STRIP_VALUES));
    let strips_per_task = n_strips.div_ceil(4 * pool.n_threads());
    pool.run(n_strips.div_ceil(strips_per_task), &|task_idx| {
        let range = task_idx * strips_per_task..n_strips.min((task_idx + 1) * strips_per_task);
        isa.dispatch(QuantizeStrips { inputs, n_in, kc: KC, range, n_strips, strips });
    });

    let has_two_planes = targets.iter().any(|target| target.weight.dtype() == DType::Q8_0);
    let panel_values = panel_values(isa, n_in.min(KC), if has_two_planes { Q8_0::PLANES } else { 1 });
    let panels = OutPtr::new(sized(&mut scratch.panels, pool.n_threads() * panel_values));
    let nr = 2 * isa.dispatch(super::isa::Lanes);
    let chunk = targets.n_tasks(nr).div_ceil(4 * pool.n_threads()).clamp(1, PANELS) * nr;
    pool.run_indexed(targets.n_tasks(chunk), &|worker_idx, task_idx| {
        let (Target { weight, out }, rows) = targets.task(task_idx, chunk);
        let (first, width) = (rows.start, rows.len());
        // SAFETY: the buffer has `panel_values` for each thread, and no other task has this worker index now.
        let panels = unsafe { panels.slice(worker_idx * panel_values, panel_values) };
        let kc = KC;
        isa.dispatch_bytes(PanelsTask {
            weight,
            first,
            width,
            n_tokens,
            kc,
            strips,
            panels,
            out,
            accumulate,
        });
    });
}
