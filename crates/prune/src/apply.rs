//! Turns a decision about one layer into matrices in their storage dtype.

use crate::error::PruneError;
use crate::layer_pass::numeric;
use crate::matrix::gather;
use crate::methods::Recovery;
use crate::overlay::LayerWeights;
use crate::refit::Damping;
use crate::rounding::{feeds_back, round_with_feedback};
use crate::stats::LayerStats;
use bytes::Bytes;
use secateur_model::{LayerConfig, LayerIdx, WeightId, WeightRole, WeightSource};
use secateur_tensor::blocks::quantize;
use secateur_tensor::kernels::ThreadPool;
use secateur_tensor::{DType, WeightMatrix};

/// The dtype in which a changed matrix is stored: the one asked for, else the source's when we can write it,
/// else Q8_0; and F16 when rows of `n_cols` do not divide into its blocks.
pub(crate) fn storage_dtype(asked: Option<DType>, source: DType, n_cols: usize) -> DType {
    let writable =
        matches!(source, DType::F32 | DType::F16 | DType::BF16 | DType::Q8_0 | DType::Q4_0 | DType::Q4_1);
    let dtype = asked.unwrap_or(if writable { source } else { DType::Q8_0 });
    if dtype.row_bytes(n_cols).is_some() { dtype } else { DType::F16 }
}

/// Stores `values` `[n_rows, n_cols]` in `dtype`.
pub(crate) fn to_matrix(
    layer_idx: LayerIdx,
    values: &[f32],
    n_rows: usize,
    n_cols: usize,
    dtype: DType,
) -> Result<WeightMatrix, PruneError> {
    let numeric = |what: String| PruneError::Numeric { layer_idx, what };
    let row_bytes = dtype.row_bytes(n_cols).ok_or_else(|| numeric(format!("{n_cols} columns in {dtype}")))?;
    let mut bytes = vec![0; n_rows * row_bytes];
    for (row, out) in values.chunks_exact(n_cols).zip(bytes.chunks_exact_mut(row_bytes)) {
        quantize(dtype, row, out).map_err(|error| numeric(error.to_string()))?;
    }
    WeightMatrix::new(dtype, n_rows, n_cols, Bytes::from(bytes)).map_err(|error| numeric(error.to_string()))
}

/// The rows `rows` of `matrix` in `dtype`; bytes are copied when the dtype is already right.
fn take_rows(
    layer_idx: LayerIdx,
    matrix: &WeightMatrix,
    rows: &[usize],
    dtype: DType,
) -> Result<WeightMatrix, PruneError> {
    let n_cols = matrix.n_cols();
    if matrix.dtype() == dtype {
        let mut bytes = Vec::with_capacity(rows.len() * matrix.row_bytes());
        rows.iter().for_each(|&row| bytes.extend_from_slice(matrix.row(row)));
        return WeightMatrix::new(dtype, rows.len(), n_cols, Bytes::from(bytes))
            .map_err(|error| PruneError::Numeric { layer_idx, what: error.to_string() });
    }
    let mut values = vec![0.0; rows.len() * n_cols];
    for (&row, out) in rows.iter().zip(values.chunks_exact_mut(n_cols)) {
        matrix.dequantize_row(row, out);
    }
    to_matrix(layer_idx, &values, rows.len(), n_cols, dtype)
}

/// The entries `rows` of a vector.
fn take_entries(
    vector: &WeightMatrix,
    rows: &[usize],
    layer_idx: LayerIdx,
) -> Result<WeightMatrix, PruneError> {
    let values = vector.to_f32();
    let kept: Vec<f32> = rows.iter().map(|&row| values[row]).collect();
    to_matrix(layer_idx, &kept, 1, kept.len(), DType::F32)
}

/// All matrices of a layer in the dtype asked for: what the student runs before its MLP is cut.
/// Empty when the source's dtypes stay, so that the mapped bytes are used.
pub(crate) fn convert_layer(
    source: &dyn WeightSource,
    layer_idx: LayerIdx,
    asked: Option<DType>,
) -> Result<LayerWeights, PruneError> {
    let mut weights = LayerWeights::new();
    if asked.is_none() {
        return Ok(weights);
    }
    for role in WeightRole::LAYER_MATRICES {
        if let Some(matrix) = source.weight(WeightId::layer(layer_idx, role))? {
            let dtype = storage_dtype(asked, matrix.dtype(), matrix.n_cols());
            let rows: Vec<usize> = (0..matrix.n_rows()).collect();
            if dtype != matrix.dtype() {
                weights.insert(role, take_rows(layer_idx, &matrix, &rows, dtype)?);
            }
        }
    }
    Ok(weights)
}

/// Stores a recovered down projection `[n_out, kept]`; block formats feed their rounding error back through
/// the Gram matrix of the statistics, where there is one.
pub(crate) fn store_down(
    pool: &ThreadPool,
    layer_idx: LayerIdx,
    recovery: &mut Recovery,
    kept: &[usize],
    stats: &LayerStats,
    dtype: DType,
) -> Result<WeightMatrix, PruneError> {
    let weight = std::mem::take(&mut recovery.weight);
    let n_kept = kept.len();
    let n_out = weight.len() / n_kept.max(1);
    let Some(gram) = stats.gram_view().ok().filter(|_| feeds_back(dtype)) else {
        return to_matrix(layer_idx, &weight, n_out, n_kept, dtype);
    };
    let fail = |error: &dyn std::error::Error| numeric(layer_idx, error);
    let mut damped = gather(&gram, stats.n_in, kept).map_err(|error| fail(&error))?;
    let diagonal: Vec<f64> = (0..n_kept).map(|at| damped[at * n_kept + at]).collect();
    for (at, lambda) in Damping::DEFAULT.lambda(&diagonal).into_iter().enumerate() {
        damped[at * n_kept + at] += lambda;
    }
    let bytes = round_with_feedback(pool, weight, n_kept, damped, dtype).map_err(|error| fail(&error))?;
    WeightMatrix::new(dtype, n_out, n_kept, Bytes::from(bytes)).map_err(|error| fail(&error))
}

/// Cuts the MLP of a layer to the neurons `kept`, with the recovered down projection `down` and its bias.
///
/// `student` holds the layer in its storage dtypes; `down` is `[hidden, kept]`.
pub(crate) fn cut_mlp(
    student: &dyn WeightSource,
    layer_idx: LayerIdx,
    kept: &[usize],
    down: WeightMatrix,
    bias: Option<&[f32]>,
) -> Result<LayerWeights, PruneError> {
    let mut weights = LayerWeights::new();
    for role in [WeightRole::GateProj, WeightRole::UpProj] {
        let matrix = student.require(WeightId::layer(layer_idx, role))?;
        weights.insert(role, take_rows(layer_idx, &matrix, kept, matrix.dtype())?);
    }
    for role in [WeightRole::GateBias, WeightRole::UpBias] {
        if let Some(vector) = student.weight(WeightId::layer(layer_idx, role))? {
            weights.insert(role, take_entries(&vector, kept, layer_idx)?);
        }
    }
    let n_out = down.n_rows();
    weights.insert(WeightRole::DownProj, down);
    if let Some(bias) = bias {
        let old = student.weight(WeightId::layer(layer_idx, WeightRole::DownBias))?;
        let mut sum = old.map_or_else(|| vec![0.0; n_out], |old| old.to_f32());
        sum.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
        weights.insert(WeightRole::DownBias, to_matrix(layer_idx, &sum, 1, n_out, DType::F32)?);
    }
    Ok(weights)
}

/// The shape of a layer whose MLP keeps `width` neurons.
pub(crate) fn narrowed(layer: LayerConfig, width: usize) -> LayerConfig {
    LayerConfig { intermediate_size: width, ..layer }
}
