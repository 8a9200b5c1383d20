//! The jobs that clients asked for and that have not ended, in a file: a stop or a kill of the service loses none,
//! and a job keeps its number and a following client its place in the events.

use crate::ServiceError;
use crate::api::{JobId, PruneQuery};
use crate::convert::io_error;
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Write};
use std::path::Path;

/// A job that has not ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PendingJob {
    pub(crate) id: JobId,
    pub(crate) created_unix_s: u64,
    /// Starts of the service since it was asked for; its events are numbered from there.
    pub(crate) n_starts: u32,
    /// How often the service was killed while the job was at work.
    pub(crate) n_kills: u32,
    pub(crate) query: PruneQuery,
}

/// What is in the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PendingJobs {
    /// The newest number a job was given; none is given twice.
    pub(crate) last_id: JobId,
    /// The job at work; still there after a start when the service was killed.
    pub(crate) at_work: Option<JobId>,
    pub(crate) jobs: Vec<PendingJob>,
}

impl PendingJobs {
    /// Reads the file; nothing is pending where there is none.
    /// # Errors
    /// [`ServiceError::Io`] when it cannot be read or makes no sense.
    pub(crate) fn read(path: &Path) -> Result<Self, ServiceError> {
        match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| io_error(path, error.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(io_error(path, error)),
        }
    }

    /// Replaces the file.
    /// # Errors
    /// [`ServiceError::Io`]; the file is as it was then.
    pub(crate) fn write(&self, path: &Path) -> Result<(), ServiceError> {
        let text = serde_json::to_vec(self).map_err(|error| crate::convert::internal(&error))?;
        secateur_prune::write_atomic(path, |file| file.write_all(&text))
            .map_err(|error| io_error(path, error))
    }
}
