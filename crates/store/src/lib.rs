//! Crash-safe store of pruned models.
//!
//! `<state>/models/<digest>/{manifest.json, model.gguf}`: an entry is named after the BLAKE3 digest of its model
//! file, and a stock runtime can read that file. An entry appears by one rename of a folder whose files and names
//! are on disk, and disappears by one rename, so a kill at any point leaves the old set or the new one.
//! Half-done folders lie in `<state>/staging/` and are swept up by [`Store::collect_garbage`].
//!
//! Not here: pruning (the caller fills the file), which model is served.
//!
//! Memory: `O(manifest)`; files are digested through a buffer of 64 KiB.
#![forbid(unsafe_code)]

mod add;
mod error;
mod hook;
mod id;
mod manifest;
mod store;
#[cfg(test)]
mod tests;

pub use add::Added;
pub use error::StoreError;
pub use hook::{Hook, Outcome, Step};
pub use id::ModelId;
pub use manifest::{
    CalibrationRecord, Draft, FORMAT_VERSION, FileRecord, FootprintRecord, LayerRecord, Manifest, PlanRecord,
    SourceRecord,
};
pub use store::{Damaged, Entry, EntryInUse, Garbage, Listing, MODEL_FILE, Store, digest_file};
