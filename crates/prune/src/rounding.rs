//! Storing refitted weights in a block format with the rounding error fed back (GPTQ, arXiv 2210.17323).
//!
//! Columns are rounded from left to right; the error of each is spread over the columns that are still free,
//! weighted by the inverse of the damped Gram matrix H, so that the layer's output changes least. With
//! `H^-1 = U'U` (U upper): `w_k -= (w_j - q_j) / U_jj * U_jk` for `k > j` (algorithm 1 there). The scale of a
//! block is taken from its 32 values when its turn comes. Memory: `8 k^2` bytes for the factor, `4 d k` for the
//! weights.

use crate::numeric::{NumericError, check_len};
use secateur_tensor::DType;
use secateur_tensor::blocks::{dequantize, quantize};
use secateur_tensor::kernels::{GemmArgs, MatMut, MatRef, ThreadPool, gemm};
use secateur_tensor::linalg::SpdFactor;

/// Values in a block of every format that is rounded here.
const BLOCK: usize = 32;

/// Whether rounding to `dtype` is coarse enough for feedback to pay.
pub(crate) fn feeds_back(dtype: DType) -> bool {
    matches!(dtype, DType::Q8_0 | DType::Q4_0 | DType::Q4_1)
}

/// Returns `weight` `[n_out, n_in]` moved onto the grid of `dtype`: values that [`quantize`] keeps as they are, up
/// to its own rounding of scales.
///
/// `damped_gram`: `[n_in, n_in]`, the Gram matrix of the inputs with its ridge added.
/// # Errors
/// [`NumericError::Shape`], [`NumericError::Linalg`] when the matrix is not positive definite.
pub(crate) fn round_with_feedback(
    pool: &ThreadPool,
    weight: Vec<f32>,
    n_in: usize,
    damped_gram: Vec<f64>,
    dtype: DType,
) -> Result<Vec<u8>, NumericError> {
    Feedback::new(damped_gram, n_in)?.round(pool, weight, dtype)
}

/// What rounding needs to know of the inputs: the upper factor of the inverse Gram matrix. `8 k^2` bytes.
pub(crate) struct Feedback {
    factor: SpdFactor,
}

impl Feedback {
    /// From the damped Gram matrix `[n_in, n_in]`.
    /// # Errors
    /// [`NumericError::Linalg`] when it is not positive definite.
    pub(crate) fn new(damped_gram: Vec<f64>, n_in: usize) -> Result<Self, NumericError> {
        let inverse = SpdFactor::new(damped_gram, n_in)?.into_inverse();
        Ok(Self { factor: SpdFactor::new(inverse, n_in)? })
    }

    /// Rounds rows of a matrix; rows know nothing of each other. See [`round_with_feedback`].
    /// # Errors
    /// [`NumericError::Shape`], [`NumericError::Range`] for values a scale cannot hold.
    pub(crate) fn round(
        &self,
        pool: &ThreadPool,
        mut weight: Vec<f32>,
        dtype: DType,
    ) -> Result<Vec<u8>, NumericError> {
        let (factor, n_in) = (&self.factor, self.factor.n());
        let n_out = weight.len().checked_div(n_in).unwrap_or(0);
        check_len("weight", weight.len(), n_out, n_in)?;
        let block_bytes = dtype.block_bytes();
        let row_bytes = dtype.row_bytes(n_in).unwrap_or(0);
        check_len("row blocks", row_bytes, n_in / BLOCK, block_bytes)?;
        let mut bytes = vec![0; n_out * row_bytes];
        let mut errors = vec![0.0; n_out * BLOCK];
        for start in (0..n_in).step_by(BLOCK) {
            // U[start + i, start..] for the rows of this block.
            let upper: Vec<Vec<f32>> =
                (0..BLOCK).map(|i| factor.column(start + i).iter().map(|&u| u as f32).collect()).collect();
            for row in 0..n_out {
                let values = &mut weight[row * n_in + start..row * n_in + start + BLOCK];
                let out = row * row_bytes + start / BLOCK * block_bytes;
                let errors = &mut errors[row * BLOCK..(row + 1) * BLOCK];
                round_block(values, &upper, errors, &mut bytes[out..out + block_bytes], dtype)?;
            }
            let rest = n_in - start - BLOCK;
            if rest != 0 {
                let tail: Vec<f32> =
                    upper.iter().enumerate().flat_map(|(i, row)| row[BLOCK - i..].iter().copied()).collect();
                gemm(
                    pool,
                    GemmArgs {
                        alpha: -1.0,
                        a: MatRef::row_major(&errors, n_out, BLOCK),
                        b: MatRef::row_major(&tail, BLOCK, rest),
                        beta: 1.0,
                        c: MatMut::with_row_stride(&mut weight[start + BLOCK..], n_out, rest, n_in),
                    },
                );
            }
        }
        Ok(bytes)
    }
}

/// Step and offset of a stored block: `value = code * step + offset`, codes in `0..=max`.
struct Grid {
    step: f32,
    offset: f32,
    max: f32,
}

/// Rounds one block of one row; `errors` receives `(w_j - q_j) / U_jj`.
fn round_block(
    values: &mut [f32],
    upper: &[Vec<f32>],
    errors: &mut [f32],
    out: &mut [u8],
    dtype: DType,
) -> Result<(), NumericError> {
    let range =
        |_| NumericError::Range { what: "weight", value: f64::NAN, allowed: "numbers a scale can hold" };
    quantize(dtype, values, out).map_err(range)?;
    let grid = Grid::of(dtype, out);
    let mut codes = [0u8; BLOCK];
    for j in 0..BLOCK {
        let code = if grid.step == 0.0 {
            0.0
        } else {
            ((values[j] - grid.offset) / grid.step).round().clamp(0.0, grid.max)
        };
        codes[j] = code as u8;
        let error = (values[j] - (code * grid.step + grid.offset)) / upper[j][0];
        errors[j] = error;
        for (value, &u) in values[j + 1..].iter_mut().zip(&upper[j][1..]) {
            *value -= error * u;
        }
    }
    store_codes(dtype, &codes, out);
    Ok(())
}

impl Grid {
    /// The grid of a block as it is stored.
    fn of(dtype: DType, block: &[u8]) -> Self {
        // Two probes through the dequantiser give step and offset, whatever the format.
        let mut probe = block.to_vec();
        let mut values = [0.0f32; BLOCK];
        let mut at = |code: u8| {
            store_codes(dtype, &[code; BLOCK], &mut probe);
            dequantize(dtype, &probe, &mut values);
            values[0]
        };
        let max = if dtype == DType::Q8_0 { 254 } else { 15 };
        let (low, next) = (at(0), at(1));
        Self { step: next - low, offset: low, max: f32::from(max as u8) }
    }
}

/// Writes codes `0..=15` (or `0..=254` for Q8_0, meaning `-127..=127`) behind the scales of a block.
fn store_codes(dtype: DType, codes: &[u8; BLOCK], block: &mut [u8]) {
    let quants = match dtype {
        DType::Q4_1 => &mut block[4..],
        _ => &mut block[2..],
    };
    if dtype == DType::Q8_0 {
        for (quant, &code) in quants.iter_mut().zip(codes) {
            *quant = code.wrapping_sub(127);
        }
        return;
    }
    let (low, high) = codes.split_at(BLOCK / 2);
    for ((quant, &low), &high) in quants.iter_mut().zip(low).zip(high) {
        *quant = low | (high << 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(state: &mut u64) -> f32 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }

    /// Correlated inputs: neighbours share a component, as neurons do.
    fn gram(n_in: usize, n_tokens: usize, state: &mut u64) -> Vec<f64> {
        let mut gram = vec![0.0; n_in * n_in];
        for _ in 0..n_tokens {
            let common: Vec<f32> = (0..4).map(|_| random(state)).collect();
            let z: Vec<f32> = (0..n_in).map(|j| 2.0 * common[j % 4] + 0.3 * random(state)).collect();
            for i in 0..n_in {
                for j in 0..n_in {
                    gram[i * n_in + j] += f64::from(z[i] * z[j]);
                }
            }
        }
        for i in 0..n_in {
            gram[i * n_in + i] *= 1.01;
        }
        gram
    }

    fn output_error(weight: &[f32], stored: &[f32], gram: &[f64], n_in: usize) -> f64 {
        let rows = weight.chunks_exact(n_in).zip(stored.chunks_exact(n_in));
        rows.map(|(w, q)| {
            let gap: Vec<f64> = w.iter().zip(q).map(|(w, q)| f64::from(w - q)).collect();
            let product = |i: usize| (0..n_in).map(|j| gram[i * n_in + j] * gap[j]).sum::<f64>();
            (0..n_in).map(|i| gap[i] * product(i)).sum::<f64>()
        })
        .sum()
    }

    #[test]
    fn feedback_lowers_the_output_error_in_every_format() {
        let (n_out, n_in) = (12, 96);
        let mut state = 3;
        let gram = gram(n_in, 300, &mut state);
        let weight: Vec<f32> = (0..n_out * n_in).map(|_| random(&mut state)).collect();
        let pool = ThreadPool::new(1);
        for dtype in [DType::Q4_0, DType::Q4_1, DType::Q8_0] {
            assert!(feeds_back(dtype));
            let mut plain = vec![0; n_out * dtype.row_bytes(n_in).unwrap()];
            quantize(dtype, &weight, &mut plain).unwrap();
            let fed = round_with_feedback(&pool, weight.clone(), n_in, gram.clone(), dtype).unwrap();
            let error = |bytes: &[u8]| {
                let mut stored = vec![0.0; weight.len()];
                dequantize(dtype, bytes, &mut stored);
                output_error(&weight, &stored, &gram, n_in)
            };
            let (plain, fed) = (error(&plain), error(&fed));
            assert!(fed < 0.5 * plain, "{dtype}: {plain} without feedback, {fed} with it");
        }
    }

    #[test]
    fn values_on_the_grid_stay_where_they_are() {
        let (n_out, n_in) = (3, 64);
        let mut state = 5;
        let gram = gram(n_in, 100, &mut state);
        for dtype in [DType::Q4_0, DType::Q4_1, DType::Q8_0] {
            let values: Vec<f32> = (0..n_out * n_in).map(|_| random(&mut state)).collect();
            let mut bytes = vec![0; n_out * dtype.row_bytes(n_in).unwrap()];
            quantize(dtype, &values, &mut bytes).unwrap();
            let mut on_grid = vec![0.0; values.len()];
            dequantize(dtype, &bytes, &mut on_grid);
            let fed = round_with_feedback(&ThreadPool::new(1), on_grid.clone(), n_in, gram.clone(), dtype);
            let mut again = vec![0.0; values.len()];
            dequantize(dtype, &fed.unwrap(), &mut again);
            let gap = on_grid.iter().zip(&again).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(gap < 2e-3, "{dtype}: moved by {gap}");
        }
    }

    #[test]
    fn broken_input_is_an_error() {
        let pool = ThreadPool::new(1);
        let nan = round_with_feedback(&pool, vec![f32::NAN; 32], 32, vec![0.0; 1024], DType::Q4_0);
        assert!(nan.is_err());
        assert!(round_with_feedback(&pool, vec![0.0; 31], 31, vec![0.0; 961], DType::Q4_0).is_err());
    }
}
