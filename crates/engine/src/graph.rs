//! tract graphs of the two sub-layers of a decoder layer. The input of each output projection is an outlet of the graph.
//!
//! The operations are our own ([`LayerOp`]): they hold the layer and read its mapped weights in place, so
//! building a graph copies nothing and takes well under a millisecond.

use crate::error::EngineError;
use crate::layer::{LayerContext, LayerScratch, SharedScratch};
use secateur_model::{LayerIdx, WeightSource};
use secateur_tensor::kernels::ThreadPool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tract_core::internal::*;

/// Half of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sublayer {
    /// Norm, attention, output projection, residual.
    Attn,
    /// Norm, gated MLP, residual.
    Mlp,
}

/// What an operation computes of its sub-layer. Few operations with large insides: what passes between two is a new
/// tensor, what stays inside lies in buffers for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpKind {
    /// Norm, queries, keys and values, attention: the input of `o_proj`.
    AttnInner,
    /// `o_proj` and the residual.
    AttnOutput,
    /// Norm and gated product: the input of `down_proj`.
    MlpInner,
    /// `down_proj` and the residual.
    MlpOutput,
}

/// One operation of a layer inside a graph.
#[derive(Clone, Debug)]
struct LayerOp {
    layer: Arc<LayerContext>,
    kind: OpKind,
    tensors: Arc<Tensors>,
}

impl PartialEq for LayerOp {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.layer, &other.layer) && self.kind == other.kind
    }
}

impl Eq for LayerOp {}

impl Op for LayerOp {
    fn name(&self) -> StaticName {
        format!("Secateur{:?}", self.kind).into()
    }

    op_as_typed_op!();
}

impl LayerOp {
    /// Width of the output.
    fn width(&self) -> usize {
        let layer = &self.layer;
        match self.kind {
            OpKind::AttnInner => layer.q_width(),
            OpKind::MlpInner => layer.config.intermediate_size,
            OpKind::AttnOutput | OpKind::MlpOutput => layer.hidden_size,
        }
    }

    fn run(&self, inputs: &[&[f32]], out: &mut [f32]) -> TractResult<()> {
        let layer = &self.layer;
        let attn = || layer.attn.as_ref().context("layer has no attention");
        let mlp = || layer.mlp.as_ref().context("layer has no mlp");
        match (self.kind, inputs) {
            (OpKind::AttnInner, [hidden]) => layer.window_attention(attn()?, hidden, out),
            (OpKind::MlpInner, [hidden]) => layer.window_gated_up(mlp()?, hidden, out),
            (OpKind::AttnOutput, [hidden, inner]) => layer.add_linear(attn()?.o_proj(), hidden, inner, out),
            (OpKind::MlpOutput, [hidden, inner]) => layer.add_linear(mlp()?.down_proj(), hidden, inner, out),
            (kind, inputs) => bail!("{kind:?} does not take {} inputs", inputs.len()),
        }
        Ok(())
    }
}

impl EvalOp for LayerOp {
    not_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let n = inputs[0].shape()[0];
        let mut output = self.tensors.take([n, self.width()])?;
        {
            let mut input_slices: TVec<&[f32]> = tvec!();
            for input in &inputs {
                input_slices.push(input.try_as_plain_ram()?.as_slice::<f32>()?);
            }
            self.run(&input_slices, output.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?)?;
        }
        Ok(tvec!(self.tensors.lend(output)))
    }
}

impl TypedOp for LayerOp {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let n = inputs[0].shape[0].clone();
        Ok(tvec!(f32::fact([n, self.width().to_dim()])))
    }

    as_op!();
}

type Plan = Arc<TypedSimplePlan>;

/// What a run of one sub-layer over a window produced.
pub struct SublayerRun {
    values: TVec<TValue>,
}

/// The input of `down_proj` over a window.
pub struct InnerRun {
    values: TVec<TValue>,
}

impl InnerRun {
    /// `[n, intermediate_size]`.
    #[must_use]
    pub fn inner(&self) -> &[f32] {
        plain_f32(&self.values[0])
    }
}

fn plain_f32(value: &TValue) -> &[f32] {
    let plain = value.try_as_plain_ram();
    plain.and_then(|view| view.as_slice::<f32>()).expect("our operations produce plain f32")
}

impl SublayerRun {
    fn slice(&self, outlet: usize) -> &[f32] {
        plain_f32(&self.values[outlet])
    }

    /// Hidden states after the sub-layer, residual included: `[n, hidden_size]`.
    #[must_use]
    pub fn output(&self) -> &[f32] {
        self.slice(0)
    }

    /// Input of `o_proj` or of `down_proj`: `[n, heads * head_dim]` or `[n, intermediate_size]`.
    #[must_use]
    pub fn inner(&self) -> &[f32] {
        self.slice(1)
    }
}

/// Tensors that passed between operations, for the next runs: taking them from the system each time was a fifth of the time
/// of a prune job.
#[derive(Debug, Default)]
struct Tensors(Mutex<Vec<TValue>>);

impl Tensors {
    /// Shapes of a layer: input, inner and output of both halves.
    const MOST: usize = 6;

    fn values(&self) -> MutexGuard<'_, Vec<TValue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tensor of this shape that nobody reads any more, or a new one; what it holds is left open.
    fn take(&self, shape: [usize; 2]) -> TractResult<Tensor> {
        let mut values = self.values();
        let is_free = |value: &TValue| value.is_exclusive() && value.shape() == shape;
        if let Some(at) = values.iter().position(is_free) {
            return Ok(values.swap_remove(at).into_tensor());
        }
        if Self::MOST <= values.len() {
            values.retain(|value| !value.is_exclusive());
        }
        Tensor::zero::<f32>(&shape)
    }

    /// Hands a tensor out. It can be taken again when the value is dropped.
    fn lend(&self, tensor: Tensor) -> TValue {
        let value = tensor.into_tvalue();
        self.values().push(value.clone());
        value
    }
}

/// What is in memory while a sub-layer runs. Runners that run one after another can share it: it grows to what the
/// largest window needs, and stays until it is released.
#[derive(Clone, Default)]
pub struct LayerBuffers {
    scratch: SharedScratch,
    tensors: Arc<Tensors>,
}

impl LayerBuffers {
    /// Frees the memory; the next run takes it anew.
    pub fn release(&self) {
        *self.scratch.lock().unwrap_or_else(PoisonError::into_inner) = LayerScratch::default();
        self.tensors.values().clear();
    }
}

impl std::fmt::Debug for LayerBuffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerBuffers").finish_non_exhaustive()
    }
}

/// One layer that can be run alone, sub-layer by sub-layer.
pub struct LayerRunner {
    layer: Arc<LayerContext>,
    tensors: Arc<Tensors>,
    attn: Option<Plan>,
    mlp: Option<Plan>,
    /// As `mlp` without the projection: the input of `down_proj` is all that is computed.
    mlp_inner: Option<Plan>,
}

impl LayerRunner {
    /// Builds the graphs of a layer.
    /// # Errors
    /// [`EngineError`] when weights are missing or tract refuses the graph.
    pub fn new(
        source: &dyn WeightSource,
        layer_idx: LayerIdx,
        pool: Arc<ThreadPool>,
    ) -> Result<Self, EngineError> {
        Self::with_buffers(source, layer_idx, pool, &LayerBuffers::default())
    }

    /// As [`Self::new`], with buffers that other runners use too.
    /// # Errors
    /// As [`Self::new`].
    pub fn with_buffers(
        source: &dyn WeightSource,
        layer_idx: LayerIdx,
        pool: Arc<ThreadPool>,
        buffers: &LayerBuffers,
    ) -> Result<Self, EngineError> {
        let LayerBuffers { scratch, tensors } = buffers.clone();
        let layer = Arc::new(LayerContext::new(source, layer_idx, pool, scratch)?);
        let plan = |wanted: bool, sublayer, outlets| {
            let plan = wanted.then(|| build(&layer, &tensors, sublayer, outlets)).transpose();
            plan.map_err(|error| graph_error(&layer, &error))
        };
        let attn = plan(layer.attn.is_some(), Sublayer::Attn, Outlets::All)?;
        let mlp = plan(layer.mlp.is_some(), Sublayer::Mlp, Outlets::All)?;
        let mlp_inner = plan(layer.mlp.is_some(), Sublayer::Mlp, Outlets::Inner)?;
        Ok(Self { layer, tensors, attn, mlp, mlp_inner })
    }

    /// Runs one sub-layer over `hidden` `[n, hidden_size]`, one sequence from position 0.
    ///
    /// `None` when the layer does not have this sub-layer: hidden states pass unchanged.
    /// # Errors
    /// [`EngineError::Graph`] when tract fails.
    pub fn run(&self, sublayer: Sublayer, hidden: &[f32]) -> Result<Option<SublayerRun>, EngineError> {
        let plan = match sublayer {
            Sublayer::Attn => &self.attn,
            Sublayer::Mlp => &self.mlp,
        };
        let Some(plan) = plan else { return Ok(None) };
        Ok(Some(SublayerRun { values: self.run_plan(plan, hidden)? }))
    }

    /// Runs the MLP over `hidden` `[n, hidden_size]` up to the input of `down_proj`, which is returned:
    /// `[n, intermediate_size]`. `None` when the layer has no MLP.
    /// # Errors
    /// [`EngineError::Graph`] when tract fails.
    pub fn run_mlp_inner(&self, hidden: &[f32]) -> Result<Option<InnerRun>, EngineError> {
        let Some(plan) = &self.mlp_inner else { return Ok(None) };
        Ok(Some(InnerRun { values: self.run_plan(plan, hidden)? }))
    }

    /// The input of q/k/v or of gate/up: `hidden` `[n, hidden_size]` through the norm of a sub-layer, into `out`.
    /// False when the layer does not have it.
    pub fn normed(&self, sublayer: Sublayer, hidden: &[f32], out: &mut [f32]) -> bool {
        let norm = match sublayer {
            Sublayer::Attn => self.layer.attn.as_ref().map(|attn| self.layer.attn_norm(attn)),
            Sublayer::Mlp => self.layer.mlp.as_ref().map(|mlp| self.layer.mlp_norm(mlp)),
        };
        if let Some(norm) = norm {
            self.layer.normed(norm, hidden, out);
        }
        norm.is_some()
    }

    fn run_plan(&self, plan: &Plan, hidden: &[f32]) -> Result<TVec<TValue>, EngineError> {
        let run = || -> TractResult<TVec<TValue>> {
            let mut input =
                self.tensors.take([hidden.len() / self.layer.hidden_size, self.layer.hidden_size])?;
            input.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?.copy_from_slice(hidden);
            plan.run(tvec!(self.tensors.lend(input)))
        };
        run().map_err(|error| graph_error(&self.layer, &error))
    }
}

fn graph_error(layer: &LayerContext, error: &TractError) -> EngineError {
    EngineError::Graph { layer_idx: layer.layer_idx, message: format!("{error:#}") }
}

/// Which outlets a plan computes.
#[derive(Clone, Copy)]
enum Outlets {
    /// Output and inner input.
    All,
    /// The inner input alone.
    Inner,
}

/// hidden → inner → projection + hidden.
fn build(
    layer: &Arc<LayerContext>,
    tensors: &Arc<Tensors>,
    sublayer: Sublayer,
    outlets: Outlets,
) -> TractResult<Plan> {
    let mut model = TypedModel::default();
    let n_tokens = model.symbols.sym("S");
    let fact = f32::fact([n_tokens.to_dim(), layer.hidden_size.to_dim()]);
    let hidden = model.add_source("hidden", fact)?;
    let op = |kind| LayerOp { layer: layer.clone(), kind, tensors: tensors.clone() };
    let (inner, output) = match sublayer {
        Sublayer::Attn => (op(OpKind::AttnInner), op(OpKind::AttnOutput)),
        Sublayer::Mlp => (op(OpKind::MlpInner), op(OpKind::MlpOutput)),
    };
    let inner = model.wire_node("inner", inner, &[hidden])?[0];
    match outlets {
        Outlets::All => {
            let output = model.wire_node("output", output, &[hidden, inner])?[0];
            model.select_output_outlets(&[output, inner])?;
        }
        Outlets::Inner => model.select_output_outlets(&[inner])?,
    }
    TypedSimplePlan::new(model)
}
