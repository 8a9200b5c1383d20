//! Writing a model as GGUF or as a folder with safetensors, whatever it was opened from.

use super::prune::check_out;
use crate::ServiceError;
use crate::convert::invalid;
use crate::opened::OpenModel;
use crate::pruning::write_error;
use secateur_model_file::{ModelForm, WriteOptions, write_checkpoint, write_gguf};
use secateur_tensor::DType;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct ExportReport {
    /// The file or folder.
    pub out: PathBuf,
    /// What was written: `gguf` or `safetensors`.
    pub output_form: &'static str,
    /// What the model was opened from: `gguf`, `safetensors` or `onnx`.
    pub form: &'static str,
    /// Architecture the result says it has: `llama`, `qwen2` or `deci`, or a class of transformers.
    pub output_architecture: &'static str,
    /// Digest of the result.
    pub output_digest: String,
    /// Size of the model's files.
    pub bytes_before: u64,
    /// Size of its weights.
    pub bytes_after: u64,
    /// Peak resident memory of the process.
    pub rss_peak_bytes: u64,
    /// Decisions worth knowing.
    pub notes: Vec<String>,
}

/// Writes the model to `out` in the form `format` (`gguf` or `safetensors`), its matrices as `dtype`: `keep` or one
/// that can be written.
/// # Errors
/// [`ServiceError::Invalid`] and [`ServiceError::Io`].
pub fn export(
    model: &OpenModel,
    out: &Path,
    format: &str,
    dtype: &str,
) -> Result<ExportReport, ServiceError> {
    let form = match format {
        "gguf" => ModelForm::Gguf,
        "safetensors" => ModelForm::Safetensors,
        other => {
            return Err(invalid("format", format!("`{other}` is not known, allowed are gguf, safetensors")));
        }
    };
    let dtype = parse_dtype(dtype)?;
    let file = model.file();
    let (output_architecture, output_digest, bytes_after, stored_as_f16, mut notes) = match form {
        ModelForm::Gguf => {
            check_out(out, file.path())?;
            let options = WriteOptions { dtype, ..WriteOptions::default() };
            let written = write_gguf(out, file.metadata(), file, &options);
            let written = written.map_err(|error| write_error(out, error))?;
            (written.architecture, written.digest, written.bytes, written.stored_as_f16.len(), written.notes)
        }
        ModelForm::Safetensors | ModelForm::Onnx => {
            check_folder(out)?;
            let written = write_checkpoint(out, file.metadata(), file, dtype);
            let written = written.map_err(|error| write_error(out, error))?;
            (written.class, written.digest, written.bytes, written.stored_as_f16.len(), Vec::new())
        }
    };
    if 0 < stored_as_f16 {
        let why = if form == ModelForm::Gguf {
            "their rows do not divide into blocks"
        } else {
            "they were quantised"
        };
        notes.push(format!("{stored_as_f16} matrices are f16: {why}"));
    }
    Ok(ExportReport {
        out: out.to_owned(),
        output_form: form.name(),
        form: file.form().name(),
        output_architecture,
        output_digest,
        bytes_before: file.file_bytes(),
        bytes_after,
        rss_peak_bytes: crate::budget::resident_bytes().1,
        notes,
    })
}

/// A folder is written anew, into a folder that is there.
fn check_folder(out: &Path) -> Result<(), ServiceError> {
    let is_free = std::fs::read_dir(out).map_or(!out.exists(), |mut entries| entries.next().is_none());
    if !is_free {
        return Err(invalid(
            "out",
            format!("{} is there already; give the name of a new folder", out.display()),
        ));
    }
    match out.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.is_dir()) {
        Some(dir) => Err(invalid("out", format!("there is no folder {}", dir.display()))),
        None => Ok(()),
    }
}

/// `keep`, or a dtype.
fn parse_dtype(dtype: &str) -> Result<Option<DType>, ServiceError> {
    let unknown = || {
        invalid(
            "dtype",
            format!("`{dtype}` is not known, allowed are keep, f32, f16, bf16, q8_0, q4_0, q4_1"),
        )
    };
    match dtype.eq_ignore_ascii_case("keep") {
        true => Ok(None),
        false => DType::from_name(dtype).map(Some).ok_or_else(unknown),
    }
}
