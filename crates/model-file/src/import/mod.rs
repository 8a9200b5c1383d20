//! Checkpoints in other forms than GGUF: a folder with safetensors files or an ONNX graph, `config.json` and
//! `tokenizer.json`.
//!
//! The result is what a GGUF file gives: views into mapped files, a checked configuration, and metadata whose
//! `tokenizer.ggml.*` keys say what the tokenizer's files say, so that nothing behind this crate knows the
//! difference and the writer makes a GGUF file of it. Weights are used in place; ONNX matrices that are stored
//! `[in, out]` go, transposed in blocks, into an unlinked temporary file, and so does the vocabulary.
//!
//! Everything in these files may be hostile: each has a limit, names lead nowhere but into the checkpoint's folder,
//! and what is wrong is named with its file. Memory: names, and while a tokenizer is read, its texts once.

mod config;
mod error;
mod files;
mod names;
mod onnx;
mod safetensors;
mod scratch;
mod vocab;

pub use error::ImportError;
pub(crate) use files::is_checkpoint;
pub(crate) use names::tensor_name;
pub(crate) use vocab::PRE_TOKENIZERS;

use crate::layout::check_weights;
use crate::model::{Content, ModelForm, Parts};
use crate::{Mapped, Metadata, ModelFileError, TensorInfo};
use config::Checked;
use files::{CONFIG, Companion, Located, MAX_SMALL_BYTES, Weights, name_of, required};
use scratch::Scratch;
use secateur_model::{Architecture, ModelConfig, WeightId, WeightRole};
use std::collections::BTreeMap;
use std::path::Path;

/// The weights of a checkpoint and the files they are in.
#[derive(Default)]
struct Gathered {
    /// Files with weights, in the order of [`TensorInfo::shard`].
    shards: Vec<Mapped>,
    weights: BTreeMap<WeightId, TensorInfo>,
    /// In the order of the files.
    order: Vec<WeightId>,
    /// Small files that were read for the weights.
    companions: Vec<Companion>,
    /// Matrices that must be stored anew.
    transposed: Vec<onnx::Transposed>,
}

impl Gathered {
    /// Takes a tensor for the weight its name says.
    fn add(&mut self, tensor: TensorInfo) -> Result<(), ModelFileError> {
        match names::parse(&tensor.name) {
            Some(id) => self.insert(id, tensor),
            None if names::is_derived(&tensor.name) => Ok(()),
            None => Err(ModelFileError::UnexpectedTensor(tensor.name)),
        }
    }

    fn insert(&mut self, id: WeightId, tensor: TensorInfo) -> Result<(), ModelFileError> {
        if self.weights.contains_key(&id) {
            return Err(ModelFileError::DuplicateTensor(tensor.name));
        }
        self.order.push(id);
        self.weights.insert(id, tensor);
        Ok(())
    }

    fn remove(&mut self, id: WeightId) {
        self.weights.remove(&id);
        self.order.retain(|&known| known != id);
        self.transposed.retain(|matrix| matrix.id != id);
    }
}

/// Opens the checkpoint at `path`: a folder, or one of its files of weights.
pub(crate) fn open(path: &Path) -> Result<Parts, ModelFileError> {
    let Located { weights: located, dir } = files::locate(path)?;
    let config_file = required(&dir, CONFIG, MAX_SMALL_BYTES)?;
    let Checked { model: config, biases } =
        config::read(config_file.bytes()).map_err(|error| config_file.wrong(error))?;
    let mut gathered = match &located {
        Weights::Safetensors(file) => safetensors::gather_file(file)?,
        Weights::Index(file) => safetensors::gather_index(file)?,
        Weights::Onnx(file) => onnx::gather(file, &config)?,
    };
    if config.tie_word_embeddings {
        // Some exporters write the table twice; the configuration decides which one counts.
        gathered.remove(WeightId::global(WeightRole::LmHead));
    } else if !gathered.weights.contains_key(&WeightId::global(WeightRole::LmHead)) {
        let name = names::tensor_name(WeightId::global(WeightRole::LmHead));
        return Err(ModelFileError::MissingTensor(name).in_file(located.path()));
    }
    let check = check_weights(&config, &gathered.weights, names::tensor_name)
        .and_then(|()| check_biases(&config, biases, &gathered));
    check.map_err(|error| error.in_file(located.path()))?;
    let vocab = vocab::read(&dir, config.vocab_size, config_file.bytes())?;
    let need_bytes = vocab.bytes() + gathered.transposed.iter().map(onnx::Transposed::bytes).sum::<u64>();
    let mut scratch = Scratch::create(&dir, need_bytes)?;
    let places = vocab.store(&mut scratch)?;
    onnx::transpose_all(&mut gathered, &mut scratch)?;
    let scratch = scratch.finish()?;
    let mut metadata = base_metadata(&config);
    vocab.describe(&places, scratch.bytes(), &mut metadata);
    let (mut companions, n_shards) = (vocab.companions, gathered.shards.len());
    companions.push(config_file);
    companions.append(&mut gathered.companions);
    let content =
        Content::of_files(companions.iter().map(|file| (name_of(&file.path), file.bytes())), n_shards);
    let Gathered { mut shards, weights, order, .. } = gathered;
    shards.push(scratch);
    let form = match located {
        Weights::Safetensors(_) | Weights::Index(_) => ModelForm::Safetensors,
        Weights::Onnx(_) => ModelForm::Onnx,
    };
    Ok(Parts { form, shards, metadata, config, weights, order, content })
}

/// The biases that are there are those the configuration speaks of: others would be computed where the model's own
/// class leaves them out, or the other way round.
fn check_biases(
    config: &ModelConfig,
    biases: config::Biases,
    gathered: &Gathered,
) -> Result<(), ModelFileError> {
    use WeightRole::{DownBias, GateBias, KBias, OBias, QBias, UpBias, VBias};
    for layer_idx in 0..config.n_layers() {
        for role in [QBias, KBias, VBias, OBias, GateBias, UpBias, DownBias] {
            let id = WeightId::layer(layer_idx, role);
            let is_there = gathered.weights.contains_key(&id);
            if biases.wants(role).is_some_and(|wanted| wanted != is_there) {
                let state = if is_there { "is there" } else { "is missing" };
                return Err(ImportError::Bias { name: names::tensor_name(id), state }.into());
            }
        }
    }
    Ok(())
}

/// What a GGUF file of this model would say about itself, beside its shape, which the writer sets.
fn base_metadata(config: &ModelConfig) -> Metadata {
    let mut metadata = Metadata::default();
    metadata.set(
        "general.architecture",
        match config.architecture {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
        },
    );
    metadata.set("general.type", "model");
    if !config.name.is_empty() {
        metadata.set("general.name", config.name.as_str());
    }
    metadata
}
