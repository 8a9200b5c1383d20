//! Which initializer of a graph is which weight, and which way round.
//!
//! Exporters keep the names of modules in the names of nodes (`/model/layers.0/self_attn/q_proj/MatMul`), in those of
//! initializers (`model.layers.0.attn.q_proj.MatMul.weight`), or both; constants that an exporter folded have only
//! their node (`onnx::MatMul_123`), and equal constants may share one initializer. So the node decides where it has a
//! name that says something, and the initializer's own name does where it has not. How a matrix lies is told by the
//! operation that reads it, never by its shape: square matrices have none to tell.

use super::Passed;
use super::tensor::Initializer;
use super::wire::{Payload, fields, numbers, text};
use crate::import::ImportError;
use crate::import::names::split_layer;
use crate::{Mapped, ModelFileError};
use secateur_model::{LayerIdx, WeightId, WeightRole};
use std::collections::BTreeMap;
use std::ops::Range;

/// Most nodes of a graph.
const MAX_NODES: u64 = 1 << 18;
/// Attributes beyond this are tensors or graphs, and none that we ask for.
const MAX_ATTRIBUTE_BYTES: usize = 256;
/// Most inputs and attributes of a node that are looked at.
const MAX_PARTS: usize = 1 << 12;
/// Field of a graph with its nodes.
const NODE: u32 = 1;

/// Operations on quantised weights.
const QUANTISED: [&str; 12] = [
    "MatMulNBits",
    "MatMulBnb4",
    "MatMulFpQ4",
    "QLinearMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLinear",
    "DequantizeLinear",
    "QGemm",
    "QAttention",
    "GatherBlockQuantized",
];

/// What a weight is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    One(WeightId),
    /// Queries, keys and values of a layer, one after the other.
    PackedQkv {
        layer_idx: LayerIdx,
        is_bias: bool,
    },
}

/// How an operation reads a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lie {
    /// `[out, in]`, or a vector.
    OutIn,
    /// `[in, out]`.
    InOut,
}

/// The initializer of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) initializer: String,
    pub(super) lie: Lie,
}

/// Finds the weights of the graph at `graph` among `initializers`.
pub(super) fn find_weights(
    mapped: &Mapped,
    graph: Range<usize>,
    initializers: &BTreeMap<String, Initializer>,
    context_len: usize,
) -> Result<BTreeMap<Target, Found>, ModelFileError> {
    let file = mapped.bytes();
    let mut passed = Passed::from(graph.start);
    let mut search = Search { initializers, found: BTreeMap::new(), lies: BTreeMap::new() };
    let mut count = 0;
    for field in fields(file, graph) {
        let field = field?;
        passed.to(field.whole.end, mapped);
        let Payload::Bytes(range) = field.payload else { continue };
        if field.number != NODE {
            continue;
        }
        count += 1;
        if MAX_NODES < count {
            return Err(ModelFileError::TooLarge {
                what: "the number of nodes",
                value: count,
                limit: MAX_NODES,
            });
        }
        let node = Node::read(file, range)?;
        refuse(&node, context_len)?;
        search.node(&node)?;
    }
    search.by_name()?;
    Ok(search.found)
}

/// A node's fields, as far as they matter.
#[derive(Default)]
struct Node<'f> {
    op: &'f str,
    name: &'f str,
    inputs: Vec<&'f str>,
    attributes: Vec<Attribute<'f>>,
}

/// A short attribute.
#[derive(Default)]
struct Attribute<'f> {
    name: &'f str,
    int: i64,
    float: f32,
    ints: Vec<i64>,
}

impl<'f> Node<'f> {
    fn read(file: &'f [u8], range: Range<usize>) -> Result<Self, ModelFileError> {
        let at = range.start as u64;
        let mut node = Self::default();
        for field in fields(file, range) {
            let field = field?;
            let Payload::Bytes(range) = field.payload else { continue };
            match field.number {
                1 => node.inputs.push(text(file, range)?),
                3 => node.name = text(file, range)?,
                4 => node.op = text(file, range)?,
                5 if range.len() <= MAX_ATTRIBUTE_BYTES => {
                    node.attributes.push(Attribute::read(file, range)?)
                }
                _ => {}
            }
            if MAX_PARTS < node.inputs.len().max(node.attributes.len()) {
                return Err(ImportError::Protobuf { what: "a node of too many parts", at }.into());
            }
        }
        Ok(node)
    }

    fn attribute(&self, name: &str) -> Option<&Attribute<'f>> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }
}

impl<'f> Attribute<'f> {
    fn read(file: &'f [u8], range: Range<usize>) -> Result<Self, ModelFileError> {
        let mut attribute = Self::default();
        for field in fields(file, range) {
            let field = field?;
            match (field.number, &field.payload) {
                (1, Payload::Bytes(range)) => attribute.name = text(file, range.clone())?,
                (2, Payload::Number(bits)) => attribute.float = f32::from_bits(*bits as u32),
                (3, Payload::Number(number)) => attribute.int = *number as i64,
                (8, _) => numbers(file, &field, MAX_ATTRIBUTE_BYTES, &mut attribute.ints)?,
                _ => {}
            }
        }
        Ok(attribute)
    }
}

/// Refuses what would be computed otherwise than here.
fn refuse(node: &Node<'_>, context_len: usize) -> Result<(), ModelFileError> {
    let op = node.op;
    let graph = |what: String| Err(ImportError::Graph(what).into());
    if QUANTISED.contains(&op) {
        return graph(format!("is quantised (`{op}`)"));
    }
    if matches!(op, "If" | "Loop" | "Scan") {
        return graph(format!("branches (`{op}`), as merged decoders do"));
    }
    let whole = |name: &str| node.attribute(name).map_or(0, |attribute| attribute.int);
    let float = |name: &str| node.attribute(name).map_or(0.0, |attribute| attribute.float);
    if whole("interleaved") != 0 || whole("rotary_interleaved") != 0 {
        return graph("rotates neighbours instead of halves".to_owned());
    }
    let window = whole("local_window_size");
    if op == "GroupQueryAttention" && 0 < window && (window as u64) < context_len as u64 {
        return graph("has a sliding window".to_owned());
    }
    if op == "GroupQueryAttention" && float("softcap") != 0.0 {
        return graph("caps its attention".to_owned());
    }
    Ok(())
}

struct Search<'i> {
    initializers: &'i BTreeMap<String, Initializer>,
    found: BTreeMap<Target, Found>,
    /// How each matrix is read, by the name of its initializer.
    lies: BTreeMap<&'i str, Lie>,
}

impl Search<'_> {
    fn node(&mut self, node: &Node<'_>) -> Result<(), ModelFileError> {
        let path = node.name.trim_start_matches('/').rsplit_once('/').map(|(path, _)| path.replace('/', "."));
        let module = path.as_deref().and_then(module_of);
        for (place, input) in node.inputs.iter().enumerate() {
            let Some((name, initializer)) = self.initializers.get_key_value(*input) else { continue };
            let Some((part, lie)) = reading(node, place, initializer) else { continue };
            if part == Part::Matrix && *self.lies.entry(name).or_insert(lie) != lie {
                return Err(data(name, "it is read both ways round"));
            }
            let Some(target) = module.and_then(|module| module.target(part)) else { continue };
            let found = Found { initializer: name.clone(), lie };
            match self.found.get(&target) {
                None => drop(self.found.insert(target, found)),
                Some(other) if *other == found => {}
                Some(_) => return Err(data(name, "another tensor has the same place in the model")),
            }
        }
        Ok(())
    }

    /// Takes the initializers whose own names say what they are, where no node said it.
    fn by_name(&mut self) -> Result<(), ModelFileError> {
        for (name, initializer) in self.initializers {
            let ending = name.rsplit_once('.').filter(|(_, end)| matches!(*end, "weight" | "bias"));
            let Some((path, ending)) = ending else { continue };
            let path =
                [".MatMul", ".Gemm", ".Add"].iter().find_map(|op| path.strip_suffix(op)).unwrap_or(path);
            let Some(module) = module_of(path) else {
                // Norms of queries, gates of experts and their like change what a layer computes.
                if split_layer(name).is_some() {
                    return Err(ModelFileError::UnexpectedTensor(name.clone()));
                }
                continue;
            };
            let part = match (ending, initializer.dims.len()) {
                ("bias", _) => Part::Bias,
                (_, 1) => Part::Scale,
                _ => Part::Matrix,
            };
            let Some(target) = module.target(part).filter(|target| !self.found.contains_key(target)) else {
                continue;
            };
            let lie = match (part, self.lies.get(name.as_str())) {
                (Part::Matrix, None) => {
                    return Err(data(
                        name,
                        "no operation reads it that would tell its rows from its columns",
                    ));
                }
                (_, lie) => lie.copied().unwrap_or(Lie::OutIn),
            };
            self.found.insert(target, Found { initializer: name.clone(), lie });
        }
        Ok(())
    }
}

fn data(name: &str, why: &'static str) -> ModelFileError {
    ImportError::Data { name: name.to_owned(), why }.into()
}

/// What an initializer is to the module that reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Matrix,
    Bias,
    Scale,
}

/// What the input `place` of `node` is read as, and which way round.
fn reading(node: &Node<'_>, place: usize, initializer: &Initializer) -> Option<(Part, Lie)> {
    match (node.op, place, initializer.dims.as_slice()) {
        ("MatMul", 1, [_, _]) => Some((Part::Matrix, Lie::InOut)),
        ("Gemm" | "FusedMatMul", 1, [_, _]) => {
            let turns = node.attribute("transB").is_some_and(|attribute| attribute.int != 0);
            Some((Part::Matrix, if turns { Lie::OutIn } else { Lie::InOut }))
        }
        ("Transpose", 0, [_, _]) => {
            // Without an order the dimensions are reversed.
            let turns = node.attribute("perm").is_none_or(|attribute| attribute.ints == [1, 0]);
            Some((Part::Matrix, if turns { Lie::OutIn } else { Lie::InOut }))
        }
        ("Gather", 0, [_, _]) => Some((Part::Matrix, Lie::OutIn)),
        ("Add", _, [2..=usize::MAX]) | ("Gemm", 2, [2..=usize::MAX]) => Some((Part::Bias, Lie::OutIn)),
        ("Mul", _, [2..=usize::MAX]) => Some((Part::Scale, Lie::OutIn)),
        (norm, _, [2..=usize::MAX]) if norm.ends_with("LayerNormalization") || norm == "RMSNormalization" => {
            Some((Part::Scale, Lie::OutIn))
        }
        _ => None,
    }
}

/// A module of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Module {
    Embed,
    Head,
    FinalNorm,
    Norm(LayerIdx, WeightRole),
    /// A linear and its bias.
    Linear(LayerIdx, WeightRole, WeightRole),
    PackedQkv(LayerIdx),
}

impl Module {
    fn target(self, part: Part) -> Option<Target> {
        let one = |layer_idx, role| Some(Target::One(WeightId::layer(layer_idx, role)));
        let global = |role| Some(Target::One(WeightId::global(role)));
        match (self, part) {
            (Self::Embed, Part::Matrix) => global(WeightRole::EmbedTokens),
            (Self::Head, Part::Matrix) => global(WeightRole::LmHead),
            (Self::FinalNorm, Part::Scale) => global(WeightRole::FinalNorm),
            (Self::Norm(layer_idx, role), Part::Scale) => one(layer_idx, role),
            (Self::Linear(layer_idx, role, _), Part::Matrix) => one(layer_idx, role),
            (Self::Linear(layer_idx, _, bias), Part::Bias) => one(layer_idx, bias),
            (Self::PackedQkv(layer_idx), Part::Matrix) => {
                Some(Target::PackedQkv { layer_idx, is_bias: false })
            }
            (Self::PackedQkv(layer_idx), Part::Bias) => Some(Target::PackedQkv { layer_idx, is_bias: true }),
            _ => None,
        }
    }
}

/// The module at a path with dots.
fn module_of(path: &str) -> Option<Module> {
    use WeightRole::{
        AttnNorm, DownBias, DownProj, GateBias, GateProj, KBias, KProj, MlpNorm, OBias, OProj, QBias, QProj,
        UpBias, UpProj, VBias, VProj,
    };
    match path {
        "model.embed_tokens" => return Some(Module::Embed),
        "model.norm" => return Some(Module::FinalNorm),
        "lm_head" => return Some(Module::Head),
        _ => {}
    }
    let (layer_idx, part) = split_layer(path)?;
    let part = part.strip_prefix("self_").unwrap_or(part);
    let linear = |role, bias| Some(Module::Linear(layer_idx, role, bias));
    match part {
        "input_layernorm" => Some(Module::Norm(layer_idx, AttnNorm)),
        "post_attention_layernorm" => Some(Module::Norm(layer_idx, MlpNorm)),
        // onnxruntime-genai counts it as part of a layer behind the last.
        "final_norm_layernorm" => Some(Module::FinalNorm),
        "attn.q_proj" => linear(QProj, QBias),
        "attn.k_proj" => linear(KProj, KBias),
        "attn.v_proj" => linear(VProj, VBias),
        "attn.o_proj" => linear(OProj, OBias),
        "attn.qkv_proj" => Some(Module::PackedQkv(layer_idx)),
        "mlp.gate_proj" => linear(GateProj, GateBias),
        "mlp.up_proj" => linear(UpProj, UpBias),
        "mlp.down_proj" => linear(DownProj, DownBias),
        _ => None,
    }
}
