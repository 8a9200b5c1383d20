//! What can go wrong in the store.

use crate::ModelId;
use std::path::{Path, PathBuf};

/// Failure of a store operation. The set of entries is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// The disk is too full.
    #[error(
        "{}: {needed_bytes} bytes are needed on this disk, {available_bytes} are free; remove a model with \
         `secateur models remove` or choose another --state-dir",
        path.display()
    )]
    NoSpace {
        /// Folder on that disk.
        path: PathBuf,
        /// Bytes needed.
        needed_bytes: u64,
        /// Bytes free.
        available_bytes: u64,
    },
    /// No entry with this name.
    #[error("no model `{id}` in the store")]
    NotFound {
        /// What was asked for.
        id: String,
    },
    /// A text is not the name of an entry.
    #[error("`{text}` is not a model id: 64 lower-case hexadecimal digits")]
    BadId {
        /// What was given.
        text: String,
    },
    /// Somebody serves the entry.
    #[error("model `{id}` is in use by a running service; serve another model or stop the service first")]
    InUse {
        /// The entry.
        id: ModelId,
    },
    /// The manifest is not one.
    #[error("{}: {message}", path.display())]
    Manifest {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The manifest was written by a newer version of the program.
    #[error("{}: format version {got}, this program reads up to {newest}; update it", path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// Version found.
        got: u32,
        /// Newest version that is read.
        newest: u32,
    },
    /// The bytes of a file are not those the manifest records.
    #[error("{}: {what} is {got}, the manifest says {want}; remove the model and prune again", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// `size` or `digest`.
        what: &'static str,
        /// Recorded.
        want: String,
        /// Found.
        got: String,
    },
    /// The model file cannot be used.
    #[error("{}: {source}", path.display())]
    Model {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}
