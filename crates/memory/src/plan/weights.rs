//! How many bytes the weights of a model have, and would have in another shape.

use secateur_model::{
    DType, LayerConfig, LayerDTypes, ModelConfig, WeightError, WeightId, WeightRole, WeightSource,
    mixed_layer_bytes, writable_dtype,
};

/// Position of `o_proj` in [`WeightRole::LAYER_MATRICES`].
const O_PROJ: usize = 3;
/// Position of `down_proj` there.
const DOWN_PROJ: usize = 6;

/// Norms and biases of a layer.
const LAYER_VECTORS: [WeightRole; 9] = [
    WeightRole::AttnNorm,
    WeightRole::MlpNorm,
    WeightRole::QBias,
    WeightRole::KBias,
    WeightRole::VBias,
    WeightRole::OBias,
    WeightRole::GateBias,
    WeightRole::UpBias,
    WeightRole::DownBias,
];

/// How the weights of one layer are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerWeights {
    /// Bytes of norms and biases; taken as unchanged by a cut.
    pub vector_bytes: u64,
    /// Storage dtypes of the matrices.
    pub dtypes: LayerDTypes,
}

/// How the weights of a model are stored: what the planner has to know of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightsSummary {
    /// Bytes of the token table.
    pub embedding_bytes: u64,
    /// Dtype of the token table.
    pub embedding_dtype: DType,
    /// Bytes of a separate output head; 0 when the token table serves.
    pub head_bytes: u64,
    /// Dtype of the separate output head.
    pub head_dtype: DType,
    /// Bytes of the final norm.
    pub final_norm_bytes: u64,
    /// One for each layer.
    pub layers: Vec<LayerWeights>,
    /// Bytes of the file; what is no weight (tokenizer, metadata, padding) stays as it is.
    pub file_bytes: u64,
}

impl WeightsSummary {
    /// Summarises what `source` holds; reads no weights. `file_bytes`: size of the file.
    /// # Errors
    /// [`WeightError`] when a matrix that the configuration promises is not there.
    pub fn from_source(source: &dyn WeightSource, file_bytes: u64) -> Result<Self, WeightError> {
        let config = source.config();
        let bytes = |id: WeightId| Ok(source.weight(id)?.map_or(0, |weight| weight.data().len() as u64));
        let embedding = source.require(WeightId::global(WeightRole::EmbedTokens))?;
        let head =
            source.weight(WeightId::global(WeightRole::LmHead))?.filter(|_| !config.tie_word_embeddings);
        let mut layers = Vec::with_capacity(config.n_layers());
        for (layer_idx, layer) in config.layers.iter().enumerate() {
            let vectors = LAYER_VECTORS.into_iter().map(|role| bytes(WeightId::layer(layer_idx, role)));
            let vector_bytes = vectors.sum::<Result<u64, WeightError>>()?;
            let mut dtypes = [embedding.dtype(); WeightRole::LAYER_MATRICES.len()];
            for (at, role) in WeightRole::LAYER_MATRICES.into_iter().enumerate() {
                if has_matrix(layer, at) {
                    dtypes[at] = source.require(WeightId::layer(layer_idx, role))?.dtype();
                }
            }
            layers.push(LayerWeights { vector_bytes, dtypes });
        }
        Ok(Self {
            embedding_bytes: embedding.data().len() as u64,
            embedding_dtype: embedding.dtype(),
            head_bytes: head.as_ref().map_or(0, |head| head.data().len() as u64),
            head_dtype: head.map_or(embedding.dtype(), |head| head.dtype()),
            final_norm_bytes: bytes(WeightId::global(WeightRole::FinalNorm))?,
            layers,
            file_bytes,
        })
    }

    /// A summary of a model whose matrices are all stored in `dtype`, vectors as f32: for dry runs from a
    /// configuration alone.
    #[must_use]
    pub fn uniform(config: &ModelConfig, dtype: DType) -> Self {
        let table = matrix_bytes(config.vocab_size, config.hidden_size, dtype);
        let norm_bytes = 4 * config.hidden_size as u64;
        let layer =
            LayerWeights { vector_bytes: 2 * norm_bytes, dtypes: [dtype; WeightRole::LAYER_MATRICES.len()] };
        let mut summary = Self {
            embedding_bytes: table,
            embedding_dtype: dtype,
            head_bytes: if config.tie_word_embeddings { 0 } else { table },
            head_dtype: dtype,
            final_norm_bytes: norm_bytes,
            layers: vec![layer; config.n_layers()],
            file_bytes: 0,
        };
        summary.file_bytes = summary.base_bytes(config);
        summary
    }

    /// The same model with token table and output head stored as `dtype`; `None` when that makes it no smaller.
    pub(super) fn with_tables(&self, config: &ModelConfig, dtype: DType) -> Option<Self> {
        let table = matrix_bytes(config.vocab_size, config.hidden_size, dtype);
        let mut summary = self.clone();
        for (bytes, stored) in [
            (&mut summary.embedding_bytes, &mut summary.embedding_dtype),
            (&mut summary.head_bytes, &mut summary.head_dtype),
        ] {
            if table < *bytes {
                summary.file_bytes -= (*bytes - table).min(summary.file_bytes);
                (*bytes, *stored) = (table, dtype);
            }
        }
        (summary != *self).then_some(summary)
    }

    /// Whether the untouched layers get smaller when they are stored as `dtype`.
    pub(super) fn shrinks_layers(&self, config: &ModelConfig, dtype: DType) -> bool {
        let bytes = |dtype| -> u64 {
            (0..config.n_layers()).map(|at| self.layer_bytes(config, &config.layers, at, dtype)).sum()
        };
        bytes(Some(dtype)) < bytes(None)
    }

    /// True when a result in `dtype` stores every matrix as it is stored already.
    pub(super) fn is_all(&self, config: &ModelConfig, dtype: DType) -> bool {
        let is_stored = |bytes: u64, stored: DType| bytes == 0 || table_dtype(dtype, stored) == stored;
        let tables = is_stored(self.embedding_bytes, self.embedding_dtype)
            && is_stored(self.head_bytes, self.head_dtype);
        let of_layer = |(layer, weights): (&LayerConfig, &LayerWeights)| {
            weights.dtypes.iter().enumerate().all(|(at, &stored)| stored == dtype || !has_matrix(layer, at))
        };
        tables && config.layers.iter().zip(&self.layers).all(of_layer)
    }

    /// Dtypes of a layer in the shape `layer`: matrices whose columns are cut are fitted anew and written.
    pub(super) fn dtypes(&self, base: &LayerConfig, layer: &LayerConfig, layer_idx: usize) -> LayerDTypes {
        let mut dtypes = self.layers[layer_idx].dtypes;
        if layer.intermediate_size != base.intermediate_size {
            dtypes[DOWN_PROJ] = writable_dtype(dtypes[DOWN_PROJ]);
        }
        if layer.num_key_value_heads != base.num_key_value_heads {
            dtypes[O_PROJ] = writable_dtype(dtypes[O_PROJ]);
        }
        dtypes
    }

    /// Bytes of the layer `layers[layer_idx]`, matrices only.
    pub(super) fn layer_bytes(
        &self,
        config: &ModelConfig,
        layers: &[LayerConfig],
        layer_idx: usize,
        dtype: Option<DType>,
    ) -> u64 {
        let layer = &layers[layer_idx];
        let kept = || self.dtypes(&config.layers[layer_idx], layer, layer_idx);
        let dtypes = dtype.map_or_else(kept, |dtype| [dtype; WeightRole::LAYER_MATRICES.len()]);
        mixed_layer_bytes(config, layer, &dtypes)
    }

    /// Resident bytes of the untouched file: all of it, or the weights if they are more than the file holds.
    pub(super) fn base_bytes(&self, config: &ModelConfig) -> u64 {
        self.bytes(config, &config.layers, None)
    }

    /// Bytes of the file in another shape, and in another dtype if one is given.
    pub(super) fn bytes(&self, config: &ModelConfig, layers: &[LayerConfig], dtype: Option<DType>) -> u64 {
        let of_layers = |layers: &[LayerConfig], dtype| -> u64 {
            (0..layers.len()).map(|layer_idx| self.layer_bytes(config, layers, layer_idx, dtype)).sum()
        };
        let table = |bytes: u64, stored: DType| match dtype {
            Some(dtype) if bytes != 0 => {
                matrix_bytes(config.vocab_size, config.hidden_size, table_dtype(dtype, stored))
            }
            _ => bytes,
        };
        let vectors: u64 = self.layers.iter().map(|layer| layer.vector_bytes).sum();
        let fixed = vectors + self.final_norm_bytes;
        let base = fixed + self.embedding_bytes + self.head_bytes + of_layers(&config.layers, None);
        let other = self.file_bytes.saturating_sub(base);
        let tables =
            table(self.embedding_bytes, self.embedding_dtype) + table(self.head_bytes, self.head_dtype);
        fixed + tables + of_layers(layers, dtype) + other
    }
}

/// True when a layer of this shape has the matrix at this position of [`WeightRole::LAYER_MATRICES`].
fn has_matrix(layer: &LayerConfig, at: usize) -> bool {
    if at <= O_PROJ { layer.num_attention_heads != 0 } else { layer.intermediate_size != 0 }
}

/// How the writer stores the token table and the output head when `asked` is wanted for all matrices: as
/// llama.cpp does, 4 bits are too few for them, unless they are quantized already.
pub(super) fn table_dtype(asked: DType, stored: DType) -> DType {
    match (is_for_layers(asked), 1 < stored.block_len()) {
        (true, true) => stored,
        (true, false) => DType::Q8_0,
        (false, _) => asked,
    }
}

/// Whether a dtype asked for all matrices is for those of the layers alone.
pub(super) fn is_for_layers(dtype: DType) -> bool {
    matches!(dtype, DType::Q4_0 | DType::Q4_1)
}

fn matrix_bytes(n_rows: usize, n_cols: usize, dtype: DType) -> u64 {
    n_rows as u64 * dtype.row_bytes(n_cols).unwrap_or(2 * n_cols) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_stored_as_the_writer_does() {
        let writable = DType::ALL.into_iter().filter(|&dtype| writable_dtype(dtype) == dtype);
        for (asked, stored) in writable.flat_map(|asked| DType::ALL.map(|stored| (asked, stored))) {
            for role in [WeightRole::EmbedTokens, WeightRole::LmHead] {
                let want = secateur_model_file::stored_dtype(role, Some(asked), stored, 256);
                assert_eq!(
                    table_dtype(asked, stored),
                    want,
                    "{role:?} stored as {stored}, asked for {asked}"
                );
            }
        }
        for asked in DType::ALL {
            for role in WeightRole::LAYER_MATRICES {
                // 48 columns are no whole number of blocks: F16 on both sides.
                let want = secateur_model_file::stored_dtype(role, Some(asked), DType::F32, 48);
                assert_eq!(matrix_bytes(2, 48, asked), matrix_bytes(2, 48, want), "{asked}");
            }
        }
    }
}
