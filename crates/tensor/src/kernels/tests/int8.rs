use super::matmul::random_weight;
use super::{Product, assert_close, bits, everywhere, noise};
use crate::kernels::isa::Isa;
use crate::kernels::matmul::MatmulScratch;
use crate::kernels::{Precision, ThreadPool, matmul_scratch_bytes, naive};
use crate::{DType, WeightMatrix};

const DTYPES: [DType; 8] =
    [DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q4_K, DType::Q5_K, DType::Q6_K];

/// The nearest width that is whole blocks.
fn whole_blocks(dtype: DType, n_in: usize) -> usize {
    n_in.next_multiple_of(dtype.block_len())
}

fn product<'a>(inputs: &'a [f32], weight: &'a WeightMatrix) -> Product<'a> {
    Product { inputs, weight, accumulate: false, precision: Precision::Int8 }
}

/// The documented bound: for each group half a step of the activations times the sum of the weights.
fn bound(input: &[f32], row: &[f32]) -> f32 {
    let groups = input.chunks_exact(32).zip(row.chunks_exact(32));
    let group = |(input, row): (&[f32], &[f32])| {
        let max = input.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
        max / 254.0 * row.iter().map(|value| value.abs()).sum::<f32>()
    };
    groups.map(group).sum()
}

#[derive(Clone, Copy, Debug)]
struct Case {
    dtype: DType,
    n_tokens: usize,
    n_in: usize,
    n_out: usize,
}

fn check(isa: Isa, pool: &ThreadPool, place: &str, case: Case) {
    let Case { dtype, n_tokens, n_in, n_out } = Case { n_in: whole_blocks(case.dtype, case.n_in), ..case };
    let weight = random_weight(dtype, n_out, n_in);
    let rows = weight.to_f32();
    let largest = rows.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
    let rounding = 2e-6 * largest * n_in as f32;
    let inputs = noise(13, n_tokens * n_in);
    let (mut got, mut want) = (vec![f32::NAN; n_tokens * n_out], vec![0.0; n_tokens * n_out]);
    let mut scratch = MatmulScratch::default();
    product(&inputs, &weight).run(isa, pool, &mut got, &mut scratch);
    naive::matmul(&inputs, &weight, &mut want);
    for (idx, (got, want)) in got.iter().zip(&want).enumerate() {
        let (token, row) = (idx / n_out, idx % n_out);
        let bound = bound(&inputs[token * n_in..][..n_in], &rows[row * n_in..][..n_in]) + rounding;
        assert!(
            (got - want).abs() <= bound,
            "{place}, {case:?}: [{token}, {row}] is {got}, not {want} +- {bound}"
        );
    }
    let once = got.clone();
    Product { accumulate: true, ..product(&inputs, &weight) }.run(isa, pool, &mut got, &mut scratch);
    let twice: Vec<f32> = once.iter().map(|value| value * 2.0).collect();
    assert_close(&got, &twice, 1.0, rounding, &format!("{place}, {case:?}, added"));
    let most = matmul_scratch_bytes(Precision::Int8, pool.n_threads(), n_tokens, n_in);
    if isa.name() == Isa::detect().name() {
        assert!(
            scratch.bytes() <= most,
            "{place}, {case:?}: {} scratch bytes, {most} promised",
            scratch.bytes()
        );
    }

    // Activations that are whole steps are not rounded at all.
    let whole: Vec<f32> = (0..n_tokens * n_in)
        .map(|at| if at % 32 == 5 { 127.0 } else { (at * 89 % 255) as f32 - 127.0 } / 64.0)
        .collect();
    product(&whole, &weight).run(isa, pool, &mut got, &mut scratch);
    naive::matmul(&whole, &weight, &mut want);
    assert_close(&got, &want, 4.0, rounding, &format!("{place}, {case:?}, whole steps"));
}

#[test]
fn bytes_are_within_the_bound_of_the_twin() {
    everywhere(|isa, pool, place| {
        for dtype in DTYPES {
            for n_tokens in [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17, 70] {
                for (n_in, n_out) in [(32, 1), (64, 7), (96, 33), (576, 101)] {
                    check(isa, pool, place, Case { dtype, n_tokens, n_in, n_out });
                }
            }
        }
    });
}

#[test]
fn real_and_long_sizes_are_within_the_bound() {
    let pool = ThreadPool::new(2);
    for isa in Isa::all() {
        for dtype in DTYPES {
            for (n_tokens, n_in, n_out) in [(515, 576, 200), (20, 1536, 576), (10, 4128, 70), (1, 4128, 70)] {
                check(isa, &pool, isa.name(), Case { dtype, n_tokens, n_in, n_out });
            }
        }
    }
}

#[test]
fn extreme_weights_do_not_overflow() {
    // Every integer at its greatest size, with activations of both signs.
    everywhere(|isa, pool, place| {
        for (dtype, block, pattern) in [
            (DType::Q8_0, 34, [0x80, 0x80]),
            (DType::Q8_0, 34, [0x7F, 0x80]),
            (DType::Q4_0, 18, [0xFF, 0xFF]),
            (DType::Q4_1, 20, [0xFF, 0x0F]),
            (DType::Q5_0, 22, [0xFF, 0x00]),
            (DType::Q5_1, 24, [0xFF, 0xFF]),
            (DType::Q4_K, 144, [0xFF, 0xFF]),
            (DType::Q5_K, 176, [0xFF, 0xFF]),
            (DType::Q6_K, 210, [0xFF, 0xFF]),
            (DType::Q6_K, 210, [0x00, 0x80]),
        ] {
            let n_in = dtype.block_len();
            let mut data: Vec<u8> = (0..block * 20).map(|at| pattern[at % 2]).collect();
            for block in data.chunks_exact_mut(block) {
                let scale = if dtype == DType::Q6_K { 208 } else { 0 };
                block[scale..scale + 2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
                if matches!(dtype, DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K) {
                    block[2..4].copy_from_slice(&half::f16::from_f32(-0.25).to_le_bytes());
                }
            }
            let weight = WeightMatrix::new(dtype, 20, n_in, bytes::Bytes::from(data)).expect("whole blocks");
            let largest = weight.to_f32().iter().fold(0.0_f32, |max, value| max.max(value.abs()));
            for sign in [127.0, -127.0] {
                for n_tokens in [1, 3, 8, 12] {
                    let inputs = vec![sign; n_tokens * n_in];
                    let (mut got, mut want) = (vec![0.0; n_tokens * 20], vec![0.0; n_tokens * 20]);
                    product(&inputs, &weight).run(isa, pool, &mut got, &mut MatmulScratch::default());
                    naive::matmul(&inputs, &weight, &mut want);
                    assert_close(
                        &got,
                        &want,
                        1e-6,
                        127.0 * largest.max(128.0) * n_in as f32,
                        &format!("{place}, {dtype}, {n_tokens}"),
                    );
                }
            }
        }
    });
}

#[test]
fn zeros_and_tiny_activations_give_zero_or_tiny_results() {
    everywhere(|isa, pool, place| {
        let weight = random_weight(DType::Q4_1, 40, 64);
        for value in [0.0, 1e-45, 1e-39, 1e-36] {
            for n_tokens in [1, 9] {
                let mut out = vec![f32::NAN; n_tokens * 40];
                let inputs = vec![value; n_tokens * 64];
                product(&inputs, &weight).run(isa, pool, &mut out, &mut MatmulScratch::default());
                assert!(out.iter().all(|out| out.abs() <= 64.0 * value), "{place}, {value:e}: {out:?}");
            }
        }
    });
}

#[test]
fn activations_that_are_not_finite_stay_visible() {
    everywhere(|isa, pool, place| {
        for dtype in DTYPES {
            let n_in = whole_blocks(dtype, 96);
            let weight = random_weight(dtype, 40, n_in);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for n_tokens in [1, 2, 9] {
                    for at in [0, 37, 95] {
                        let mut inputs = noise(17, n_tokens * n_in);
                        inputs[(n_tokens - 1) * n_in + at] = bad;
                        let mut out = vec![0.0; n_tokens * 40];
                        product(&inputs, &weight).run(isa, pool, &mut out, &mut MatmulScratch::default());
                        let (good, poisoned) = out.split_at((n_tokens - 1) * 40);
                        let seen = poisoned.iter().all(|out| !out.is_finite());
                        assert!(seen, "{place}, {dtype}, {bad} at {at} of {n_tokens}");
                        assert!(good.iter().all(|out| out.is_finite()), "{place}, {dtype}: other tokens");
                    }
                }
            }
        }
    });
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for isa in Isa::all() {
        for dtype in DTYPES {
            for n_tokens in [1, 4, 50] {
                let weight = random_weight(dtype, 203, 512);
                let inputs = noise(3, n_tokens * 512);
                let on = |n_threads| {
                    let mut out = vec![0.0; n_tokens * 203];
                    let pool = ThreadPool::new(n_threads);
                    product(&inputs, &weight).run(isa, &pool, &mut out, &mut MatmulScratch::default());
                    bits(&out)
                };
                let one = on(1);
                let same = [2, 3, 5].into_iter().all(|n_threads| on(n_threads) == one);
                assert!(same, "{}, {dtype}, {n_tokens} tokens", isa.name());
            }
        }
    }
}

#[test]
fn tokens_together_give_the_bits_of_each_alone() {
    let pool = ThreadPool::new(2);
    for isa in Isa::all() {
        for dtype in DTYPES {
            let (n_in, n_out) = (512, 45);
            let weight = random_weight(dtype, n_out, n_in);
            let inputs = noise(19, 8 * n_in);
            let run = |inputs: &[f32]| {
                let mut out = vec![0.0; inputs.len() / n_in * n_out];
                product(inputs, &weight).run(isa, &pool, &mut out, &mut MatmulScratch::default());
                bits(&out)
            };
            let alone: Vec<u32> = inputs.chunks(n_in).flat_map(run).collect();
            for n_tokens in 2..=8 {
                let together = run(&inputs[..n_tokens * n_in]);
                assert!(together == alone[..n_tokens * n_out], "{}, {dtype}, {n_tokens} tokens", isa.name());
            }
        }
    }
}

/// Both sum integers, whatever the order, and scale them alike.
#[cfg(target_arch = "aarch64")]
#[test]
fn sdot_and_smmla_give_the_same_bits() {
    let set = |name| Isa::all().into_iter().find(|isa| isa.name() == name);
    let (Some(by_dot), Some(by_tile)) = (set("neon+dotprod"), set("neon+dotprod+i8mm")) else { return };
    let pool = ThreadPool::new(2);
    for dtype in DTYPES {
        for (n_tokens, n_in, n_out) in [(1, 96, 33), (9, 64, 7), (13, 576, 101), (30, 2112, 19)] {
            let n_in = whole_blocks(dtype, n_in);
            let weight = random_weight(dtype, n_out, n_in);
            let inputs = noise(5, n_tokens * n_in);
            let [dot, tile] = [by_dot, by_tile].map(|isa| {
                let mut out = vec![0.0; n_tokens * n_out];
                product(&inputs, &weight).run(isa, &pool, &mut out, &mut MatmulScratch::default());
                bits(&out)
            });
            assert_eq!(dot, tile, "{dtype}, {n_tokens} tokens, {n_in} by {n_out}");
        }
    }
}
