//! The store on disk: finding, checking and removing entries.
//!
//! Locks are advisory and vanish with their process: `lock` is held while the set changes, a shared lock on an
//! entry's model file while it is served, an exclusive one on a staging folder's `.lock` while it is filled.

use crate::hook::{Hook, NoHook, Outcome, Step};
use crate::{Manifest, ModelId, StoreError};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the model in its entry.
pub const MODEL_FILE: &str = "model.gguf";
pub(crate) const MANIFEST_FILE: &str = "manifest.json";
pub(crate) const STAGING_LOCK: &str = ".lock";
/// Read at once while a file is digested.
const DIGEST_BUFFER_BYTES: usize = 64 << 10;

/// One pruned model.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub id: ModelId,
    /// Its folder.
    pub path: PathBuf,
    /// What it says about itself.
    pub manifest: Manifest,
}

impl Entry {
    /// The model file.
    #[must_use]
    pub fn model_path(&self) -> PathBuf {
        self.path.join(MODEL_FILE)
    }
}

/// A folder among the entries that is not one.
#[derive(Debug)]
pub struct Damaged {
    /// Where.
    pub path: PathBuf,
    /// What is wrong.
    pub error: StoreError,
}

/// All that is in the store.
#[derive(Debug, Default)]
pub struct Listing {
    /// Entries, by id.
    pub entries: Vec<Entry>,
    /// What looks like an entry and is not.
    pub damaged: Vec<Damaged>,
}

/// What was swept up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Folders removed.
    pub folders: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Keeps an entry from being removed by others while it lives.
#[derive(Debug)]
pub struct EntryInUse {
    _file: File,
}

/// The store. Cloning shares nothing but the path: all state is on disk.
#[derive(Clone)]
pub struct Store {
    pub(crate) models: PathBuf,
    pub(crate) staging: PathBuf,
    lock: PathBuf,
    hook: Arc<dyn Hook>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("models", &self.models).finish_non_exhaustive()
    }
}

/// How an operation stopped.
pub(crate) enum Stop {
    /// Clean up and report.
    Error(StoreError),
    /// Report as if killed.
    Crash(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Error(error)
    }
}

impl Store {
    /// Opens the store below `state_dir`, making its folders (readable by the owner only) when absent.
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        Self::open_with_hook(state_dir, Arc::new(NoHook))
    }

    /// As [`Self::open`], with a hook that is asked before every step.
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open_with_hook(state_dir: &Path, hook: Arc<dyn Hook>) -> Result<Self, StoreError> {
        let (models, staging) = (state_dir.join("models"), state_dir.join("staging"));
        for dir in [&models, &staging] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|error| StoreError::io(dir, error))?;
        }
        Ok(Self { models, staging, lock: state_dir.join("lock"), hook })
    }

    pub(crate) fn step(&self, step: Step, path: &Path) -> Result<(), Stop> {
        match self.hook.before(step, path) {
            Outcome::Continue => Ok(()),
            Outcome::Fail(error) => Err(Stop::Error(StoreError::io(path, error))),
            Outcome::Crash => {
                let error = io::Error::other("stopped by a test");
                Err(Stop::Crash(StoreError::io(path, error)))
            }
        }
    }

    /// Waits for the lock on the set of entries.
    pub(crate) fn lock_set(&self) -> Result<File, StoreError> {
        let fail = |error| StoreError::io(&self.lock, error);
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(&self.lock).map_err(fail)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| fail(error.into()))?;
        Ok(file)
    }

    /// All entries, and what is damaged.
    /// # Errors
    /// [`StoreError::Io`] when the folder itself cannot be read.
    pub fn list(&self) -> Result<Listing, StoreError> {
        let fail = |error| StoreError::io(&self.models, error);
        let mut listing = Listing::default();
        for dir_entry in fs::read_dir(&self.models).map_err(fail)? {
            let path = dir_entry.map_err(fail)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match name.parse().and_then(|id| read_entry(id, &path)) {
                Ok(entry) => listing.entries.push(entry),
                Err(error) => listing.damaged.push(Damaged { path, error }),
            }
        }
        listing.entries.sort_by(|a, b| a.id.cmp(&b.id));
        listing.damaged.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(listing)
    }

    /// The entry `id`.
    /// # Errors
    /// [`StoreError::NotFound`]; what is wrong with its manifest.
    pub fn get(&self, id: &ModelId) -> Result<Entry, StoreError> {
        let path = self.models.join(id.as_str());
        if !path.is_dir() {
            return Err(StoreError::NotFound { id: id.to_string() });
        }
        read_entry(id.clone(), &path)
    }

    /// The entry that pruning under `key` leads to; its files have the recorded sizes.
    ///
    /// `key` is a digest of everything that influences the bytes of the result. A damaged entry does not count.
    /// # Errors
    /// [`StoreError::Io`].
    pub fn find(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let listing = self.list()?;
        let mut found =
            listing.entries.into_iter().filter(|entry| entry.manifest.keys.iter().any(|k| k == key));
        Ok(found.find(|entry| check_sizes(entry).is_ok()))
    }

    /// Keeps an entry from being removed until the guard is dropped.
    /// # Errors
    /// [`StoreError::NotFound`] when it is gone already.
    pub fn hold(&self, id: &ModelId) -> Result<EntryInUse, StoreError> {
        // The manifest may be replaced when a key is added; the model file never is.
        let path = self.models.join(id.as_str()).join(MODEL_FILE);
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::NotFound { id: id.to_string() },
            _ => StoreError::io(&path, error),
        })?;
        flock(&file, FlockOperation::LockShared).map_err(|error| StoreError::io(&path, error.into()))?;
        Ok(EntryInUse { _file: file })
    }

    /// Reads every file of an entry and compares sizes and digests; opens the model file as a model.
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Model`]; [`StoreError::NotFound`].
    pub fn verify(&self, id: &ModelId) -> Result<Entry, StoreError> {
        let entry = self.get(id)?;
        check_digests(&entry)?;
        let path = entry.model_path();
        secateur_model_file::ModelFile::open(&path)
            .map_err(|error| StoreError::Model { path, source: Box::new(error) })?;
        Ok(entry)
    }

    /// Removes an entry, damaged or not.
    /// # Errors
    /// [`StoreError::InUse`] while somebody serves it; [`StoreError::NotFound`].
    pub fn remove(&self, id: &ModelId) -> Result<(), StoreError> {
        match self.remove_inner(id) {
            Ok(()) => Ok(()),
            Err(Stop::Error(error) | Stop::Crash(error)) => Err(error),
        }
    }

    fn remove_inner(&self, id: &ModelId) -> Result<(), Stop> {
        let path = self.models.join(id.as_str());
        let _set = self.lock_set()?;
        if !path.is_dir() {
            return Err(StoreError::NotFound { id: id.to_string() }.into());
        }
        if let Ok(model) = File::open(path.join(MODEL_FILE)) {
            let alone = flock(&model, FlockOperation::NonBlockingLockExclusive).is_ok();
            if !alone {
                return Err(StoreError::InUse { id: id.clone() }.into());
            }
        }
        let grave = self.set_aside(Step::Unpublish, &path)?;
        self.step(Step::SyncRemoved, &self.models)?;
        sync_dir(&self.models)?;
        self.step(Step::DeleteRemoved, &grave)?;
        fs::remove_dir_all(&grave).map_err(|error| StoreError::io(&grave, error).into())
    }

    /// Moves an entry into the staging folder by one rename.
    pub(crate) fn set_aside(&self, step: Step, path: &Path) -> Result<PathBuf, Stop> {
        self.step(step, path)?;
        let grave = tempfile::Builder::new().prefix("removed-").tempdir_in(&self.staging);
        let grave = grave.map_err(|error| StoreError::io(&self.staging, error))?.keep();
        // An empty folder may be renamed over.
        fs::rename(path, &grave).map_err(|error| StoreError::io(path, error))?;
        Ok(grave)
    }

    /// Removes folders that a killed process left behind. Folders at work are locked and stay.
    /// # Errors
    /// [`StoreError::Io`].
    pub fn collect_garbage(&self) -> Result<Garbage, StoreError> {
        let _set = self.lock_set()?;
        let fail = |error| StoreError::io(&self.staging, error);
        let mut garbage = Garbage::default();
        for dir_entry in fs::read_dir(&self.staging).map_err(fail)? {
            let path = dir_entry.map_err(fail)?.path();
            if is_at_work(&path) {
                continue;
            }
            garbage.bytes += folder_bytes(&path);
            garbage.folders += 1;
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|error| StoreError::io(&path, error))?;
        }
        Ok(garbage)
    }
}

/// True when a living process holds the folder's lock.
fn is_at_work(path: &Path) -> bool {
    let Ok(lock) = File::open(path.join(STAGING_LOCK)) else { return false };
    flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err()
}

fn folder_bytes(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(fs::Metadata::is_file)
        .map(|meta| meta.len())
        .sum()
}

fn read_entry(id: ModelId, path: &Path) -> Result<Entry, StoreError> {
    let manifest = Manifest::read(&path.join(MANIFEST_FILE))?;
    let recorded = manifest.files.iter().find(|file| file.name == MODEL_FILE);
    let entry = Entry { id, path: path.to_owned(), manifest: manifest.clone() };
    match recorded {
        Some(file) if file.blake3 == entry.id.as_str() => Ok(entry),
        Some(file) => Err(StoreError::Damaged {
            path: entry.model_path(),
            what: "digest",
            want: file.blake3.clone(),
            got: entry.id.to_string(),
        }),
        None => Err(StoreError::Manifest {
            path: path.join(MANIFEST_FILE),
            message: format!("does not record `{MODEL_FILE}`"),
        }),
    }
}

fn check_sizes(entry: &Entry) -> Result<(), StoreError> {
    for file in &entry.manifest.files {
        let path = entry.path.join(&file.name);
        let got = fs::metadata(&path).map_err(|error| StoreError::io(&path, error))?.len();
        if got != file.bytes {
            let (want, got) = (file.bytes.to_string(), got.to_string());
            return Err(StoreError::Damaged { path, what: "size", want, got });
        }
    }
    Ok(())
}

/// Compares sizes first: they are cheap and say more.
pub(crate) fn check_digests(entry: &Entry) -> Result<(), StoreError> {
    check_sizes(entry)?;
    for file in &entry.manifest.files {
        let path = entry.path.join(&file.name);
        let (_, got) = digest_file(&path)?;
        if got != file.blake3 {
            return Err(StoreError::Damaged { path, what: "digest", want: file.blake3.clone(), got });
        }
    }
    Ok(())
}

/// Size and BLAKE3 digest (hex) of a file, read through a small buffer: no mapping, no resident pages.
/// # Errors
/// [`StoreError::Io`].
pub fn digest_file(path: &Path) -> Result<(u64, String), StoreError> {
    let fail = |error| StoreError::io(path, error);
    let mut file = File::open(path).map_err(fail)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; DIGEST_BUFFER_BYTES];
    let mut bytes = 0;
    loop {
        let n_read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n_read) => n_read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(fail(error)),
        };
        hasher.update(&buffer[..n_read]);
        bytes += n_read as u64;
    }
    Ok((bytes, hasher.finalize().to_hex().to_string()))
}

pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|error| StoreError::io(path, error))
}
