//! One decoder layer as functions over slices: the single description that graphs and decode steps share.

use crate::error::EngineError;
use crate::kv::KvLayer;
use crate::rope::Rope;
use secateur_model::{LayerConfig, LayerIdx, ModelConfig, WeightId, WeightRole, WeightSource};
use secateur_tensor::WeightMatrix;
use secateur_tensor::kernels::{
    AttentionArgs, AttentionScratch, MatmulScratch, ThreadPool, attention, matmul, matmul_add, rms_norm,
    silu_mul,
};
use std::sync::{Arc, Mutex, PoisonError};

/// A matrix with its optional bias.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) weight: WeightMatrix,
    bias: Option<Vec<f32>>,
}

impl Linear {
    fn load(source: &dyn WeightSource, shape: LinearShape) -> Result<Self, EngineError> {
        let id = WeightId::layer(shape.layer_idx, shape.role);
        let weight = source.require(id)?;
        check_shape(id, &weight, shape.n_out, shape.n_in)?;
        let bias = load_vector(source, WeightId::layer(shape.layer_idx, shape.bias), shape.n_out)?;
        Ok(Self { weight, bias })
    }

    /// `out = inputs W' + b`; `inputs`: `[n, in]`, `out`: `[n, out]`.
    pub(crate) fn apply(
        &self,
        pool: &ThreadPool,
        inputs: &[f32],
        out: &mut [f32],
        scratch: &mut MatmulScratch,
    ) {
        matmul(pool, inputs, &self.weight, out, scratch);
        self.add_bias(out);
    }

    /// `out += inputs W' + b`.
    fn apply_add(&self, pool: &ThreadPool, inputs: &[f32], out: &mut [f32], scratch: &mut MatmulScratch) {
        matmul_add(pool, inputs, &self.weight, out, scratch);
        self.add_bias(out);
    }

    fn add_bias(&self, out: &mut [f32]) {
        if let Some(bias) = &self.bias {
            for row in out.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
        }
    }
}

#[derive(Clone, Copy)]
struct LinearShape {
    layer_idx: LayerIdx,
    role: WeightRole,
    bias: WeightRole,
    n_out: usize,
    n_in: usize,
}

pub(crate) fn check_shape(
    id: WeightId,
    weight: &WeightMatrix,
    want_rows: usize,
    want_cols: usize,
) -> Result<(), EngineError> {
    let (n_rows, n_cols) = (weight.n_rows(), weight.n_cols());
    if (n_rows, n_cols) == (want_rows, want_cols) {
        return Ok(());
    }
    Err(EngineError::WeightShape { id, n_rows, n_cols, want_rows, want_cols })
}

/// A norm or a bias as f32, if the model has it.
pub(crate) fn load_vector(
    source: &dyn WeightSource,
    id: WeightId,
    len: usize,
) -> Result<Option<Vec<f32>>, EngineError> {
    let Some(weight) = source.weight(id)? else { return Ok(None) };
    check_shape(id, &weight, 1, len)?;
    Ok(Some(weight.to_f32()))
}

pub(crate) fn require_vector(
    source: &dyn WeightSource,
    id: WeightId,
    len: usize,
) -> Result<Vec<f32>, EngineError> {
    let vector = load_vector(source, id, len)?;
    vector.ok_or(EngineError::Weight(secateur_model::WeightError::Missing(id)))
}

/// Weights of the attention sub-layer.
#[derive(Clone, Debug)]
pub(crate) struct AttnWeights {
    norm: Vec<f32>,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
}

/// Weights of the MLP sub-layer.
#[derive(Clone, Debug)]
pub(crate) struct MlpWeights {
    norm: Vec<f32>,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

/// What a graph run may borrow from a session: its cache of this layer and how full it is.
pub(crate) struct KvLoan {
    pub(crate) cache: KvLayer,
    pub(crate) past_len: usize,
}

/// One layer ready to run: weights in place, threads, and a slot for the cache of whoever is running.
pub struct LayerContext {
    pub(crate) layer_idx: LayerIdx,
    pub(crate) config: LayerConfig,
    pub(crate) hidden_size: usize,
    head_dim: usize,
    eps: f32,
    rope: Rope,
    pool: Arc<ThreadPool>,
    pub(crate) attn: Option<AttnWeights>,
    pub(crate) mlp: Option<MlpWeights>,
    pub(crate) kv_slot: Mutex<Option<KvLoan>>,
    scratch: SharedScratch,
}

impl std::fmt::Debug for LayerContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerContext")
            .field("layer_idx", &self.layer_idx)
            .field("config", &self.config)
            .finish()
    }
}

/// Buffers that the layers of one engine share: they run one after another, and thirty sets of buffers for
/// a prompt chunk would outweigh the model.
pub(crate) type SharedScratch = Arc<Mutex<LayerScratch>>;

/// Buffers that outlive a call.
#[derive(Default)]
pub(crate) struct LayerScratch {
    matmul: MatmulScratch,
    attention: AttentionScratch,
    rope_table: Vec<f32>,
    up: Vec<f32>,
}

impl LayerContext {
    /// Resolves the weights of a layer. Cheap: shares the mapped bytes.
    /// # Errors
    /// [`EngineError`] when a weight is missing or has the wrong shape.
    pub fn new(
        source: &dyn WeightSource,
        layer_idx: LayerIdx,
        pool: Arc<ThreadPool>,
    ) -> Result<Self, EngineError> {
        Self::with_shared_scratch(source, layer_idx, pool, SharedScratch::default())
    }

    /// As [`Self::new`], with buffers that other layers use too.
    pub(crate) fn with_shared_scratch(
        source: &dyn WeightSource,
        layer_idx: LayerIdx,
        pool: Arc<ThreadPool>,
        scratch: SharedScratch,
    ) -> Result<Self, EngineError> {
        let model = source.config();
        let config = model.layers[layer_idx];
        let attn = if config.num_attention_heads == 0 { None } else { Some(load_attn(source, layer_idx)?) };
        let mlp = if config.intermediate_size == 0 { None } else { Some(load_mlp(source, layer_idx)?) };
        Ok(Self {
            layer_idx,
            config,
            hidden_size: model.hidden_size,
            head_dim: model.head_dim,
            eps: model.rms_norm_eps,
            rope: Rope::new(model),
            pool,
            attn,
            mlp,
            kv_slot: Mutex::new(None),
            scratch,
        })
    }

    pub(crate) fn with_scratch<T>(&self, run: impl FnOnce(&mut LayerScratch) -> T) -> T {
        run(&mut self.scratch.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn q_width(&self) -> usize {
        self.config.num_attention_heads * self.head_dim
    }

    pub(crate) fn kv_width(&self) -> usize {
        self.config.num_key_value_heads * self.head_dim
    }

    pub(crate) fn normed(&self, norm: &[f32], hidden: &[f32], out: &mut [f32]) {
        rms_norm(&self.pool, hidden, norm, self.eps, out);
    }

    /// Queries, keys and values of `normed` `[n, hidden]`, already turned for positions from `first`.
    pub(crate) fn qkv(
        &self,
        attn: &AttnWeights,
        first: usize,
        normed: &[f32],
        [queries, keys, values]: [&mut [f32]; 3],
        scratch: &mut LayerScratch,
    ) {
        attn.q_proj.apply(&self.pool, normed, queries, &mut scratch.matmul);
        attn.k_proj.apply(&self.pool, normed, keys, &mut scratch.matmul);
        attn.v_proj.apply(&self.pool, normed, values, &mut scratch.matmul);
        let n = normed.len() / self.hidden_size;
        scratch.rope_table.resize(self.head_dim, 0.0);
        self.rope.apply(first, n, queries, keys, &mut scratch.rope_table);
    }

    /// Attention of `n` new tokens whose keys and values are in `cache` at `past_len..past_len + n`.
    pub(crate) fn attend(
        &self,
        cache: &KvLayer,
        past_len: usize,
        queries: &[f32],
        out: &mut [f32],
        scratch: &mut LayerScratch,
    ) {
        let args = AttentionArgs {
            queries,
            keys: cache.keys(),
            values: cache.values(),
            past_len,
            n_tokens: queries.len() / self.q_width(),
            n_heads: self.config.num_attention_heads,
            n_kv_heads: self.config.num_key_value_heads,
            head_dim: self.head_dim,
            context_len: cache.context_len(),
        };
        attention(&self.pool, &args, out, &mut scratch.attention);
    }

    /// `silu(normed Wg') * (normed Wu')`: the input of `down_proj`.
    pub(crate) fn gated_up(
        &self,
        mlp: &MlpWeights,
        normed: &[f32],
        out: &mut [f32],
        scratch: &mut LayerScratch,
    ) {
        let mut up = std::mem::take(&mut scratch.up);
        up.resize(out.len(), 0.0);
        mlp.gate_proj.apply(&self.pool, normed, out, &mut scratch.matmul);
        mlp.up_proj.apply(&self.pool, normed, &mut up, &mut scratch.matmul);
        silu_mul(&self.pool, out, &up);
        scratch.up = up;
    }

    pub(crate) fn linear(&self, linear: &Linear, inputs: &[f32], out: &mut [f32]) {
        self.with_scratch(|scratch| linear.apply(&self.pool, inputs, out, &mut scratch.matmul));
    }

    /// The whole layer for one token, in place; nothing is allocated once the buffers have their size.
    pub(crate) fn decode_step(
        &self,
        hidden: &mut [f32],
        cache: &mut KvLayer,
        past_len: usize,
        buffers: &mut DecodeBuffers,
        scratch: &mut LayerScratch,
    ) {
        let normed = &mut buffers.normed[..];
        if let Some(attn) = &self.attn {
            let (q_width, kv_width) = (self.q_width(), self.kv_width());
            let queries = &mut buffers.queries[..q_width];
            let keys = &mut buffers.keys[..kv_width];
            let values = &mut buffers.values[..kv_width];
            self.normed(&attn.norm, hidden, normed);
            self.qkv(attn, past_len, normed, [queries, keys, values], scratch);
            cache.append(past_len, 1, keys, values);
            let mixed = &mut buffers.mixed[..q_width];
            self.attend(cache, past_len, queries, mixed, scratch);
            attn.o_proj.apply_add(&self.pool, mixed, hidden, &mut scratch.matmul);
        }
        if let Some(mlp) = &self.mlp {
            let inner = &mut buffers.inner[..self.config.intermediate_size];
            self.normed(&mlp.norm, hidden, normed);
            self.gated_up(mlp, normed, inner, scratch);
            mlp.down_proj.apply_add(&self.pool, inner, hidden, &mut scratch.matmul);
        }
    }

    /// An empty cache that exactly holds a window of `n` tokens.
    pub(crate) fn window_cache(&self, n: usize) -> KvLayer {
        KvLayer::new(&self.config, self.head_dim, n, secateur_model::KvDType::F32)
    }

    pub(crate) fn attn_norm<'a>(&self, attn: &'a AttnWeights) -> &'a [f32] {
        &attn.norm
    }

    pub(crate) fn mlp_norm<'a>(&self, mlp: &'a MlpWeights) -> &'a [f32] {
        &mlp.norm
    }
}

impl AttnWeights {
    pub(crate) fn o_proj(&self) -> &Linear {
        &self.o_proj
    }
}

impl MlpWeights {
    pub(crate) fn down_proj(&self) -> &Linear {
        &self.down_proj
    }
}

/// One token's activations, sized for the widest layer.
pub(crate) struct DecodeBuffers {
    normed: Vec<f32>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    mixed: Vec<f32>,
    inner: Vec<f32>,
}

impl DecodeBuffers {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let widest = |of: fn(&LayerConfig) -> usize| config.layers.iter().map(of).max().unwrap_or(0);
        let q_width = widest(|layer| layer.num_attention_heads) * config.head_dim;
        let kv_width = widest(|layer| layer.num_key_value_heads) * config.head_dim;
        Self {
            normed: vec![0.0; config.hidden_size],
            queries: vec![0.0; q_width],
            keys: vec![0.0; kv_width],
            values: vec![0.0; kv_width],
            mixed: vec![0.0; q_width],
            inner: vec![0.0; widest(|layer| layer.intermediate_size)],
        }
    }
}

fn load_attn(source: &dyn WeightSource, layer_idx: LayerIdx) -> Result<AttnWeights, EngineError> {
    let model = source.config();
    let config = model.layers[layer_idx];
    let hidden = model.hidden_size;
    let q_width = config.num_attention_heads * model.head_dim;
    let kv_width = config.num_key_value_heads * model.head_dim;
    let linear =
        |role, bias, n_out, n_in| Linear::load(source, LinearShape { layer_idx, role, bias, n_out, n_in });
    Ok(AttnWeights {
        norm: require_vector(source, WeightId::layer(layer_idx, WeightRole::AttnNorm), hidden)?,
        q_proj: linear(WeightRole::QProj, WeightRole::QBias, q_width, hidden)?,
        k_proj: linear(WeightRole::KProj, WeightRole::KBias, kv_width, hidden)?,
        v_proj: linear(WeightRole::VProj, WeightRole::VBias, kv_width, hidden)?,
        o_proj: linear(WeightRole::OProj, WeightRole::OBias, hidden, q_width)?,
    })
}

fn load_mlp(source: &dyn WeightSource, layer_idx: LayerIdx) -> Result<MlpWeights, EngineError> {
    let model = source.config();
    let width = model.layers[layer_idx].intermediate_size;
    let hidden = model.hidden_size;
    let linear =
        |role, bias, n_out, n_in| Linear::load(source, LinearShape { layer_idx, role, bias, n_out, n_in });
    Ok(MlpWeights {
        norm: require_vector(source, WeightId::layer(layer_idx, WeightRole::MlpNorm), hidden)?,
        gate_proj: linear(WeightRole::GateProj, WeightRole::GateBias, width, hidden)?,
        up_proj: linear(WeightRole::UpProj, WeightRole::UpBias, width, hidden)?,
        down_proj: linear(WeightRole::DownProj, WeightRole::DownBias, hidden, width)?,
    })
}
