//! Looking after the store without a running service.

use crate::ServiceError;
use crate::api::ModelView;
use crate::catalog::stored_model;
use crate::convert::error_chain;
use secateur_store::{Entry, Listing, ModelId, Store};
use serde::Serialize;
use std::path::Path;

/// Shortest beginning of an id that is taken for it.
const MIN_ID_PREFIX: usize = 8;

/// Something in the store that cannot be used.
#[derive(Clone, Debug, Serialize)]
pub struct DamagedModel {
    /// Where.
    pub path: String,
    /// What is wrong.
    pub error: String,
}

/// What is in the store.
#[derive(Clone, Debug, Serialize)]
pub struct ModelsReport {
    /// Usable models, by id.
    pub models: Vec<ModelView>,
    /// What is not usable.
    pub damaged: Vec<DamagedModel>,
}

/// What became of a check.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// Ids of models that are whole.
    pub whole: Vec<String>,
    /// What is not.
    pub damaged: Vec<DamagedModel>,
}

fn damaged(listing: &Listing) -> Vec<DamagedModel> {
    let of = |damaged: &secateur_store::Damaged| DamagedModel {
        path: damaged.path.display().to_string(),
        error: error_chain(&damaged.error),
    };
    listing.damaged.iter().map(of).collect()
}

fn damaged_entry(entry: &Entry, error: &dyn std::error::Error) -> DamagedModel {
    DamagedModel { path: entry.path.display().to_string(), error: error_chain(error) }
}

/// Lists the store below `state_dir`; without one there are no models.
/// # Errors
/// [`ServiceError::Io`].
pub fn list_models(state_dir: &Path) -> Result<ModelsReport, ServiceError> {
    let mut report = ModelsReport { models: Vec::new(), damaged: Vec::new() };
    if !state_dir.is_dir() {
        return Ok(report);
    }
    let listing = Store::open(state_dir)?.list()?;
    report.damaged = damaged(&listing);
    for entry in &listing.entries {
        match stored_model(entry) {
            Ok(known) => report.models.push(known.view),
            Err(error) => report.damaged.push(damaged_entry(entry, &error)),
        }
    }
    Ok(report)
}

/// Compares every file with its digest; all models when `ids` is empty.
/// # Errors
/// [`ServiceError::ModelNotFound`]; damage is in the report.
pub fn verify_models(state_dir: &Path, ids: &[String]) -> Result<VerifyReport, ServiceError> {
    let mut report = VerifyReport { whole: Vec::new(), damaged: Vec::new() };
    if !state_dir.is_dir() && ids.is_empty() {
        return Ok(report);
    }
    let store = Store::open(state_dir)?;
    let listing = store.list()?;
    let meant: Vec<ModelId> = if ids.is_empty() {
        report.damaged = damaged(&listing);
        listing.entries.iter().map(|entry| entry.id.clone()).collect()
    } else {
        find_ids(&listing, ids)?
    };
    for id in meant {
        match store.verify(&id) {
            Ok(_) => report.whole.push(id.to_string()),
            Err(error) => {
                let path = state_dir.join("models").join(id.as_str()).display().to_string();
                report.damaged.push(DamagedModel { path, error: error_chain(&error) });
            }
        }
    }
    Ok(report)
}

/// Removes models, damaged ones too; returns their ids. Nothing is removed when one of `ids` is not there.
/// # Errors
/// [`ServiceError::ModelNotFound`]; [`ServiceError::Conflict`] while a service serves one.
pub fn remove_models(state_dir: &Path, ids: &[String]) -> Result<Vec<String>, ServiceError> {
    let Some(first) = ids.first() else { return Ok(Vec::new()) };
    if !state_dir.is_dir() {
        return Err(ServiceError::ModelNotFound { id: first.clone() });
    }
    let store = Store::open(state_dir)?;
    let meant = find_ids(&store.list()?, ids)?;
    for id in &meant {
        store.remove(id)?;
    }
    Ok(meant.iter().map(ModelId::to_string).collect())
}

/// The ids that `texts` begin; folders with a damaged entry count too.
fn find_ids(listing: &Listing, texts: &[String]) -> Result<Vec<ModelId>, ServiceError> {
    let entries = listing.entries.iter().map(|entry| entry.id.clone());
    let broken =
        listing.damaged.iter().filter_map(|damaged| damaged.path.file_name()?.to_str()?.parse().ok());
    let known: Vec<ModelId> = entries.chain(broken).collect();
    let find = |text: &String| {
        let begins = |id: &&ModelId| MIN_ID_PREFIX <= text.len() && id.as_str().starts_with(text.as_str());
        let meant: Vec<&ModelId> = known.iter().filter(begins).collect();
        match meant[..] {
            [id] => Ok(id.clone()),
            [] => Err(ServiceError::ModelNotFound { id: text.clone() }),
            _ => {
                let message = format!("{} models begin with `{text}`; give more of the id", meant.len());
                Err(ServiceError::Conflict { message })
            }
        }
    };
    texts.iter().map(find).collect()
}
