//! Storing refitted weights in a block format with the rounding error fed back (GPTQ, arXiv 2210.17323).
//!
//! Columns are rounded from left to right; the error of each is spread over the columns that are still free,
//! weighted by the inverse of the damped Gram matrix H, so that the layer's output changes least. With
//! `H^-1 = U'U` (U upper): `w_k -= (w_j - q_j) / U_jj * U_jk` for `k > j` (algorithm 1 there). The scale of a
//! block is chosen when its turn comes: of several, the one with the least change. Memory: `8 k^2` bytes for the
//! factor, `4 d k` for the weights.

use crate::numeric::{NumericError, check_len};
use crate::refit::Damping;
use secateur_tensor::DType;
use secateur_tensor::blocks::{f16_bits_to_f32, quantize};
use secateur_tensor::kernels::{GemmArgs, MatMut, MatRef, ThreadPool, gemm};
use secateur_tensor::linalg::SpdFactor;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Rows that a thread rounds at a time.
const ROWS: usize = 16;
/// Values in a block of every format that is rounded here.
const BLOCK: usize = 32;

/// Whether rounding to `dtype` is coarse enough for feedback to pay.
pub(crate) fn feeds_back(dtype: DType) -> bool {
    matches!(dtype, DType::Q8_0 | DType::Q4_0 | DType::Q4_1)
}

/// Whether rounding to `dtype` costs so much that the whole layer is worth refitting around it.
pub(crate) fn is_coarse(dtype: DType) -> bool {
    matches!(dtype, DType::Q4_0 | DType::Q4_1)
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

    /// From a Gram matrix `[n_in, n_in]`, both triangles, which is damped first.
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn of_gram(
        gram: impl IntoIterator<Item: Into<f64>>,
        n_in: usize,
    ) -> Result<Self, NumericError> {
        let mut gram: Vec<f64> = gram.into_iter().map(Into::into).collect();
        let diagonal: Vec<f64> = (0..n_in).map(|at| gram[at * n_in + at]).collect();
        for (at, lambda) in Damping::DEFAULT.lambda(&diagonal).into_iter().enumerate() {
            gram[at * n_in + at] += lambda;
        }
        Self::new(gram, n_in)
    }

    /// Moves rows of a matrix `[n_out, n_in]` onto the grid of `dtype`: values that [`quantize`] keeps as they are, up
    /// to its own rounding of scales. Rows know nothing of each other.
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
            let rows = weight.chunks(ROWS * n_in).zip(bytes.chunks_mut(ROWS * row_bytes));
            let tasks: Vec<_> = rows.zip(errors.chunks_mut(ROWS * BLOCK)).map(Mutex::new).collect();
            let failed = OnceLock::new();
            pool.run(tasks.len(), &|task_idx| {
                let mut rows = tasks[task_idx].lock().unwrap_or_else(PoisonError::into_inner);
                let ((weight, bytes), errors) = &mut *rows;
                let rows = weight.chunks_exact(n_in).zip(bytes.chunks_exact_mut(row_bytes));
                for ((values, out), errors) in rows.zip(errors.chunks_exact_mut(BLOCK)) {
                    let out = &mut out[start / BLOCK * block_bytes..][..block_bytes];
                    if let Err(error) = round_block(&values[start..start + BLOCK], &upper, errors, out, dtype)
                    {
                        // All say the same of whichever value came first.
                        let _ = failed.set(error);
                    }
                }
            });
            if let Some(error) = failed.into_inner() {
                return Err(error);
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
#[derive(Clone, Copy)]
struct Grid {
    step: f32,
    offset: f32,
    max: f32,
}

/// Shares of the usual step that are tried, the usual one first. A smaller one clips the largest values and is finer
/// for the others; a negative one gives the longer end of the uneven range of Q4_0 to values of the other sign.
const STEPS_Q4_0: [f32; 14] =
    [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 1.05, -1.14, -1.08, -1.02, -0.96, -0.9, -0.84];
const STEPS_Q4_1: [f32; 9] = [1.0, 0.97, 0.94, 0.91, 0.88, 0.84, 0.8, 0.75, 0.7];
const STEPS_Q8_0: [f32; 1] = [1.0];

/// Rounds one block of one row on the grid that lets the row's output change least; `errors` receives
/// `(w_j - q_j) / U_jj`, whose squares add up to that change.
fn round_block(
    values: &[f32],
    upper: &[Vec<f32>],
    errors: &mut [f32],
    out: &mut [u8],
    dtype: DType,
) -> Result<(), NumericError> {
    quantize(dtype, values, out).map_err(out_of_range)?;
    let usual = Grid::of(dtype, out);
    let steps = match dtype {
        DType::Q4_0 => &STEPS_Q4_0[..],
        DType::Q4_1 => &STEPS_Q4_1,
        _ => &STEPS_Q8_0,
    };
    let mut best = (usual, Trial::new(values, upper, usual, f32::INFINITY));
    for &share in &steps[1..] {
        // What is compared is what can be stored.
        usual.scaled(share, dtype).store(dtype, out)?;
        let grid = Grid::of(dtype, out);
        let trial = Trial::new(values, upper, grid, best.1.change);
        if trial.change < best.1.change {
            best = (grid, trial);
        }
    }
    best.0.store(dtype, out)?;
    store_codes(dtype, &best.1.codes, out);
    errors.copy_from_slice(&best.1.errors);
    Ok(())
}

/// One block rounded on one grid, from left to right.
struct Trial {
    codes: [u8; BLOCK],
    errors: [f32; BLOCK],
    change: f32,
}

impl Trial {
    /// Gives up, with the codes unfinished, when the change is no less than `bound`.
    fn new(values: &[f32], upper: &[Vec<f32>], grid: Grid, bound: f32) -> Self {
        let mut left = [0.0; BLOCK];
        left.copy_from_slice(values);
        let mut trial = Self { codes: [0; BLOCK], errors: [0.0; BLOCK], change: 0.0 };
        for j in 0..BLOCK {
            let code = if grid.step == 0.0 {
                0.0
            } else {
                ((left[j] - grid.offset) / grid.step).round().clamp(0.0, grid.max)
            };
            trial.codes[j] = code as u8;
            let error = (left[j] - (code * grid.step + grid.offset)) / upper[j][0];
            trial.errors[j] = error;
            trial.change += error * error;
            if bound <= trial.change {
                break;
            }
            for (value, &u) in left[j + 1..].iter_mut().zip(&upper[j][1..]) {
                *value -= error * u;
            }
        }
        trial
    }
}

fn out_of_range<E>(_: E) -> NumericError {
    NumericError::Range { what: "weight", value: f64::NAN, allowed: "numbers a scale can hold" }
}

impl Grid {
    /// The grid of a block as it is stored.
    fn of(dtype: DType, block: &[u8]) -> Self {
        let scale = |at: usize| f16_bits_to_f32(u16::from_le_bytes([block[at], block[at + 1]]));
        let step = scale(0);
        match dtype {
            DType::Q4_1 => Self { step, offset: scale(2), max: 15.0 },
            DType::Q4_0 => Self { step, offset: -8.0 * step, max: 15.0 },
            _ => Self { step, offset: -127.0 * step, max: 254.0 },
        }
    }

    /// With a step of another size, about the same middle.
    fn scaled(self, share: f32, dtype: DType) -> Self {
        let step = self.step * share;
        let offset = match dtype {
            DType::Q4_1 => self.offset + (self.step - step) * self.max / 2.0,
            _ => self.offset * share,
        };
        Self { step, offset, ..self }
    }

    /// Writes the scales of a block.
    fn store(self, dtype: DType, block: &mut [u8]) -> Result<(), NumericError> {
        quantize(DType::F16, &[self.step], &mut block[..2]).map_err(out_of_range)?;
        if dtype == DType::Q4_1 {
            quantize(DType::F16, &[self.offset], &mut block[2..4]).map_err(out_of_range)?;
        }
        Ok(())
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
    use secateur_tensor::blocks::dequantize;

    fn round(
        pool: &ThreadPool,
        weight: Vec<f32>,
        gram: Vec<f64>,
        dtype: DType,
    ) -> Result<Vec<u8>, NumericError> {
        let n_in = gram.len().isqrt();
        Feedback::new(gram, n_in)?.round(pool, weight, dtype)
    }

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
            let fed = round(&pool, weight.clone(), gram.clone(), dtype).unwrap();
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
            let fed = round(&ThreadPool::new(1), on_grid.clone(), gram.clone(), dtype);
            let mut again = vec![0.0; values.len()];
            dequantize(dtype, &fed.unwrap(), &mut again);
            let gap = on_grid.iter().zip(&again).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(gap < 2e-3, "{dtype}: moved by {gap}");
        }
    }

    #[test]
    fn broken_input_is_an_error() {
        let pool = ThreadPool::new(1);
        let nan = round(&pool, vec![f32::NAN; 32], vec![0.0; 1024], DType::Q4_0);
        assert!(nan.is_err());
        assert!(round(&pool, vec![0.0; 31], vec![0.0; 961], DType::Q4_0).is_err());
    }
}
