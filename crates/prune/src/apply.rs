//! Turns a decision about one layer into matrices in their storage dtype.

use crate::error::PruneError;
use crate::matrix::gather;
use crate::methods::{Recovery, unit_range};
use crate::overlay::LayerWeights;
use crate::projection::numeric;
use crate::rounding::{Feedback, feeds_back};
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
    quantized_rows(layer_idx, n_rows, n_cols, dtype, |nth, out| {
        quantize(dtype, &values[nth * n_cols..(nth + 1) * n_cols], out)
    })
}

/// A matrix `[n_rows, n_cols]` in `dtype` whose rows `quantized` writes.
fn quantized_rows<E: std::error::Error>(
    layer_idx: LayerIdx,
    n_rows: usize,
    n_cols: usize,
    dtype: DType,
    mut quantized: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
) -> Result<WeightMatrix, PruneError> {
    let numeric = |what: String| PruneError::Numeric { layer_idx, what };
    let row_bytes = dtype.row_bytes(n_cols).ok_or_else(|| numeric(format!("{n_cols} columns in {dtype}")))?;
    let mut bytes = vec![0; n_rows * row_bytes];
    for (nth, out) in bytes.chunks_exact_mut(row_bytes).enumerate() {
        quantized(nth, out).map_err(|error| numeric(error.to_string()))?;
    }
    WeightMatrix::new(dtype, n_rows, n_cols, Bytes::from(bytes)).map_err(|error| numeric(error.to_string()))
}

/// Stores `values` `[n_rows, n_cols]` in `dtype`, their rounding error fed back.
pub(crate) fn round_matrix(
    pool: &ThreadPool,
    layer_idx: LayerIdx,
    values: Vec<f32>,
    n_cols: usize,
    (feedback, dtype): (&Feedback, DType),
) -> Result<WeightMatrix, PruneError> {
    let n_rows = values.len() / n_cols.max(1);
    let bytes = feedback.round(pool, values, dtype).map_err(|error| numeric(layer_idx, &error))?;
    WeightMatrix::new(dtype, n_rows, n_cols, Bytes::from(bytes)).map_err(|error| numeric(layer_idx, &error))
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
    let mut values = vec![0.0; n_cols];
    quantized_rows(layer_idx, rows.len(), n_cols, dtype, |nth, out| {
        matrix.dequantize_row(rows[nth], &mut values);
        quantize(dtype, &values, out)
    })
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

/// Stores a recovered output projection `[n_out, kept columns]`; block formats feed their rounding error back
/// through the Gram matrix of the statistics, where there is one.
pub(crate) fn store_projection(
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
    let gram = gather(&gram, stats.n_in, kept);
    let feedback = gram.and_then(|gram| Feedback::of_gram(gram, n_kept));
    let feedback = feedback.map_err(|error| numeric(layer_idx, &error))?;
    round_matrix(pool, layer_idx, weight, n_kept, (&feedback, dtype))
}

/// Rows of a matrix or entries of a vector that stay.
struct Rows<'a> {
    matrix: WeightRole,
    bias: WeightRole,
    kept: &'a [usize],
}

/// Takes the rows that stay of every matrix of `cuts` and of its bias, and puts the recovered projection with its
/// bias beside them. `student` holds the layer in its storage dtypes.
fn cut(
    student: &dyn WeightSource,
    layer_idx: LayerIdx,
    cuts: &[Rows<'_>],
    (role, bias_role): (WeightRole, WeightRole),
    recovered: Recovered<'_>,
) -> Result<LayerWeights, PruneError> {
    let mut weights = LayerWeights::new();
    for rows in cuts {
        let matrix = student.require(WeightId::layer(layer_idx, rows.matrix))?;
        weights.insert(rows.matrix, take_rows(layer_idx, &matrix, rows.kept, matrix.dtype())?);
        if let Some(vector) = student.weight(WeightId::layer(layer_idx, rows.bias))? {
            weights.insert(rows.bias, take_entries(&vector, rows.kept, layer_idx)?);
        }
    }
    let n_out = recovered.weight.n_rows();
    weights.insert(role, recovered.weight);
    if let Some(bias) = recovered.bias {
        let old = student.weight(WeightId::layer(layer_idx, bias_role))?;
        let mut sum = old.map_or_else(|| vec![0.0; n_out], |old| old.to_f32());
        sum.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
        weights.insert(bias_role, to_matrix(layer_idx, &sum, 1, n_out, DType::F32)?);
    }
    Ok(weights)
}

/// An output projection as it is stored, and what is added to its bias.
pub(crate) struct Recovered<'a> {
    /// `[hidden, kept columns]`.
    pub(crate) weight: WeightMatrix,
    /// `[hidden]`.
    pub(crate) bias: Option<&'a [f32]>,
}

/// Cuts the MLP of a layer to the neurons `kept`.
pub(crate) fn cut_mlp(
    student: &dyn WeightSource,
    layer_idx: LayerIdx,
    kept: &[usize],
    down: Recovered<'_>,
) -> Result<LayerWeights, PruneError> {
    use WeightRole::{DownBias, DownProj, GateBias, GateProj, UpBias, UpProj};
    let cuts = [Rows { matrix: GateProj, bias: GateBias, kept }, Rows { matrix: UpProj, bias: UpBias, kept }];
    cut(student, layer_idx, &cuts, (DownProj, DownBias), down)
}

/// Cuts the attention of a layer to the KV groups `kept`: query heads leave with the key and value head they read.
pub(crate) fn cut_attention(
    student: &dyn WeightSource,
    layer_idx: LayerIdx,
    kept: &[usize],
    output: Recovered<'_>,
) -> Result<LayerWeights, PruneError> {
    use WeightRole::{KBias, KProj, OBias, OProj, QBias, QProj, VBias, VProj};
    let config = student.config();
    let kv_rows = unit_range(kept, config.head_dim);
    let q_rows = unit_range(kept, config.head_dim * config.layers[layer_idx].heads_per_kv_group());
    let cuts = [
        Rows { matrix: QProj, bias: QBias, kept: &q_rows },
        Rows { matrix: KProj, bias: KBias, kept: &kv_rows },
        Rows { matrix: VProj, bias: VBias, kept: &kv_rows },
    ];
    cut(student, layer_idx, &cuts, (OProj, OBias), output)
}

/// The shape of a layer that keeps `width` neurons and `kv_groups` KV groups.
pub(crate) fn narrowed(layer: LayerConfig, width: usize, kv_groups: usize) -> LayerConfig {
    LayerConfig {
        num_attention_heads: kv_groups * layer.heads_per_kv_group(),
        num_key_value_heads: kv_groups,
        intermediate_size: width,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::{OverlaySource, read_layer, write_layer};
    use secateur_engine::{LayerRunner, Sublayer};
    use secateur_model::{Architecture, ModelConfig, RopeLayout, RopeScaling, WeightError};
    use secateur_test_support::Rng;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    const HIDDEN: usize = 16;
    const HEAD_DIM: usize = 4;

    struct Source(ModelConfig, BTreeMap<WeightRole, WeightMatrix>);

    impl WeightSource for Source {
        fn config(&self) -> &ModelConfig {
            &self.0
        }

        fn weight(&self, id: WeightId) -> Result<Option<WeightMatrix>, WeightError> {
            Ok(self.1.get(&id.role).cloned())
        }

        fn give_back_rows(&self, _id: WeightId, _n_rows: usize) {}
    }

    /// One layer with six query heads over three KV heads and biases everywhere.
    fn source() -> Source {
        use WeightRole::{
            AttnNorm, DownBias, DownProj, GateBias, GateProj, KBias, KProj, MlpNorm, OBias, OProj, QBias,
            QProj, UpBias, UpProj, VBias, VProj,
        };
        let layer = LayerConfig { num_attention_heads: 6, num_key_value_heads: 3, intermediate_size: 8 };
        let config = ModelConfig {
            architecture: Architecture::Llama,
            name: String::new(),
            hidden_size: HIDDEN,
            vocab_size: 32,
            head_dim: HEAD_DIM,
            max_position_embeddings: 64,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_layout: RopeLayout::Halves,
            rope_scaling: RopeScaling::None,
            tie_word_embeddings: true,
            layers: vec![layer],
        };
        let shapes = [
            (AttnNorm, 1, HIDDEN),
            (MlpNorm, 1, HIDDEN),
            (QProj, 24, HIDDEN),
            (QBias, 1, 24),
            (KProj, 12, HIDDEN),
            (KBias, 1, 12),
            (VProj, 12, HIDDEN),
            (VBias, 1, 12),
            (OProj, HIDDEN, 24),
            (OBias, 1, HIDDEN),
            (GateProj, 8, HIDDEN),
            (GateBias, 1, 8),
            (UpProj, 8, HIDDEN),
            (UpBias, 1, 8),
            (DownProj, HIDDEN, 8),
            (DownBias, 1, HIDDEN),
        ];
        let mut rng = Rng::new(7);
        let mut matrix = |n_rows: usize, n_cols: usize| {
            let values: Vec<f32> = (0..n_rows * n_cols).map(|_| rng.normal()).collect();
            to_matrix(0, &values, n_rows, n_cols, DType::F32).unwrap()
        };
        let weights = shapes.into_iter().map(|(role, n_rows, n_cols)| (role, matrix(n_rows, n_cols)));
        Source(config, weights.collect())
    }

    fn masked(weight: &WeightMatrix, kept: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let (values, n_cols) = (weight.to_f32(), weight.n_cols());
        let masked = values.iter().enumerate();
        let masked = masked.map(|(at, &value)| if kept.contains(&(at % n_cols)) { value } else { 0.0 });
        let sliced = values.chunks(n_cols).flat_map(|row| kept.iter().map(|&at| row[at])).collect();
        (masked.collect(), sliced)
    }

    fn run(source: &dyn WeightSource, sublayer: Sublayer) -> Vec<f32> {
        let mut rng = Rng::new(9);
        let hidden: Vec<f32> = (0..5 * HIDDEN).map(|_| rng.normal()).collect();
        let runner = LayerRunner::new(source, 0, Arc::new(ThreadPool::new(1))).unwrap();
        runner.run(sublayer, &hidden).unwrap().unwrap().output().to_vec()
    }

    /// What is cut equals the same layer with the inputs of its output projection masked, also after a way through a
    /// layer file.
    fn check_cut(role: WeightRole, units: &[usize], unit_len: usize, shape: LayerConfig) {
        let mut base = source();
        let columns = unit_range(units, unit_len);
        let (masked, sliced) = masked(&base.1[&role], &columns);
        let weight = to_matrix(0, &sliced, HIDDEN, columns.len(), DType::F32).unwrap();
        let bias = vec![0.5; HIDDEN];
        let recovered = Recovered { weight, bias: Some(&bias) };
        let (weights, sublayer, bias_role) = match role {
            WeightRole::OProj => {
                (cut_attention(&base, 0, units, recovered), Sublayer::Attn, WeightRole::OBias)
            }
            _ => (cut_mlp(&base, 0, units, recovered), Sublayer::Mlp, WeightRole::DownBias),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        write_layer(&path, &weights.unwrap()).unwrap();
        base.1.insert(role, to_matrix(0, &masked, HIDDEN, masked.len() / HIDDEN, DType::F32).unwrap());
        let shifted: Vec<f32> = base.1[&bias_role].to_f32().iter().map(|value| value + 0.5).collect();
        base.1.insert(bias_role, to_matrix(0, &shifted, 1, HIDDEN, DType::F32).unwrap());
        let want = run(&base, sublayer);
        let mut cut = OverlaySource::new(Arc::new(source()));
        cut.put_memory(0, shape, read_layer(&path).unwrap());
        for (got, want) in run(&cut, sublayer).iter().zip(want) {
            assert!((got - want).abs() < 1e-4, "{got} is not {want}");
        }
    }

    #[test]
    fn whole_kv_groups_leave_an_attention() {
        let layer = source().0.layers[0];
        for units in [&[0, 2][..], &[1], &[0, 1, 2]] {
            check_cut(WeightRole::OProj, units, 2 * HEAD_DIM, narrowed(layer, 8, units.len()));
        }
    }

    #[test]
    fn neurons_leave_an_mlp() {
        let layer = source().0.layers[0];
        for units in [&[0, 3, 5][..], &[7], &[0, 1, 2, 3, 4, 5, 6, 7]] {
            check_cut(WeightRole::DownProj, units, 1, narrowed(layer, units.len(), 3));
        }
    }
}
