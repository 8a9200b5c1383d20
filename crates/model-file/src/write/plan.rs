//! Decides what is written: architecture, layers, tensors and their types. Reads no weight's values.

use crate::WriteError;
use crate::layout::{Presence, expected, expected_in_layer};
use crate::names::{LAYER, ROPE_FACTORS, tensor_name};
use secateur_model::{
    Architecture, LayerConfig, LayerIdx, ModelConfig, RopeLayout, RopeScaling, WeightId, WeightRole,
    WeightSource,
};
use secateur_tensor::DType;

/// Width of the MLP of zeros that stands for an absent MLP: the smallest that every runtime's blocks divide.
const ZERO_MLP_WIDTH: usize = 32;

/// Where the values of a tensor come from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Origin {
    /// The source's weight, its rows in order.
    Source(WeightId),
    /// The source's weight, the rows of each head reordered from rotary halves to rotary pairs.
    SourceInPairs(WeightId),
    /// The same the other way round.
    SourceInHalves(WeightId),
    /// The same value everywhere.
    Constant(f32),
    /// These values.
    Values(Vec<f32>),
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) origin: Origin,
    /// Storage type in the source; equals `dtype` for values that are made up.
    pub(super) source_dtype: DType,
    pub(super) dtype: DType,
    /// `[out, in]`; vectors have one row.
    pub(super) shape: [usize; 2],
    pub(super) is_vector: bool,
    /// Rows of one head, for the reordering.
    pub(super) head_dim: usize,
    /// Bytes in the file.
    pub(super) bytes: u64,
}

/// Everything that is decided before the first byte is written.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) architecture: &'static str,
    /// Shapes of the layers in the file.
    pub(super) layers: Vec<LayerConfig>,
    pub(super) tensors: Vec<Planned>,
    pub(super) stored_as_f16: Vec<WeightId>,
    pub(super) notes: Vec<String>,
}

/// The dtype in which a weight is stored when `asked` is wanted and the source has it in `source`.
///
/// Norms and biases are F32. The token table and the output head follow llama.cpp: with a 4-bit type they stay
/// as they are when they are quantized already, and become Q8_0 otherwise. A row that does not divide into
/// blocks makes the weight F16.
#[must_use]
pub fn stored_dtype(role: WeightRole, asked: Option<DType>, source: DType, n_cols: usize) -> DType {
    if role.is_vector() {
        return DType::F32;
    }
    let Some(asked) = asked else { return source };
    let is_table = matches!(role, WeightRole::EmbedTokens | WeightRole::LmHead);
    let is_quantized = 1 < source.block_len();
    let wanted = match asked {
        DType::Q4_0 | DType::Q4_1 if is_table && is_quantized => source,
        DType::Q4_0 | DType::Q4_1 if is_table => DType::Q8_0,
        other => other,
    };
    if wanted.row_bytes(n_cols).is_some() { wanted } else { DType::F16 }
}

impl Plan {
    pub(super) fn new(source: &dyn WeightSource, asked: Option<DType>) -> Result<Self, WriteError> {
        if let Some(dtype) = asked.filter(|&dtype| !is_writable(dtype)) {
            return Err(WriteError::Dtype(dtype));
        }
        let config = source.config();
        config.validate().map_err(|error| WriteError::NotExportable(error.to_string()))?;
        let kept = kept_layers(config)?;
        let biases = find_biases(source)?;
        let architecture = choose_architecture(config, &kept, &biases);
        let in_pairs = config.rope_layout == RopeLayout::Halves && architecture != "qwen2";
        let mut plan = Self {
            architecture,
            layers: kept.iter().map(|kept| kept.shape).collect(),
            tensors: Vec::new(),
            stored_as_f16: Vec::new(),
            notes: notes(config, &kept, &biases, architecture),
        };
        let mut builder = Builder { source, config, asked, in_pairs, plan: &mut plan };
        builder.global(WeightRole::EmbedTokens)?;
        builder.global(WeightRole::LmHead)?;
        for (written_idx, kept) in kept.iter().enumerate() {
            builder.layer(written_idx, kept)?;
        }
        builder.global(WeightRole::FinalNorm)?;
        builder.rope_factors();
        Ok(plan)
    }
}

fn is_writable(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::Q8_0 | DType::Q4_0 | DType::Q4_1)
}

/// A layer that goes into the file.
struct Kept {
    source_idx: LayerIdx,
    /// Its shape in the source.
    source_shape: LayerConfig,
    /// Its shape in the file: parts that are absent but must be there are filled with zeros.
    shape: LayerConfig,
}

fn kept_layers(config: &ModelConfig) -> Result<Vec<Kept>, WriteError> {
    let refuse = |why: &str| Err(WriteError::NotExportable(why.to_owned()));
    let mut kept = Vec::with_capacity(config.layers.len());
    for (source_idx, &source_shape) in config.layers.iter().enumerate() {
        let mut shape = source_shape;
        if shape.num_attention_heads == 0 && shape.intermediate_size == 0 {
            continue;
        }
        if shape.intermediate_size == 0 {
            shape.intermediate_size = ZERO_MLP_WIDTH;
        }
        kept.push(Kept { source_idx, source_shape, shape });
    }
    let Some(with_heads) = kept.iter().map(|kept| kept.shape).find(|shape| 0 < shape.num_attention_heads)
    else {
        return refuse("no layer has attention");
    };
    let first = &mut kept[0].shape;
    if first.num_attention_heads == 0 {
        first.num_attention_heads = with_heads.heads_per_kv_group();
        first.num_key_value_heads = 1;
    }
    Ok(kept)
}

/// Which biases the source has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct BiasSet {
    qkv: bool,
    /// Every layer with attention has all of q, k and v.
    qkv_everywhere: bool,
    /// Any bias that `qwen2` has no place for.
    other: bool,
}

fn find_biases(source: &dyn WeightSource) -> Result<BiasSet, WriteError> {
    use WeightRole::{DownBias, GateBias, KBias, OBias, QBias, UpBias, VBias};
    let config = source.config();
    let mut set = BiasSet { qkv_everywhere: true, ..BiasSet::default() };
    for layer_idx in 0..config.layers.len() {
        for role in [QBias, KBias, VBias, OBias, GateBias, UpBias, DownBias] {
            let id = WeightId::layer(layer_idx, role);
            if expected(config, id).is_none() {
                continue;
            }
            let is_there = source.weight(id)?.is_some();
            if matches!(role, QBias | KBias | VBias) {
                set.qkv |= is_there;
                set.qkv_everywhere &= is_there;
            } else {
                set.other |= is_there;
            }
        }
    }
    Ok(set)
}

fn is_uniform(kept: &[Kept]) -> bool {
    kept.windows(2).all(|pair| pair[0].shape == pair[1].shape)
}

/// `qwen2` only for what a stock `qwen2` has: equal layers, square q and o, biases on q, k and v and nowhere
/// else, plain rotary frequencies. Everything else in the family is a `llama` or `deci`.
fn choose_architecture(config: &ModelConfig, kept: &[Kept], biases: &BiasSet) -> &'static str {
    let is_square = kept[0].shape.num_attention_heads * config.head_dim == config.hidden_size;
    let has_factors = matches!(config.rope_scaling, RopeScaling::Factors(_) | RopeScaling::Llama3 { .. });
    let fits_qwen2 = config.architecture == Architecture::Qwen2
        && config.rope_layout == RopeLayout::Halves
        && is_square
        && biases.qkv_everywhere
        && !biases.other
        && !has_factors;
    match (is_uniform(kept), fits_qwen2) {
        (true, true) => "qwen2",
        (true, false) => "llama",
        (false, _) => "deci",
    }
}

/// Known limits of stock runtimes that this file meets; they refuse it loudly.
fn notes(config: &ModelConfig, kept: &[Kept], biases: &BiasSet, architecture: &str) -> Vec<String> {
    let is_square =
        kept.iter().all(|kept| kept.shape.num_attention_heads * config.head_dim == config.hidden_size);
    let mut notes = Vec::new();
    if architecture != "qwen2" && biases.qkv && !is_square {
        notes.push(
            "biases of q in layers with fewer heads than the model is wide: llama.cpp may refuse their shape"
                .to_owned(),
        );
    }
    notes
}

struct Builder<'a> {
    source: &'a dyn WeightSource,
    config: &'a ModelConfig,
    asked: Option<DType>,
    in_pairs: bool,
    plan: &'a mut Plan,
}

impl Builder<'_> {
    fn global(&mut self, role: WeightRole) -> Result<(), WriteError> {
        let id = WeightId::global(role);
        if role == WeightRole::LmHead && self.config.tie_word_embeddings {
            return Ok(());
        }
        let (shape, _) = expected(self.config, id).expect("the three global weights have shapes");
        self.weight(tensor_name(id), id, shape, Presence::Required)
    }

    fn layer(&mut self, written_idx: LayerIdx, kept: &Kept) -> Result<(), WriteError> {
        for (role, _) in LAYER {
            let Some((shape, presence)) = expected_in_layer(self.config, &kept.shape, role) else { continue };
            let name = tensor_name(WeightId::layer(written_idx, role));
            let in_source = expected_in_layer(self.config, &kept.source_shape, role).is_some();
            if in_source {
                self.weight(name, WeightId::layer(kept.source_idx, role), shape, presence)?;
            } else if presence == Presence::Required {
                self.made_up(name, role, shape);
            }
        }
        Ok(())
    }

    /// Plans a weight of the source.
    fn weight(
        &mut self,
        name: String,
        id: WeightId,
        want: [usize; 2],
        presence: Presence,
    ) -> Result<(), WriteError> {
        let matrix = match presence {
            Presence::Required => self.source.require(id)?,
            Presence::Optional => match self.source.weight(id)? {
                Some(matrix) => matrix,
                None => return Ok(()),
            },
        };
        let got = [matrix.n_rows(), matrix.n_cols()];
        if got != want {
            return Err(WriteError::Shape { id, want, got });
        }
        let source_dtype = matrix.dtype();
        let dtype = stored_dtype(id.role, self.asked, source_dtype, want[1]);
        let falls_back = self.asked.is_some_and(|asked| asked != DType::F16) && dtype == DType::F16;
        if falls_back {
            self.plan.stored_as_f16.push(id);
        }
        let turns =
            matches!(id.role, WeightRole::QProj | WeightRole::KProj | WeightRole::QBias | WeightRole::KBias);
        let origin = if self.in_pairs && turns { Origin::SourceInPairs(id) } else { Origin::Source(id) };
        self.push(name, origin, source_dtype, dtype, want, id.role.is_vector());
        Ok(())
    }

    /// Plans a part that the source does not have: a norm of ones or a matrix of zeros.
    fn made_up(&mut self, name: String, role: WeightRole, shape: [usize; 2]) {
        let (value, dtype) = if role.is_vector() { (1.0, DType::F32) } else { (0.0, DType::F16) };
        self.push(name, Origin::Constant(value), dtype, dtype, shape, role.is_vector());
    }

    fn rope_factors(&mut self) {
        let factors = match &self.config.rope_scaling {
            RopeScaling::Factors(factors) => factors.clone(),
            scaling @ RopeScaling::Llama3 { .. } => llama3_factors(self.config, scaling),
            RopeScaling::None | RopeScaling::Linear { .. } => return,
        };
        let shape = [1, factors.len()];
        self.push(ROPE_FACTORS.to_owned(), Origin::Values(factors), DType::F32, DType::F32, shape, true);
    }

    fn push(
        &mut self,
        name: String,
        origin: Origin,
        source_dtype: DType,
        dtype: DType,
        shape: [usize; 2],
        is_vector: bool,
    ) {
        let row_bytes = dtype.row_bytes(shape[1]).expect("the dtype was chosen to divide the row");
        let bytes = shape[0] as u64 * row_bytes as u64;
        let head_dim = self.config.head_dim;
        self.plan.tensors.push(Planned {
            name,
            origin,
            source_dtype,
            dtype,
            shape,
            is_vector,
            head_dim,
            bytes,
        });
    }
}

/// Divisors of the rotary frequencies by the Llama-3 rule: 1 for short wavelengths, `factor` for long ones, a
/// blend between.
fn llama3_factors(config: &ModelConfig, scaling: &RopeScaling) -> Vec<f32> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } =
        scaling
    else {
        return Vec::new();
    };
    let context = f64::from(*original_max_position_embeddings);
    let (factor, low, high) = (f64::from(*factor), f64::from(*low_freq_factor), f64::from(*high_freq_factor));
    let pairs = config.head_dim / 2;
    let divisor = |pair: usize| {
        let exponent = 2.0 * pair as f64 / config.head_dim as f64;
        let wavelength = 2.0 * std::f64::consts::PI * f64::from(config.rope_theta).powf(exponent);
        if wavelength < context / high {
            1.0
        } else if context / low < wavelength {
            factor
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..pairs).map(|pair| divisor(pair) as f32).collect()
}
