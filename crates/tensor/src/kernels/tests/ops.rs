//! Every operation of the vector vocabulary against plain arithmetic, on every instruction set, counted by name.

use super::{assert_close, bits, noise};
use crate::kernels::int8::{ByteFormat, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use crate::kernels::isa::{Isa, Kernel, Lanes};
use crate::kernels::simd::{Bits, MAX_LANES, STEPS, Simd};
use half::{bf16, f16};
use std::collections::BTreeSet;

/// Runs all operations and notes the name of each.
struct Ops<'a> {
    ran: &'a mut BTreeSet<&'static str>,
}

impl Kernel for Ops<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.ran.extend(["call"]);
        assert_eq!(simd.call(Lanes), S::LANES);
        floats(simd, self.ran);
        integers(simd, self.ran);
        memory(simd, self.ran);
        bytes(simd, self.ran);
        products(simd, self.ran);
    }
}

/// The lanes of f32 values.
#[inline(always)]
fn lanes<S: Simd>(simd: S, value: S::F) -> Vec<f32> {
    let mut lanes = [0.0_f32; MAX_LANES];
    // SAFETY: the array has room for the lanes of any instruction set.
    unsafe { simd.store(lanes.as_mut_ptr(), value) };
    lanes[..S::LANES].to_vec()
}

/// The lanes of i32 values.
#[inline(always)]
fn integers_of<S: Simd>(simd: S, value: S::I) -> Vec<i32> {
    lanes(simd, simd.bits_to_f(value)).iter().map(|lane| lane.to_bits().cast_signed()).collect()
}

/// Notes `$name` and compares: the left side is of the set, the right side a plain closure over the lane.
macro_rules! same {
    ($simd:ident, $ran:ident, $name:literal, $got:expr, |$at:ident| $want:expr) => {{
        $ran.insert($name);
        let (got, want) = ($got, (0..S::LANES).map(|$at| $want).collect::<Vec<_>>());
        assert_eq!(got, want, $name);
    }};
}

/// The value, every NaN as the same.
fn plain(value: f32) -> f32 {
    if value.is_nan() { f32::NAN } else { value }
}

/// As `same`, for f32 lanes to the last bit; any NaN is like any other.
macro_rules! same_f {
    ($simd:ident, $ran:ident, $name:literal, $got:expr, |$at:ident| $want:expr) => {{
        let got: Vec<f32> = lanes($simd, $got).into_iter().map(plain).collect();
        same!($simd, $ran, $name, bits(&got), |$at| plain($want).to_bits())
    }};
}

#[inline(always)]
fn floats<S: Simd>(simd: S, ran: &mut BTreeSet<&'static str>) {
    let (mut x, mut y, z) = (noise(1, MAX_LANES), noise(2, MAX_LANES), noise(3, MAX_LANES));
    let splat = simd.splat(2.5);
    same_f!(simd, ran, "splat", splat, |_at| 2.5);
    // SAFETY: all arrays have room for the lanes of any instruction set; `store` is in every comparison.
    let load = |from: &[f32]| unsafe { simd.load(from.as_ptr()) };
    ran.insert("store");
    same_f!(simd, ran, "load", load(&x), |at| x[at]);
    same_f!(simd, ran, "add", simd.add(load(&x), load(&y)), |at| x[at] + y[at]);
    same_f!(simd, ran, "sub", simd.sub(load(&x), load(&y)), |at| x[at] - y[at]);
    same_f!(simd, ran, "mul", simd.mul(load(&x), load(&y)), |at| x[at] * y[at]);
    same_f!(simd, ran, "div", simd.div(load(&x), load(&y)), |at| x[at] / y[at]);
    ran.insert("fma");
    let fused: Vec<f32> = (0..S::LANES).map(|at| x[at].mul_add(y[at], z[at])).collect();
    assert_close(&lanes(simd, simd.fma(load(&x), load(&y), load(&z))), &fused, 1e-6, 1.0, "fma");
    ran.insert("sum");
    assert_close(&[simd.sum(load(&x))], &[x[..S::LANES].iter().sum()], 1e-6, MAX_LANES as f32, "sum");
    let most = |values: &[f32]| values[..S::LANES].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for last in 0..S::LANES {
        x[last] += 2.0;
        assert_eq!(simd.max_lane(load(&x)), most(&x), "max_lane {last}");
        x[last] -= 2.0;
    }
    ran.extend(["max_lane", "first"]);
    assert_eq!(simd.first(load(&x)), x[0]);
    same_f!(simd, ran, "swap_pairs", simd.swap_pairs(load(&x)), |at| x[at ^ 1]);
    same_f!(simd, ran, "even_twice", simd.even_twice(load(&x)), |at| x[at & !1]);
    (x[1], y[2]) = (f32::NAN, f32::NAN);
    same_f!(simd, ran, "max", simd.max(load(&x), load(&y)), |at| if x[at] > y[at] { x[at] } else { y[at] });
    same_f!(simd, ran, "min", simd.min(load(&x), load(&y)), |at| if x[at] < y[at] { x[at] } else { y[at] });
    let bound = simd.splat(0.25);
    same_f!(simd, ran, "zero_if_at_most", simd.zero_if_at_most(load(&x), bound, load(&z)), |at| {
        if x[at] <= 0.25 { 0.0 } else { z[at] }
    });
}

#[inline(always)]
fn integers<S: Simd>(simd: S, ran: &mut BTreeSet<&'static str>) {
    let data: Vec<i32> = noise(4, MAX_LANES).iter().map(|value| (value * 2e9) as i32).collect();
    // SAFETY: the array has room for the lanes of any instruction set.
    let a = unsafe { simd.load_i(data.as_ptr().cast()) };
    same!(simd, ran, "load_i", integers_of(simd, a), |at| data[at]);
    ran.insert("bits_to_f");
    same!(simd, ran, "splat_i", integers_of(simd, simd.splat_i(-7)), |_at| -7);
    same!(simd, ran, "and_i", integers_of(simd, simd.and_i(a, simd.splat_i(0x0FF0))), |at| data[at] & 0x0FF0);
    same!(simd, ran, "shr_i", integers_of(simd, simd.shr_i::<5>(a)), |at| (data[at] as u32 >> 5) as i32);
    same!(simd, ran, "shl_i", integers_of(simd, simd.shl_i::<23>(a)), |at| data[at] << 23);
    same!(simd, ran, "add_i", integers_of(simd, simd.add_i(a, a)), |at| data[at].wrapping_add(data[at]));
    same_f!(simd, ran, "to_f", simd.to_f(a), |at| data[at] as f32);
    for scale in [1.0, 3.0, 1000.0, 4e6] {
        let mut x: Vec<f32> = noise(5, MAX_LANES).iter().map(|value| value * scale).collect();
        (x[0], x[1], x[2]) = (2.5, -3.5, -0.5);
        // SAFETY: as above.
        let rounded = simd.round_to_i(unsafe { simd.load(x.as_ptr()) });
        same!(simd, ran, "round_to_i", integers_of(simd, rounded), |at| x[at].round_ties_even() as i32);
    }
}

#[inline(always)]
fn memory<S: Simd>(simd: S, ran: &mut BTreeSet<&'static str>) {
    let raw: Vec<u8> = (0..64_u32).map(|at| (at * 89 + 130) as u8).collect();
    let f16_at = |at: usize| f16::from_le_bytes([raw[at], raw[at + 1]]).to_f32();
    let bf16_at = |at: usize| bf16::from_le_bytes([raw[at], raw[at + 1]]).to_f32();
    // At every address, because rows of blocks start anywhere.
    for start in 0..8 {
        let from = raw[start..].as_ptr();
        // SAFETY: 56 bytes lie behind each start; no operation reads more than `2 * MAX_LANES`.
        unsafe {
            same_f!(simd, ran, "load_f16", simd.load_f16(from), |at| f16_at(start + 2 * at));
            same_f!(simd, ran, "load_bf16", simd.load_bf16(from), |at| bf16_at(start + 2 * at));
            same!(simd, ran, "load_u8", integers_of(simd, simd.load_u8(from)), |at| i32::from(
                raw[start + at]
            ));
            same!(simd, ran, "load_i8", integers_of(simd, simd.load_i8(from)), |at| {
                i32::from(raw[start + at].cast_signed())
            });
            same_f!(simd, ran, "splat_f16", simd.splat_f16(from), |_at| f16_at(start));
            same_f!(simd, ran, "splat_f16s", simd.splat_f16s(from), |at| f16_at(start + at % 2 * 2));
            let (first, second) = simd.splat_f16_pair(from);
            same_f!(simd, ran, "splat_f16_pair", first, |_at| f16_at(start));
            same_f!(simd, ran, "splat_f16_pair", second, |_at| f16_at(start + 2));
            simd.prefetch(from.cast());
            simd.prefetch_ahead(from, 0..64);
            ran.extend(["prefetch", "prefetch_ahead"]);
        }
    }
    let (n, mr) = (S::LANES, S::MR);
    for (from_stride, to_stride) in [(n, n), (n + 1, n + 3), (37, 29)] {
        let from = noise(6, mr.max(n) * from_stride.max(n));
        let mut to = vec![0.0; n * to_stride.max(mr)];
        // SAFETY: both have room for the block at their strides.
        unsafe { simd.transpose_block(from.as_ptr(), from_stride, to.as_mut_ptr(), to_stride) };
        for (row, col) in (0..n * n).map(|at| (at / n, at % n)) {
            assert_eq!(to[col * to_stride + row], from[row * from_stride + col], "transpose_block");
        }
        let (short, mut lines) = (noise(7, n * STEPS), vec![0.0; STEPS * to_stride]);
        // SAFETY: both have room for `n` rows of `STEPS`.
        unsafe { simd.transpose_steps(short.as_ptr(), lines.as_mut_ptr(), to_stride) };
        for (row, step) in (0..n * STEPS).map(|at| (at / STEPS, at % STEPS)) {
            assert_eq!(lines[step * to_stride + row], short[row * STEPS + step], "transpose_steps");
        }
        // SAFETY: as above, for `MR` rows.
        unsafe { simd.interleave_rows(from.as_ptr(), from_stride, to.as_mut_ptr()) };
        for (row, col) in (0..mr * n).map(|at| (at / n, at % n)) {
            assert_eq!(to[col * mr + row], from[row * from_stride + col], "interleave_rows");
        }
    }
    ran.extend(["transpose_block", "transpose_steps", "interleave_rows"]);
}

/// Bytes of all sizes, with the greatest ones at both ends.
fn signed(seed: u64, len: usize) -> Vec<i8> {
    let extreme = [127, -127, 0, 1];
    let value =
        |(at, value): (usize, &f32)| if at % 5 == 0 { extreme[at / 5 % 4] } else { (value * 127.0) as i8 };
    noise(seed, len).iter().enumerate().map(value).collect()
}

#[inline(always)]
fn bytes<S: Simd>(simd: S, ran: &mut BTreeSet<&'static str>) {
    let mut q = signed(7, 32);
    (q[3], q[31]) = (-128, -128);
    let x = signed(8, 32);
    let raw: Vec<u8> = q.iter().map(|byte| byte.cast_unsigned()).collect();
    let mut out = [0_u8; 32];
    // SAFETY: all arrays hold 32 bytes.
    unsafe {
        let loaded = simd.load_q8(raw.as_ptr());
        simd.store_q(out.as_mut_ptr(), loaded);
        assert_eq!(out, raw[..], "load_q8 and store_q");
        let wide: Vec<i32> = q.iter().map(|byte| i32::from(*byte)).collect();
        let [high, low] = simd.split_q8(loaded);
        let mut halves = [[0_u8; 32]; 2];
        simd.store_q(halves[0].as_mut_ptr(), high);
        simd.store_q(halves[1].as_mut_ptr(), low);
        for at in 0..32 {
            assert!(halves[0][at] < 16 && halves[1][at] < 16, "split_q8");
            assert_eq!(16 * i32::from(halves[0][at]) + i32::from(halves[1][at]), wide[at] + 128, "split_q8");
        }
        let loaded = simd.load_q4(raw.as_ptr());
        simd.store_q(out.as_mut_ptr(), loaded);
        let nibbles: Vec<i32> = (0..32).map(|at| i32::from(raw[at % 16] >> (at / 16 * 4) & 15)).collect();
        assert_eq!(out.map(i32::from), nibbles[..], "load_q4");
    }
    ran.extend(["load_q8", "load_q4", "store_q", "split_q8"]);
    more_bits(simd, &raw, &x);
    ran.extend(["load_bits", "load_q5", "load_pair", "add_pair"]);
    let zipped = simd.zip_bytes(0x0706_0504_0302_0100, 0x1716_1514_1312_1110);
    assert_eq!(zipped, std::array::from_fn(|at| (at / 2 + at % 2 * 16) as u8), "zip_bytes");
    ran.insert("zip_bytes");
    groups::<S, Q4_0>(simd);
    groups::<S, Q4_1>(simd);
    groups::<S, Q5_0>(simd);
    groups::<S, Q5_1>(simd);
    groups::<S, Q8_0>(simd);
    ran.extend(["load_f16s", "load_q8s", "load_q4s", "load_q5s", "dot_bits", "dot_q8s"]);
    for at in (0..32).step_by(S::LANES) {
        let mut to = [0_i8; MAX_LANES];
        // SAFETY: `LANES` bytes lie at `at`, and `to` has room for them.
        unsafe { simd.store_i8(to.as_mut_ptr(), simd.load_i8(raw[at..].as_ptr())) };
        same!(simd, ran, "store_i8", to[..S::LANES].to_vec(), |lane| q[at + lane]);
    }
}

/// `LANES / 4` groups: their scales, and their products with activations of all sizes and the greatest.
#[inline(always)]
fn groups<S: Simd, F: ByteFormat>(simd: S) {
    let (n_groups, n_bytes) = (S::LANES / 4, F::GROUP_BYTES);
    let mut raw: Vec<u8> = signed(12, n_groups * n_bytes).iter().map(|byte| byte.cast_unsigned()).collect();
    for (group, raw) in raw.chunks_exact_mut(n_bytes).enumerate() {
        raw[..2].copy_from_slice(&f16::from_f32(group as f32 + 0.5).to_le_bytes());
        if F::OFFSET == 1.0 {
            raw[2..4].copy_from_slice(&f16::from_f32(-2.0 * group as f32).to_le_bytes());
        }
        raw[10..14].fill(0x80);
    }
    // SAFETY: all groups are there.
    let (scales, offsets) = unsafe { F::step_scales(simd, raw.as_ptr()) };
    let offset = if F::OFFSET == 1.0 { |group| -2.0 * group as f32 } else { |group| group as f32 + 0.5 };
    for (lane, got) in lanes(simd, scales).into_iter().zip(lanes(simd, offsets)).enumerate() {
        assert_eq!(got, ((lane / 4) as f32 + 0.5, offset(lane / 4)), "load_f16s, {n_bytes}");
    }

    let integer = |group: usize, nth: usize| {
        let raw = &raw[group * n_bytes..][..n_bytes];
        if F::OFFSET == 0.0 {
            return i32::from(raw[n_bytes - 32 + nth].cast_signed());
        }
        let low = i32::from(raw[n_bytes - 16 + nth % 16] >> (nth / 16 * 4) & 15);
        let fifth = if F::BITS == 5 { raw[n_bytes - 20 + nth / 8] >> (nth % 8) & 1 } else { 0 };
        low + 16 * i32::from(fifth) + F::OFFSET.min(0.0) as i32
    };
    for x in [signed(13, 32 * n_groups), vec![127; 32 * n_groups], vec![-127; 32 * n_groups]] {
        let half =
            |from: usize| -> Vec<i8> { x.chunks(32).flat_map(|x| &x[from..from + 16]).copied().collect() };
        let sums = x.chunks(32).map(|x| x.iter().map(|x| i32::from(*x)).sum::<i32>());
        let minus: Vec<i32> = sums.flat_map(|sum| [-sum - 100, 50, 25, 25]).collect();
        // SAFETY: both halves have `4 * LANES` bytes, `minus` `LANES` values; all groups are there.
        let got = unsafe {
            let x = [half(0), half(16)].map(|half| simd.load_p(half.as_ptr().cast()));
            let minus = simd.load_i(minus.as_ptr().cast());
            integers_of(simd, F::dot_step(simd, F::load_step(simd, raw.as_ptr()), x, minus))
        };
        for (group, got) in got.chunks(4).enumerate() {
            let want: i32 = (0..32).map(|at| integer(group, at) * i32::from(x[32 * group + at])).sum();
            assert_eq!(got.iter().sum::<i32>(), want, "group {group} of {n_bytes} bytes");
        }
    }
}

/// Integers of five and six bits.
#[inline(always)]
fn more_bits<S: Simd>(simd: S, raw: &[u8], x: &[i8]) {
    let other: Vec<u8> = signed(11, 32).iter().map(|byte| byte.cast_unsigned()).collect();
    let mut out = [0_u8; 32];
    let no_high = [(0, 0)].into_iter();
    for (high_shift, mask) in
        no_high.chain((0..8).map(|bit| (bit, 1))).chain([0, 2, 4, 6].map(|bit| (bit, 3)))
    {
        let both = [0, 4].map(|low_shift| {
            let high = (mask != 0).then_some((other.as_ptr(), high_shift, mask));
            Bits { low: raw.as_ptr(), low_shift, high }
        });
        let want = both.map(|bits| {
            let value = |at: usize| raw[at] >> bits.low_shift & 15 | (other[at] >> high_shift & mask) << 4;
            std::array::from_fn::<u8, 32, _>(value)
        });
        for (bits, want) in both.into_iter().zip(want) {
            // SAFETY: all arrays hold 32 bytes.
            unsafe { simd.store_q(out.as_mut_ptr(), simd.load_bits(bits)) };
            assert_eq!(out, want, "load_bits, {high_shift}, {mask}");
        }
        // Each byte alone, then all.
        let ones = (0..64).map(|at| std::array::from_fn(|other| i8::from(other == at)));
        for x in ones.chain([std::array::from_fn::<i8, 64, _>(|at| x[at % 32])]) {
            let dot = |at: usize| {
                let half = want.as_flattened()[at..at + 16].iter().zip(&x[at..]);
                half.map(|(q, x)| i32::from(*q) * i32::from(*x)).sum::<i32>() as f32
            };
            let factors = [0.5, -3.0, 2.0, 7.0];
            let (start, x) = (simd.splat(1.0), x.as_ptr());
            // SAFETY: the arrays hold 32 bytes, `x` 64, and there are four factors.
            let (whole, halves) = unsafe {
                let q = simd.load_pair(both);
                let whole = simd.add_pair::<false>(q, x, factors.as_ptr(), start);
                (whole, simd.add_pair::<true>(q, x, factors.as_ptr(), start))
            };
            let sum = |lanes_of| lanes(simd, lanes_of).iter().sum::<f32>() - S::LANES as f32;
            let dots = [0, 16, 32, 48].map(dot);
            assert_eq!(sum(whole), 0.5 * (dots[0] + dots[1]) + 2.0 * (dots[2] + dots[3]), "add_pair");
            assert_eq!(
                sum(halves),
                dots.iter().zip(factors).map(|(a, b)| a * b).sum::<f32>(),
                "add_pair, halves"
            );
        }
    }
    // SAFETY: 16 and four bytes are there.
    unsafe { simd.store_q(out.as_mut_ptr(), simd.load_q5(raw.as_ptr(), other.as_ptr())) };
    let want = |at: usize| raw[at % 16] >> (at / 16 * 4) & 15 | (other[at / 8] >> (at % 8) & 1) << 4;
    assert!((0..32).all(|at| out[at] == want(at)), "load_q5");
}

#[inline(always)]
fn products<S: Simd>(simd: S, ran: &mut BTreeSet<&'static str>) {
    tile::<S, 4, 2>(simd);
    tile::<S, 3, 1>(simd);
    tile::<S, 8, 2>(simd);
    tile::<S, 4, 3>(simd);
    ran.extend(["steps", "zero_a", "begin", "load_p", "splat_p", "step", "finish"]);
}

/// `T` tokens by `V` vectors of weight rows, for each number of steps, random and extreme.
#[inline(always)]
fn tile<S: Simd, const T: usize, const V: usize>(simd: S) {
    let start = |token: usize| if S::PRODUCTS_IN_16_BITS == 0 { 1000 * token as i32 - 50_000 } else { 0 };
    for n_steps in 0..=STEPS {
        for extreme in [None, Some(127), Some(-127)] {
            let stride = T + 2;
            let quants =
                extreme.map_or_else(|| signed(9, STEPS * stride * 4), |x| vec![x; STEPS * stride * 4]);
            let nibbles: Vec<u8> = noise(10, STEPS * V * S::LANES * 4)
                .iter()
                .map(|value| if extreme.is_some() { 15 } else { (value.abs() * 15.9) as u8 })
                .collect();
            // SAFETY: both hold `STEPS` steps.
            let sums: [[S::A; V]; T] = unsafe {
                let begin = std::array::from_fn(|token| match S::PRODUCTS_IN_16_BITS {
                    0 => simd.begin(simd.splat_i(start(token))),
                    _ => simd.zero_a(),
                });
                simd.steps(n_steps, (quants.as_ptr(), stride), nibbles.as_ptr(), begin)
            };
            for (token, row) in sums.into_iter().enumerate() {
                for (v, sums) in row.into_iter().enumerate() {
                    let got = integers_of(simd, simd.finish(sums));
                    let want: Vec<i32> = (0..S::LANES)
                        .map(|lane| {
                            let product = |at: usize| {
                                let (step, byte) = (at / 4, at % 4);
                                let weight = nibbles[((step * V + v) * S::LANES + lane) * 4 + byte];
                                i32::from(quants[(step * stride + token) * 4 + byte]) * i32::from(weight)
                            };
                            start(token) + (0..n_steps * 4).map(product).sum::<i32>()
                        })
                        .collect();
                    assert_eq!(got, want, "{n_steps} steps of {T} x {V}, token {token}, vector {v}");
                }
            }
        }
    }
}

#[test]
fn every_operation_is_like_its_plain_twin() {
    // All that the vocabulary declares, and what the NEON set has of its own: an operation that nothing runs is found.
    let sources = [
        (include_str!("../simd/mod.rs"), " trait Simd:"),
        (include_str!("../simd/neon.rs"), " Simd for Neon"),
    ];
    let names = |(source, head): (&'static str, &str)| {
        let body = source.split_once(head).map_or("", |(_, body)| body);
        let body = body.split_once("\n}").map_or("", |(body, _)| body);
        let heads = body.lines().map(|line| line.trim_start().trim_start_matches("unsafe "));
        heads
            .filter_map(|line| line.strip_prefix("fn "))
            .map(|line| line.split(['<', '(']).next().unwrap_or(line))
    };
    let declared: BTreeSet<&str> = sources.into_iter().flat_map(names).collect();
    assert!(declared.contains("dot_bits") && 40 < declared.len(), "{declared:?}");
    for isa in Isa::all() {
        let mut ran = BTreeSet::new();
        isa.dispatch_bytes(Ops { ran: &mut ran });
        println!("{}: {}", isa.name(), ran.iter().copied().collect::<Vec<_>>().join(" "));
        let missed: Vec<_> = declared.difference(&ran).collect();
        assert!(missed.is_empty(), "{}: nothing runs {missed:?}", isa.name());
        // Without the instructions for bytes, where they are a set of their own.
        isa.dispatch(Ops { ran: &mut ran });
    }
}
