//! Which models there are: the base model and the entries of the store, by id or by name.

use crate::ServiceError;
use crate::api::{ModelKind, ModelView};
use crate::convert::data_error;
use crate::opened::{model_name, open_file};
use secateur_model::WeightSource;
use secateur_model_file::ModelFile;
use secateur_store::{Entry, ModelId, Store};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Shortest beginning of an id that is taken for it.
const MIN_ID_PREFIX: usize = 8;

/// A model that can be opened.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) path: PathBuf,
    pub(crate) view: ModelView,
    /// The entry, for models of the store.
    pub(crate) entry: Option<ModelId>,
}

/// Describes a file given by the user; digests it.
/// # Errors
/// [`ServiceError::Io`], [`ServiceError::Data`].
pub(crate) fn base_model(path: &Path) -> Result<Known, ServiceError> {
    let file = open_file(path)?;
    let id = file.digest().map_err(|error| data_error(path, &error))?;
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let created = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let view = ModelView {
        created_unix_s: created.map_or(0, |since| since.as_secs()),
        ..file_view(&file, id, model_name(&file), ModelKind::Base)
    };
    Ok(Known { path: path.to_owned(), view, entry: None })
}

fn file_view(file: &ModelFile, id: String, name: String, kind: ModelKind) -> ModelView {
    let config = file.config();
    ModelView {
        id,
        name,
        kind,
        bytes: file.file_bytes(),
        active: false,
        created_unix_s: 0,
        n_layers: config.n_layers(),
        layer_params: config.all_layer_params(),
        max_position_embeddings: config.max_position_embeddings,
        source_digest: None,
        ratio: None,
        method: None,
    }
}

/// Describes an entry of the store.
/// # Errors
/// [`ServiceError::Io`], [`ServiceError::Data`] when its model cannot be opened.
pub(crate) fn stored_model(entry: &Entry) -> Result<Known, ServiceError> {
    let path = entry.model_path();
    let file = open_file(&path)?;
    let manifest = &entry.manifest;
    let reached = manifest.report.get("ratio_reached").and_then(serde_json::Value::as_f64);
    let view = ModelView {
        created_unix_s: manifest.created_unix_s,
        source_digest: Some(manifest.source.digest.clone()),
        ratio: Some(reached.unwrap_or(manifest.plan.ratio)),
        method: Some(manifest.method.clone()),
        ..file_view(&file, entry.id.to_string(), manifest.name.clone(), ModelKind::Pruned)
    };
    Ok(Known { path, view, entry: Some(entry.id.clone()) })
}

/// Every model: the base model first, then the store's by time of making. Entries that cannot be opened are left
/// out and logged.
/// # Errors
/// [`ServiceError::Io`] when the store cannot be read.
pub(crate) fn all_models(base: Option<&Known>, store: &Store) -> Result<Vec<Known>, ServiceError> {
    let listing = store.list()?;
    for damaged in &listing.damaged {
        let error = crate::convert::error_chain(&damaged.error);
        tracing::warn!(path = %damaged.path.display(), error, "not a usable entry of the store");
    }
    let mut stored = Vec::new();
    for entry in &listing.entries {
        match stored_model(entry) {
            Ok(known) => stored.push(known),
            Err(error) => tracing::warn!(id = %entry.id, %error, "an entry of the store cannot be opened"),
        }
    }
    stored.sort_by(|a, b| (a.view.created_unix_s, &a.view.id).cmp(&(b.view.created_unix_s, &b.view.id)));
    Ok(base.cloned().into_iter().chain(stored).collect())
}

/// The model that `text` means: an id, the beginning of one id, or a name that only one model has.
/// # Errors
/// [`ServiceError::ModelNotFound`]; [`ServiceError::Conflict`] when several are meant.
pub(crate) fn find_model(models: &[Known], text: &str) -> Result<Known, ServiceError> {
    if let Some(known) = models.iter().find(|known| known.view.id == text) {
        return Ok(known.clone());
    }
    let is_prefix = MIN_ID_PREFIX <= text.len();
    let is_meant = |known: &&Known| (is_prefix && known.view.id.starts_with(text)) || known.view.name == text;
    let meant: Vec<&Known> = models.iter().filter(is_meant).collect();
    match meant[..] {
        [known] => Ok(known.clone()),
        [] => {
            let id = text.chars().take(80).collect();
            Err(ServiceError::ModelNotFound { id })
        }
        _ => {
            let message = format!("{} models are called `{text}`; give an id", meant.len());
            Err(ServiceError::Conflict { message })
        }
    }
}

/// The file that `text` means: a path, or a model of the store.
/// # Errors
/// [`ServiceError::Io`] when there is neither.
pub fn resolve_model(text: &str, state_dir: &Path) -> Result<PathBuf, ServiceError> {
    let path = Path::new(text);
    let looks_like_id = MIN_ID_PREFIX <= text.len() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if path.exists() || !looks_like_id || !state_dir.is_dir() {
        return Ok(path.to_owned());
    }
    let models = all_models(None, &Store::open(state_dir)?)?;
    Ok(find_model(&models, text)?.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(id: &str, name: &str) -> Known {
        let view = ModelView {
            id: id.repeat(8),
            name: name.to_owned(),
            kind: ModelKind::Pruned,
            bytes: 0,
            active: false,
            created_unix_s: 0,
            n_layers: 0,
            layer_params: 0,
            max_position_embeddings: 0,
            source_digest: None,
            ratio: None,
            method: None,
        };
        Known { path: PathBuf::new(), view, entry: None }
    }

    #[test]
    fn models_are_meant_by_id_prefix_or_unique_name() {
        let models = [known("0123abcd", "A"), known("0123ffff", "B"), known("89abcdef", "B")];
        let id = "0123abcd".repeat(8);
        for text in [id.as_str(), "0123abcd", "A"] {
            assert_eq!(find_model(&models, text).unwrap().view.name, "A", "{text}");
        }
        assert!(matches!(find_model(&models, "B"), Err(ServiceError::Conflict { .. })));
        for text in ["", "0123", "0123a", "C", "../../etc/passwd"] {
            assert!(matches!(find_model(&models, text), Err(ServiceError::ModelNotFound { .. })), "{text}");
        }
    }
}
