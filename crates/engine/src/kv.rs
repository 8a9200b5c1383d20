//! Keys and values of one layer, `[n_kv_heads, context_len, head_dim]`, allocated once.

use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use secateur_model::{KvDType, LayerConfig};
use secateur_tensor::DType;
use secateur_tensor::blocks::quantize;
use secateur_tensor::kernels::KvSlice;

/// The cache of one layer.
#[derive(Clone, Debug)]
pub(crate) struct KvLayer {
    n_kv_heads: usize,
    head_dim: usize,
    context_len: usize,
    keys: KvBuffer,
    values: KvBuffer,
}

#[derive(Clone, Debug)]
enum KvBuffer {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Q8_0(Vec<u8>),
}

impl KvBuffer {
    /// `n_values` of them, zeroed, so that pages stay untouched until tokens fill them.
    fn zeroed(n_values: usize, dtype: KvDType) -> Self {
        match dtype {
            KvDType::F32 => Self::F32(vec![0.0; n_values]),
            KvDType::F16 => Self::F16(f16_zeros(n_values)),
            KvDType::Q8_0 => Self::Q8_0(vec![0; q8_bytes(n_values)]),
        }
    }

    fn store(&mut self, at: usize, row: &[f32]) {
        match self {
            Self::F32(buffer) => buffer[at..at + row.len()].copy_from_slice(row),
            Self::F16(buffer) => buffer[at..at + row.len()].convert_from_f32_slice(row),
            Self::Q8_0(buffer) => {
                let bytes = &mut buffer[q8_bytes(at)..q8_bytes(at + row.len())];
                if quantize(DType::Q8_0, row, bytes).is_err() {
                    // A row that is not finite has no bytes. Scales that are NaN make it show, as in the float types.
                    bytes.fill(0xff);
                }
            }
        }
    }

    fn view(&self) -> KvSlice<'_> {
        match self {
            Self::F32(buffer) => KvSlice::F32(buffer),
            Self::F16(buffer) => KvSlice::F16(buffer),
            Self::Q8_0(buffer) => KvSlice::Q8_0(buffer),
        }
    }
}

/// Bytes of `n_values`, a multiple of 32.
fn q8_bytes(n_values: usize) -> usize {
    n_values / DType::Q8_0.block_len() * DType::Q8_0.block_bytes()
}

/// Zeros that take no memory until they are written: the standard library asks the system for them only where it knows
/// the type, such as integers.
fn f16_zeros(len: usize) -> Vec<f16> {
    vec![0_u16; len].reinterpret_into()
}

/// Numbers of values in a row of one head, before and after.
struct Resize {
    n_kv_heads: usize,
    old_row: usize,
    new_row: usize,
    n_kept: usize,
}

impl Resize {
    fn apply(&self, buffer: &KvBuffer) -> KvBuffer {
        let len = self.n_kv_heads * self.new_row;
        match buffer {
            KvBuffer::F32(values) => KvBuffer::F32(self.moved(values, vec![0.0; len])),
            KvBuffer::F16(values) => KvBuffer::F16(self.moved(values, f16_zeros(len))),
            KvBuffer::Q8_0(bytes) => {
                let in_bytes = Self {
                    old_row: q8_bytes(self.old_row),
                    new_row: q8_bytes(self.new_row),
                    n_kept: q8_bytes(self.n_kept),
                    ..*self
                };
                KvBuffer::Q8_0(in_bytes.moved(bytes, vec![0; q8_bytes(len)]))
            }
        }
    }

    fn moved<T: Copy>(&self, old: &[T], mut new: Vec<T>) -> Vec<T> {
        for head in 0..self.n_kv_heads {
            let kept = &old[head * self.old_row..][..self.n_kept];
            new[head * self.new_row..][..self.n_kept].copy_from_slice(kept);
        }
        new
    }
}

impl KvLayer {
    pub(crate) fn new(layer: &LayerConfig, head_dim: usize, context_len: usize, dtype: KvDType) -> Self {
        let n_kv_heads = layer.num_key_value_heads;
        let len = n_kv_heads * context_len * head_dim;
        Self {
            n_kv_heads,
            head_dim,
            context_len,
            keys: KvBuffer::zeroed(len, dtype),
            values: KvBuffer::zeroed(len, dtype),
        }
    }

    /// Whether `n` tokens of such a layer can be put here, in f32.
    pub(crate) fn fits(&self, layer: &LayerConfig, head_dim: usize, n: usize) -> bool {
        let is_f32 = matches!(self.keys, KvBuffer::F32(_));
        is_f32
            && (self.n_kv_heads, self.head_dim) == (layer.num_key_value_heads, head_dim)
            && n <= self.context_len
    }

    pub(crate) fn context_len(&self) -> usize {
        self.context_len
    }

    /// A cache with `context_len` places and the first `n_kept` tokens of this one.
    pub(crate) fn copied(&self, context_len: usize, n_kept: usize) -> Self {
        let shape = Resize {
            n_kv_heads: self.n_kv_heads,
            old_row: self.context_len * self.head_dim,
            new_row: context_len * self.head_dim,
            n_kept: n_kept * self.head_dim,
        };
        Self { context_len, keys: shape.apply(&self.keys), values: shape.apply(&self.values), ..*self }
    }

    /// Stores the keys and values of `n` tokens, rows of `[n_kv_heads * head_dim]`, from position `past_len`.
    pub(crate) fn append(&mut self, past_len: usize, n: usize, keys: &[f32], values: &[f32]) {
        let width = self.n_kv_heads * self.head_dim;
        for row in 0..n {
            for head in 0..self.n_kv_heads {
                let from = row * width + head * self.head_dim;
                let at = (head * self.context_len + past_len + row) * self.head_dim;
                self.keys.store(at, &keys[from..from + self.head_dim]);
                self.values.store(at, &values[from..from + self.head_dim]);
            }
        }
    }

    pub(crate) fn keys(&self) -> KvSlice<'_> {
        self.keys.view()
    }

    pub(crate) fn values(&self) -> KvSlice<'_> {
        self.values.view()
    }
}
