//! tract graphs of the two sub-layers of a decoder layer. Every linear's input is an outlet of the graph.
//!
//! The operations are our own ([`LayerOp`]): they hold the layer and read its mapped weights in place, so
//! building a graph copies nothing and takes well under a millisecond.

use crate::error::EngineError;
use crate::layer::{LayerContext, LayerScratch, Step};
use secateur_model::{LayerIdx, WeightSource};
use secateur_tensor::kernels::ThreadPool;
use std::sync::Arc;
use tract_core::internal::*;
use tract_core::ops::math;

/// Half of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sublayer {
    /// Norm, attention, output projection, residual.
    Attn,
    /// Norm, gated MLP, residual.
    Mlp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpKind {
    AttnNorm,
    Qkv,
    Attend,
    OProj,
    MlpNorm,
    GatedUp,
    DownProj,
}

/// One operation of a layer inside a graph.
#[derive(Clone, Debug)]
struct LayerOp {
    layer: Arc<LayerContext>,
    kind: OpKind,
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
    /// Widths of the outputs.
    fn widths(&self) -> TVec<usize> {
        let layer = &self.layer;
        match self.kind {
            OpKind::AttnNorm | OpKind::MlpNorm | OpKind::OProj | OpKind::DownProj => tvec!(layer.hidden_size),
            OpKind::Qkv => tvec!(layer.q_width(), layer.kv_width(), layer.kv_width()),
            OpKind::Attend => tvec!(layer.q_width()),
            OpKind::GatedUp => tvec!(layer.config.intermediate_size),
        }
    }

    fn attn(&self) -> TractResult<&crate::layer::AttnWeights> {
        self.layer.attn.as_ref().context("layer has no attention")
    }

    fn mlp(&self) -> TractResult<&crate::layer::MlpWeights> {
        self.layer.mlp.as_ref().context("layer has no mlp")
    }

    fn run(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) -> TractResult<()> {
        let layer = &self.layer;
        match self.kind {
            OpKind::AttnNorm => layer.normed(layer.attn_norm(self.attn()?), inputs[0], outputs[0]),
            OpKind::MlpNorm => layer.normed(layer.mlp_norm(self.mlp()?), inputs[0], outputs[0]),
            OpKind::OProj => layer.linear(self.attn()?.o_proj(), inputs[0], outputs[0]),
            OpKind::DownProj => layer.linear(self.mlp()?.down_proj(), inputs[0], outputs[0]),
            OpKind::GatedUp => {
                let mlp = self.mlp()?;
                layer.with_scratch(|scratch| {
                    let LayerScratch { kernels, up, .. } = scratch;
                    layer.gated_up(mlp, Step::WINDOW, inputs[0], (outputs[0], up), kernels);
                });
            }
            OpKind::Qkv => {
                let attn = self.attn()?;
                let [queries, keys, values] = outputs else { bail!("qkv has three outputs") };
                layer.with_scratch(|scratch| {
                    layer.qkv(attn, Step::WINDOW, inputs[0], [queries, keys, values], &mut scratch.kernels);
                });
            }
            OpKind::Attend => self.attend(inputs, outputs[0])?,
        }
        Ok(())
    }

    /// Attention over a window that starts a sequence, with a cache of its own.
    fn attend(&self, inputs: &[&[f32]], out: &mut [f32]) -> TractResult<()> {
        let [queries, keys, values] = inputs else { bail!("attention has three inputs") };
        let layer = &self.layer;
        let n = queries.len() / layer.q_width();
        let mut cache = layer.window_cache(n);
        cache.append(0, n, keys, values);
        layer.with_scratch(|scratch| layer.attend(&cache, 0, queries, out, &mut scratch.attention));
        Ok(())
    }
}

impl EvalOp for LayerOp {
    not_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let n = inputs[0].shape()[0];
        let mut outputs: TVec<Tensor> = tvec!();
        for width in self.widths() {
            outputs.push(Tensor::zero::<f32>(&[n, width])?);
        }
        {
            let mut input_slices: TVec<&[f32]> = tvec!();
            for input in &inputs {
                input_slices.push(input.try_as_plain_ram()?.as_slice::<f32>()?);
            }
            let mut views: TVec<_> = tvec!();
            for output in &mut outputs {
                views.push(output.try_as_plain_ram_mut()?);
            }
            let mut output_slices: TVec<&mut [f32]> = tvec!();
            for view in &mut views {
                output_slices.push(view.as_slice_mut::<f32>()?);
            }
            self.run(&input_slices, &mut output_slices)?;
        }
        Ok(outputs.into_iter().map(Tensor::into_tvalue).collect())
    }
}

impl TypedOp for LayerOp {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let n = inputs[0].shape[0].clone();
        Ok(self.widths().iter().map(|&width| f32::fact([n.clone(), width.to_dim()])).collect())
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

    /// Input of q/k/v or of gate/up (the normed hidden states): `[n, hidden_size]`.
    #[must_use]
    pub fn normed(&self) -> &[f32] {
        self.slice(1)
    }

    /// Input of `o_proj` or of `down_proj`: `[n, heads * head_dim]` or `[n, intermediate_size]`.
    #[must_use]
    pub fn inner(&self) -> &[f32] {
        self.slice(2)
    }
}

/// One layer that can be run alone, sub-layer by sub-layer.
pub struct LayerRunner {
    layer: Arc<LayerContext>,
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
        Self::from_context(Arc::new(LayerContext::new(source, layer_idx, pool)?))
    }

    fn from_context(layer: Arc<LayerContext>) -> Result<Self, EngineError> {
        let plan = |wanted: bool, sublayer, outlets| {
            let plan = wanted.then(|| build(&layer, sublayer, outlets)).transpose();
            plan.map_err(|error| graph_error(&layer, &error))
        };
        let attn = plan(layer.attn.is_some(), Sublayer::Attn, Outlets::All)?;
        let mlp = plan(layer.mlp.is_some(), Sublayer::Mlp, Outlets::All)?;
        let mlp_inner = plan(layer.mlp.is_some(), Sublayer::Mlp, Outlets::Inner)?;
        Ok(Self { layer, attn, mlp, mlp_inner })
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
        let n = hidden.len() / self.layer.hidden_size;
        let run = Tensor::from_shape(&[n, self.layer.hidden_size], hidden)
            .and_then(|input| plan.run(tvec!(input.into_tvalue())));
        run.map_err(|error| graph_error(&self.layer, &error))
    }
}

fn graph_error(layer: &LayerContext, error: &TractError) -> EngineError {
    EngineError::Graph { layer_idx: layer.layer_idx, message: format!("{error:#}") }
}

/// Which outlets a plan computes.
#[derive(Clone, Copy)]
enum Outlets {
    /// Output, normed input, inner input.
    All,
    /// The inner input alone.
    Inner,
}

/// hidden → norm → (q, k, v → attention | gate, up → product) → projection → + hidden.
fn build(layer: &Arc<LayerContext>, sublayer: Sublayer, outlets: Outlets) -> TractResult<Plan> {
    let mut model = TypedModel::default();
    let n_tokens = model.symbols.sym("S");
    let fact = f32::fact([n_tokens.to_dim(), layer.hidden_size.to_dim()]);
    let hidden = model.add_source("hidden", fact)?;
    let op = |kind| LayerOp { layer: layer.clone(), kind };
    let (normed, inner, projected) = match sublayer {
        Sublayer::Attn => {
            let normed = model.wire_node("attn_norm", op(OpKind::AttnNorm), &[hidden])?[0];
            let qkv = model.wire_node("qkv", op(OpKind::Qkv), &[normed])?;
            let mixed = model.wire_node("attention", op(OpKind::Attend), &qkv)?[0];
            (normed, mixed, model.wire_node("o_proj", op(OpKind::OProj), &[mixed])?[0])
        }
        Sublayer::Mlp => {
            let normed = model.wire_node("mlp_norm", op(OpKind::MlpNorm), &[hidden])?[0];
            let inner = model.wire_node("gated_up", op(OpKind::GatedUp), &[normed])?[0];
            (normed, inner, model.wire_node("down_proj", op(OpKind::DownProj), &[inner])?[0])
        }
    };
    let output = model.wire_node("residual", math::add(), &[hidden, projected])?[0];
    match outlets {
        Outlets::All => model.select_output_outlets(&[output, normed, inner])?,
        Outlets::Inner => model.select_output_outlets(&[inner])?,
    }
    TypedSimplePlan::new(model)
}
