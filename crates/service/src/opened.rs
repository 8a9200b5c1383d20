//! A model that has been opened: its file, and the tokenizer made of its vocabulary.

use crate::ServiceError;
use crate::convert::data_error;
use secateur_model::WeightSource;
use secateur_model_file::{ModelFile, ModelForm, StringArray};
use secateur_tokenizer::{GgufVocab, SpecialIds, StringList, Tokenizer};
use std::path::Path;
use std::sync::Arc;

/// An opened model. Cloning shares the mapping and the tables.
#[derive(Clone, Debug)]
pub struct OpenModel {
    file: ModelFile,
    tokenizer: Tokenizer,
}

impl OpenModel {
    /// Opens the model file at `path` and builds its tokenizer.
    /// # Errors
    /// [`ServiceError::Io`] and [`ServiceError::Data`], naming what is wrong.
    pub fn open(path: &Path) -> Result<Self, ServiceError> {
        let file = open_file(path)?;
        let tokenizer = build_tokenizer(&file)?;
        Ok(Self { file, tokenizer })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &ModelFile {
        &self.file
    }

    /// The weights.
    #[must_use]
    pub fn source(&self) -> Arc<dyn WeightSource> {
        Arc::new(self.file.clone())
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Name for people: what the file calls itself, or else the name of the file.
    #[must_use]
    pub fn name(&self) -> String {
        model_name(&self.file)
    }
}

/// Opens a model file alone, without its tokenizer.
/// # Errors
/// [`ServiceError::Io`] and [`ServiceError::Data`].
pub(crate) fn open_file(path: &Path) -> Result<ModelFile, ServiceError> {
    // The file system's own words are clearer than the mapping's.
    let metadata =
        std::fs::metadata(path).map_err(|source| ServiceError::Io { path: path.to_owned(), source })?;
    if !metadata.is_file() && !metadata.is_dir() {
        let message =
            "is neither file nor folder; a model is a GGUF file, a folder with config.json, tokenizer.json \
            and weights as safetensors or ONNX, or an id of `secateur models list`"
                .to_owned();
        return Err(ServiceError::Data { path: path.to_owned(), message });
    }
    ModelFile::open(path).map_err(|error| data_error(path, &error))
}

pub(crate) fn model_name(file: &ModelFile) -> String {
    let name = &file.config().name;
    if !name.is_empty() {
        return name.clone();
    }
    let path = file.path();
    // The files of a checkpoint all have the same names; its folder tells them apart.
    let folder = match file.form() {
        ModelForm::Gguf => None,
        _ if path.is_dir() => path.canonicalize().ok(),
        _ => path.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned)),
    };
    let name = folder.as_deref().map_or_else(|| path.file_stem(), Path::file_name);
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Lends the strings of a mapped file to the tokenizer, which knows no files.
struct Strings<'a>(&'a StringArray);

impl StringList for Strings<'_> {
    fn texts(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.0.iter())
    }
}

fn build_tokenizer(file: &ModelFile) -> Result<Tokenizer, ServiceError> {
    let path = file.path();
    let vocab = file.vocab().map_err(|error| data_error(path, &error))?;
    let tokenizer = Tokenizer::from_gguf(&GgufVocab {
        model: &vocab.model,
        pre: vocab.pre.as_deref(),
        tokens: &Strings(&vocab.tokens),
        token_types: &vocab.token_types,
        scores: &vocab.scores,
        merges: &Strings(&vocab.merges),
        special_ids: SpecialIds {
            bos: vocab.bos_id,
            eos: vocab.eos_id,
            eot: vocab.eot_id,
            eom: vocab.eom_id,
            unk: vocab.unknown_id,
            pad: vocab.padding_id,
        },
        add_bos: vocab.add_bos,
        add_eos: vocab.add_eos,
        add_space_prefix: vocab.add_space_prefix,
        chat_template: vocab.chat_template.as_deref(),
    });
    tokenizer.map_err(|error| data_error(path, &error))
}
