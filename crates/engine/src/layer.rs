//! One decoder layer as functions over slices: the single description that graphs and decode steps share.

use crate::error::EngineError;
use crate::kv::KvLayer;
use crate::rope::{Rope, RopeAngles};
use secateur_model::{LayerConfig, LayerIdx, WeightId, WeightRole, WeightSource};
use secateur_tensor::WeightMatrix;
use secateur_tensor::kernels::{
    AttentionArgs, AttentionScratch, MatmulMode, MatmulScratch, Precision, Projection, Store, ThreadPool,
    add_in_place, attention, matmul_each, rms_norm, rotate_heads, silu_mul, sized,
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

    /// `out = inputs W' + b`, or `out += inputs W' + b`; `inputs`: `[n, in]`, `out`: `[n, out]`.
    fn apply(
        &self,
        pool: &ThreadPool,
        inputs: &[f32],
        out: &mut [f32],
        mode: MatmulMode,
        scratch: &mut MatmulScratch,
    ) {
        matmul_each(pool, inputs, &mut [Projection { weight: &self.weight, out }], scratch, mode);
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

/// The tokens of a step, and how they are computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// Position of the first token.
    pub(crate) first: usize,
    /// How activations enter the products with weights.
    pub(crate) precision: Precision,
}

impl Step {
    /// A window that starts a sequence, computed exactly: what calibration sees.
    pub(crate) const WINDOW: Self = Self { first: 0, precision: Precision::F32 };

    fn mode(self, store: Store) -> MatmulMode {
        MatmulMode { precision: self.precision, store }
    }
}

/// One layer ready to run: weights in place, and threads.
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

/// Buffers that outlive a call. They grow to what the largest step needs, and stay.
#[derive(Default)]
pub(crate) struct LayerScratch {
    pub(crate) kernels: KernelScratch,
    pub(crate) attention: AttentionScratch,
    /// Beside the output of `gate_proj`.
    pub(crate) up: Vec<f32>,
    normed: Vec<f32>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    mixed: Vec<f32>,
    inner: Vec<f32>,
    /// What a half of a layer needs inside when it runs alone over a window.
    half: Vec<f32>,
    /// Keys and values of a window.
    window: Option<KvLayer>,
}

/// Buffers of the products, and the angles of the step's tokens.
#[derive(Default)]
pub(crate) struct KernelScratch {
    pub(crate) matmul: MatmulScratch,
    angles: RopeAngles,
}

/// Tokens up to which attention is computed token by token: so few gain nothing from blocks, and each gets
/// the very bits that it gets alone, which drafts rely on.
const SINGLE_ATTENTION: usize = crate::session::MAX_EACH;

impl LayerContext {
    /// Resolves the weights of a layer, with buffers that other layers use too. Cheap: shares the mapped bytes.
    /// # Errors
    /// [`EngineError`] when a weight is missing or has the wrong shape.
    pub(crate) fn new(
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

    /// Queries, keys and values of `normed` `[n, hidden]`, already turned for their positions.
    pub(crate) fn qkv(
        &self,
        attn: &AttnWeights,
        step: Step,
        normed: &[f32],
        [queries, keys, values]: [&mut [f32]; 3],
        scratch: &mut KernelScratch,
    ) {
        let mut products = [
            Projection { weight: &attn.q_proj.weight, out: &mut *queries },
            Projection { weight: &attn.k_proj.weight, out: &mut *keys },
            Projection { weight: &attn.v_proj.weight, out: &mut *values },
        ];
        matmul_each(&self.pool, normed, &mut products, &mut scratch.matmul, step.mode(Store::Replace));
        attn.q_proj.add_bias(queries);
        attn.k_proj.add_bias(keys);
        attn.v_proj.add_bias(values);
        let table = scratch.angles.at(&self.rope, step.first, normed.len() / self.hidden_size);
        rotate_heads(&self.pool, table, queries);
        rotate_heads(&self.pool, table, keys);
    }

    /// Attention of `n` new tokens whose keys and values are in `cache` at `past_len..past_len + n`.
    pub(crate) fn attend(
        &self,
        cache: &KvLayer,
        past_len: usize,
        queries: &[f32],
        out: &mut [f32],
        scratch: &mut AttentionScratch,
    ) {
        let (width, n_tokens) = (self.q_width(), queries.len() / self.q_width());
        let pass = if n_tokens <= SINGLE_ATTENTION { 1 } else { n_tokens };
        let passes = queries.chunks(pass * width).zip(out.chunks_mut(pass * width));
        for (nth, (queries, out)) in passes.enumerate() {
            let args = AttentionArgs {
                queries,
                keys: cache.keys(),
                values: cache.values(),
                past_len: past_len + nth * pass,
                n_tokens: pass,
                n_heads: self.config.num_attention_heads,
                n_kv_heads: self.config.num_key_value_heads,
                head_dim: self.head_dim,
                context_len: cache.context_len(),
            };
            attention(&self.pool, &args, out, scratch);
        }
    }

    /// `silu(normed Wg') * (normed Wu')` into `out`: the input of `down_proj`. `up` is a buffer.
    pub(crate) fn gated_up(
        &self,
        mlp: &MlpWeights,
        step: Step,
        normed: &[f32],
        (out, up): (&mut [f32], &mut [f32]),
        scratch: &mut KernelScratch,
    ) {
        let mut products = [
            Projection { weight: &mlp.gate_proj.weight, out: &mut *out },
            Projection { weight: &mlp.up_proj.weight, out: &mut *up },
        ];
        matmul_each(&self.pool, normed, &mut products, &mut scratch.matmul, step.mode(Store::Replace));
        mlp.gate_proj.add_bias(out);
        mlp.up_proj.add_bias(up);
        silu_mul(&self.pool, out, up);
    }

    /// Norm, queries, keys, values and attention of a window `hidden` `[n, hidden_size]` that starts a sequence, exactly:
    /// the input of `o_proj` into `out`.
    pub(crate) fn window_attention(&self, attn: &AttnWeights, hidden: &[f32], out: &mut [f32]) {
        let n = hidden.len() / self.hidden_size;
        self.with_scratch(|scratch| {
            let LayerScratch { kernels, attention, half, window, .. } = scratch;
            let (q_len, kv_len) = (n * self.q_width(), n * self.kv_width());
            let (normed, rest) = sized(half, hidden.len() + q_len + 2 * kv_len).split_at_mut(hidden.len());
            let (queries, rest) = rest.split_at_mut(q_len);
            let (keys, values) = rest.split_at_mut(kv_len);
            self.normed(&attn.norm, hidden, normed);
            self.qkv(attn, Step::WINDOW, normed, [queries, keys, values], kernels);
            if !window.as_ref().is_some_and(|window| window.fits(&self.config, self.head_dim, n)) {
                *window = None;
            }
            let window = window.get_or_insert_with(|| {
                KvLayer::new(&self.config, self.head_dim, n, secateur_model::KvDType::F32)
            });
            window.append(0, n, keys, values);
            self.attend(window, 0, queries, out, attention);
        });
    }

    /// Norm and gated product of `hidden` `[n, hidden_size]`, exactly: the input of `down_proj` into `out`.
    pub(crate) fn window_gated_up(&self, mlp: &MlpWeights, hidden: &[f32], out: &mut [f32]) {
        self.with_scratch(|scratch| {
            let LayerScratch { kernels, half, .. } = scratch;
            let (normed, up) = sized(half, hidden.len() + out.len()).split_at_mut(hidden.len());
            self.normed(&mlp.norm, hidden, normed);
            self.gated_up(mlp, Step::WINDOW, normed, (out, up), kernels);
        });
    }

    /// `out = hidden + (inner W' + b)`, exactly.
    pub(crate) fn add_linear(&self, linear: &Linear, hidden: &[f32], inner: &[f32], out: &mut [f32]) {
        self.with_scratch(|scratch| {
            let mode = Step::WINDOW.mode(Store::Replace);
            linear.apply(&self.pool, inner, out, mode, &mut scratch.kernels.matmul);
        });
        add_in_place(&self.pool, out, hidden);
    }

    /// The whole layer over the tokens `hidden` `[n, hidden_size]` of a step, in place. Nothing is allocated once the
    /// buffers have their size.
    pub(crate) fn forward(
        &self,
        step: Step,
        hidden: &mut [f32],
        cache: &mut KvLayer,
        scratch: &mut LayerScratch,
    ) {
        let n = hidden.len() / self.hidden_size;
        let LayerScratch { kernels, attention, up, normed, queries, keys, values, mixed, inner, .. } =
            scratch;
        let normed = sized(normed, hidden.len());
        let add = step.mode(Store::Add);
        if let Some(attn) = &self.attn {
            let queries = sized(queries, n * self.q_width());
            let keys = sized(keys, n * self.kv_width());
            let values = sized(values, n * self.kv_width());
            self.normed(&attn.norm, hidden, normed);
            self.qkv(attn, step, normed, [queries, keys, values], kernels);
            cache.append(step.first, n, keys, values);
            let mixed = sized(mixed, n * self.q_width());
            self.attend(cache, step.first, queries, mixed, attention);
            attn.o_proj.apply(&self.pool, mixed, hidden, add, &mut kernels.matmul);
        }
        if let Some(mlp) = &self.mlp {
            let inner = sized(inner, n * self.config.intermediate_size);
            self.normed(&mlp.norm, hidden, normed);
            let up = sized(up, inner.len());
            self.gated_up(mlp, step, normed, (inner, up), kernels);
            mlp.down_proj.apply(&self.pool, inner, hidden, add, &mut kernels.matmul);
        }
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
