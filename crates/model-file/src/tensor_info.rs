//! One tensor of a model file.

use secateur_tensor::DType;
use std::ops::Range;

/// A tensor as it stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    /// The fastest first; never empty, no zero, product checked.
    pub(crate) dims: Vec<usize>,
    /// Which file of the model.
    pub(crate) shard: usize,
    /// Bytes in that file.
    pub(crate) range: Range<usize>,
}

impl TensorInfo {
    /// Name in the file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Storage type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape with the slowest dimension first: `[out, in]` or `[n]`.
    #[must_use]
    pub fn shape(&self) -> Vec<usize> {
        self.dims.iter().rev().copied().collect()
    }

    /// Number of values.
    #[must_use]
    pub fn n_values(&self) -> u64 {
        self.dims.iter().map(|&dim| dim as u64).product()
    }

    /// Where its bytes are in the file.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Bytes in the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.range.len() as u64
    }
}
