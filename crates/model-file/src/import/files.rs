//! Finding the files of a checkpoint, and reading the small ones under a limit.

use super::ImportError;
use crate::{Mapped, ModelFileError};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Most bytes of config.json, generation_config.json and chat_template.jinja.
pub(super) const MAX_SMALL_BYTES: u64 = 1 << 20;
/// Most bytes of tokenizer_config.json.
pub(super) const MAX_TOKENIZER_CONFIG_BYTES: u64 = 8 << 20;
/// Most bytes of tokenizer.json.
pub(super) const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
/// Most bytes of an index of shards.
pub(super) const MAX_INDEX_BYTES: u64 = 8 << 20;

/// The weights of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Weights {
    /// One safetensors file.
    Safetensors(PathBuf),
    /// An index of safetensors files beside it.
    Index(PathBuf),
    /// An ONNX graph.
    Onnx(PathBuf),
}

impl Weights {
    fn of_file(path: &Path) -> Option<Self> {
        let ends = |suffix: &str| {
            path.file_name().is_some_and(|name| name.to_string_lossy().to_ascii_lowercase().ends_with(suffix))
        };
        if ends(".safetensors") {
            Some(Self::Safetensors(path.to_owned()))
        } else if ends(".safetensors.index.json") {
            Some(Self::Index(path.to_owned()))
        } else if ends(".onnx") {
            Some(Self::Onnx(path.to_owned()))
        } else {
            None
        }
    }

    /// The file that leads to all of them.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Safetensors(path) | Self::Index(path) | Self::Onnx(path) => path,
        }
    }
}

/// Where a checkpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Located {
    pub(super) weights: Weights,
    /// Folder of config.json and the tokenizer's files.
    pub(super) dir: PathBuf,
}

/// True when `path` is opened as a checkpoint, and not as GGUF.
pub(crate) fn is_checkpoint(path: &Path) -> bool {
    path.is_dir() || Weights::of_file(path).is_some()
}

/// Finds the weights and the folder of the other files.
pub(super) fn locate(path: &Path) -> Result<Located, ModelFileError> {
    let weights = if path.is_dir() { in_folder(path)? } else { Weights::of_file(path) };
    let weights = weights.ok_or_else(|| ImportError::NoWeights(path.to_owned()))?;
    let beside = match weights.path().parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    };
    // Repositories keep their graphs in `onnx/` and everything else above it.
    let above = beside.join("..");
    let is_below = beside.canonicalize().is_ok_and(|dir| dir.file_name() == Some(OsStr::new("onnx")));
    let dir = if is_below && !beside.join(CONFIG).exists() { above } else { beside };
    Ok(Located { weights, dir })
}

/// Name of the configuration.
pub(super) const CONFIG: &str = "config.json";

fn in_folder(dir: &Path) -> Result<Option<Weights>, ModelFileError> {
    let names = ["model.safetensors", "model.safetensors.index.json", "model.onnx", "onnx/model.onnx"];
    Ok(names
        .iter()
        .map(|name| dir.join(name))
        .find(|path| path.is_file())
        .and_then(|path| Weights::of_file(&path)))
}

/// Maps a file that must be a regular one: opening a pipe would wait for its other end.
pub(super) fn map_regular(path: &Path) -> Result<Mapped, ModelFileError> {
    let io = |source| ModelFileError::Io { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(io(std::io::Error::other("not a regular file")));
    }
    Mapped::open(path)
}

/// A small file of a checkpoint: what it holds, and what its content adds to the digest.
pub(super) struct Companion {
    pub(super) path: PathBuf,
    pub(super) mapped: Mapped,
}

impl Companion {
    /// Its bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        self.mapped.bytes()
    }

    /// Puts the file's name before an error about it.
    pub(super) fn wrong(&self, error: impl Into<ModelFileError>) -> ModelFileError {
        error.into().in_file(&self.path)
    }
}

/// Maps the file `name` of `dir`; `None` when there is none.
pub(super) fn companion(dir: &Path, name: &str, limit: u64) -> Result<Option<Companion>, ModelFileError> {
    let path = dir.join(name);
    if std::fs::metadata(&path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let mapped = map_regular(&path)?;
    let bytes = mapped.bytes().len() as u64;
    if limit < bytes {
        return Err(ModelFileError::from(ImportError::FileTooLarge { bytes, limit }).in_file(&path));
    }
    Ok(Some(Companion { path, mapped }))
}

/// As [`companion`], for a file that must be there.
pub(super) fn required(dir: &Path, name: &'static str, limit: u64) -> Result<Companion, ModelFileError> {
    companion(dir, name, limit)?
        .ok_or_else(|| ModelFileError::from(ImportError::MissingFile { file: name }).in_file(dir))
}

/// The name of a checkpoint's file in its digest: below the folder of the weights or the configuration.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
