use super::{ODD, Product, assert_close, bits, everywhere, noise};
use crate::kernels::isa::Isa;
use crate::kernels::matmul::{MatmulMode, MatmulScratch, Projection, run_each};
use crate::kernels::{Precision, ThreadPool, matmul_scratch_bytes, naive};
use crate::{DType, WeightMatrix};
use bytes::Bytes;

/// Dtypes with a vector form, and two that pass through `blocks::dequantize`.
const DTYPES: [DType; 8] =
    [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q6_K];

/// Bytes of random blocks whose f16 scales are small finite numbers.
pub(super) fn random_weight(dtype: DType, n_rows: usize, n_cols: usize) -> WeightMatrix {
    let n_blocks = n_rows * n_cols / dtype.block_len();
    let scale = |idx: usize| half::f16::from_f32(0.01 + (idx % 7) as f32 * 0.003).to_le_bytes();
    let mut data = Vec::new();
    for (idx, value) in noise(7, n_blocks).into_iter().enumerate() {
        match dtype {
            DType::F32 => data.extend(value.to_le_bytes()),
            DType::F16 => data.extend(half::f16::from_f32(value).to_le_bytes()),
            DType::BF16 => data.extend(half::bf16::from_f32(value).to_le_bytes()),
            _ => {
                let bytes = noise(idx as u64 + 9, dtype.block_bytes());
                let start = data.len();
                data.extend(bytes.iter().map(|byte| (byte * 127.0) as i8 as u8));
                let scales: &[usize] = match dtype {
                    DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
                    DType::Q6_K => &[208],
                    _ => &[0],
                };
                for (nth, at) in scales.iter().enumerate() {
                    data[start + at..start + at + 2].copy_from_slice(&scale(idx + nth));
                }
            }
        }
    }
    WeightMatrix::new(dtype, n_rows, n_cols, Bytes::from(data)).expect("whole blocks")
}

struct Case {
    dtype: DType,
    n_tokens: usize,
    n_in: usize,
    n_out: usize,
}

fn check(isa: Isa, pool: &ThreadPool, place: &str, case: &Case) {
    let &Case { dtype, n_tokens, n_in, n_out } = case;
    let inputs = noise(11, n_tokens * n_in);
    let weight = random_weight(dtype, n_out, n_in);
    let mut want = vec![0.0; n_tokens * n_out];
    naive::matmul(&inputs, &weight, &mut want);
    // Errors grow with the greatest product times the length of the sum.
    let largest = weight.to_f32().iter().fold(0.0_f32, |max, value| max.max(value.abs()));
    let scale = 1.0 + largest * n_in as f32;
    let what = format!("{place}, {dtype} [{n_tokens}, {n_in}] to {n_out}");
    let mut scratch = MatmulScratch::default();
    let mut got = vec![f32::NAN; n_tokens * n_out];
    Product { inputs: &inputs, weight: &weight, accumulate: false, precision: Precision::F32 }.run(
        isa,
        pool,
        &mut got,
        &mut scratch,
    );
    assert_close(&got, &want, 5e-7, scale, &what);
    let once = got.clone();
    Product { inputs: &inputs, weight: &weight, accumulate: true, precision: Precision::F32 }.run(
        isa,
        pool,
        &mut got,
        &mut scratch,
    );
    let twice: Vec<f32> = once.iter().map(|value| value * 2.0).collect();
    assert_close(&got, &twice, 5e-7, scale, &format!("{what}, added"));
    let most = matmul_scratch_bytes(Precision::F32, pool.n_threads(), n_tokens, n_in);
    if isa.name() == Isa::detect().name() {
        assert!(scratch.bytes() <= most, "{what}: {} scratch bytes, {most} promised", scratch.bytes());
    }
}

#[test]
fn matmul_is_like_its_twin_for_every_dtype() {
    everywhere(|isa, pool, place| {
        for dtype in DTYPES {
            for n_tokens in [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 70] {
                for (blocks, n_out) in [(1, 1), (1, 7), (2, 33), (3, 101)] {
                    let n_in = blocks * dtype.block_len().max(32);
                    check(isa, pool, place, &Case { dtype, n_tokens, n_in, n_out });
                }
            }
        }
    });
}

#[test]
fn float_rows_may_have_any_length() {
    everywhere(|isa, pool, place| {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for n_in in ODD {
                for n_tokens in [1, 3, 8, 20] {
                    check(isa, pool, place, &Case { dtype, n_tokens, n_in, n_out: 29 });
                }
            }
        }
    });
}

#[test]
fn real_sizes_are_like_the_twin() {
    everywhere(|isa, pool, place| {
        for (n_in, n_out) in [(576, 192), (1536, 576)] {
            for n_tokens in [1, 5, 515] {
                check(isa, pool, place, &Case { dtype: DType::Q4_1, n_tokens, n_in, n_out });
            }
        }
    });
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for isa in Isa::all() {
        for dtype in [DType::Q4_1, DType::Q8_0, DType::F16, DType::Q6_K] {
            for n_tokens in [1, 4, 11, 50] {
                let weight = random_weight(dtype, 203, 512);
                let inputs = noise(3, n_tokens * 512);
                let on = |n_threads| {
                    let mut out = vec![0.0; n_tokens * 203];
                    let mut scratch = MatmulScratch::default();
                    let pool = ThreadPool::new(n_threads);
                    let product = Product {
                        inputs: &inputs,
                        weight: &weight,
                        accumulate: false,
                        precision: Precision::F32,
                    };
                    product.run(isa, &pool, &mut out, &mut scratch);
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
fn an_empty_product_is_allowed() {
    let weight = random_weight(DType::F32, 3, 4);
    let mut scratch = MatmulScratch::default();
    Product { inputs: &[], weight: &weight, accumulate: false, precision: Precision::F32 }.run(
        Isa::detect(),
        &ThreadPool::new(2),
        &mut [],
        &mut scratch,
    );
}

#[test]
fn several_products_equal_one_after_the_other() {
    let dtypes = [DType::Q4_1, DType::Q6_K, DType::Q8_0, DType::F16];
    everywhere(|isa, pool, place| {
        for precision in [Precision::F32, Precision::Int8] {
            for n_tokens in [1, 3, 8, 40] {
                let inputs = noise(5, n_tokens * 512);
                let weights: Vec<_> = dtypes
                    .iter()
                    .zip([7, 70, 33, 101])
                    .map(|(dtype, n_out)| random_weight(*dtype, n_out, 512))
                    .collect();
                let mut scratch = MatmulScratch::default();
                let alone: Vec<Vec<f32>> = weights
                    .iter()
                    .map(|weight| {
                        let mut out = vec![0.0; n_tokens * weight.n_rows()];
                        let product = Product { inputs: &inputs, weight, accumulate: false, precision };
                        product.run(isa, pool, &mut out, &mut scratch);
                        out
                    })
                    .collect();
                let mut outs: Vec<Vec<f32>> = alone.iter().map(|out| vec![f32::NAN; out.len()]).collect();
                let mut projections: Vec<_> =
                    weights.iter().zip(&mut outs).map(|(weight, out)| Projection { weight, out }).collect();
                let mode = MatmulMode { precision, ..MatmulMode::default() };
                run_each(isa, pool, &inputs, &mut projections, &mut scratch, mode);
                for ((got, want), dtype) in outs.iter().zip(&alone).zip(dtypes) {
                    assert_close(
                        got,
                        want,
                        1e-5,
                        50.0,
                        &format!("{place}, {dtype}, {precision:?}, {n_tokens}"),
                    );
                }
            }
        }
    });
}
