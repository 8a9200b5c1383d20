//! Adding an entry: staging folder, files, sync, rename, sync.

use crate::hook::Step;
use crate::manifest::{Draft, FileRecord, Manifest};
use crate::store::{
    Entry, MANIFEST_FILE, MODEL_FILE, STAGING_LOCK, Stop, Store, check_digests, digest_file, sync_dir,
};
use crate::{ModelId, StoreError};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use tempfile::TempDir;

/// Free bytes asked for beyond the model: manifest, folders, and air for the file system.
const SPARE_BYTES: u64 = 1 << 20;

/// What became of an entry that was added.
#[derive(Clone, Debug)]
pub enum Added {
    /// It was not there before.
    New(Entry),
    /// The same bytes were there already; the entry knows the new key too.
    Known(Entry),
}

impl Added {
    /// The entry.
    #[must_use]
    pub fn into_entry(self) -> Entry {
        match self {
            Self::New(entry) | Self::Known(entry) => entry,
        }
    }
}

impl Store {
    /// Adds the model that `fill` writes to the path it is given.
    ///
    /// `expected_bytes` is compared with the free space first. `draft` is called after `fill`, so that it can
    /// tell what was learned meanwhile.
    /// # Errors
    /// [`StoreError::NoSpace`], [`StoreError::Io`], and what `fill` returns, converted by the caller.
    pub fn add<E: From<StoreError>>(
        &self,
        expected_bytes: u64,
        fill: impl FnOnce(&Path) -> Result<(), E>,
        draft: impl FnOnce() -> Draft,
    ) -> Result<Added, E> {
        self.check_space(expected_bytes)?;
        let staging = self.new_staging()?;
        let model = staging.dir.path().join(MODEL_FILE);
        match self.step(Step::FillModel, &model) {
            Ok(()) => fill(&model)?,
            Err(stop) => return Err(staging.stopped(stop).into()),
        }
        match self.finish(&staging, draft()) {
            Ok(added) => Ok(added),
            Err(stop) => Err(staging.stopped(stop).into()),
        }
    }

    fn check_space(&self, expected_bytes: u64) -> Result<(), StoreError> {
        let path = &self.staging;
        let stat = rustix::fs::statvfs(path).map_err(|error| StoreError::io(path, error.into()))?;
        let available_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        let needed_bytes = expected_bytes.saturating_add(SPARE_BYTES);
        if needed_bytes <= available_bytes {
            return Ok(());
        }
        Err(StoreError::NoSpace { path: path.clone(), needed_bytes, available_bytes })
    }

    fn new_staging(&self) -> Result<Staging, StoreError> {
        let fail = |error| StoreError::io(&self.staging, error);
        // Under the lock of the set, so that no sweep sees the folder before it is locked.
        let _set = self.lock_set()?;
        if let Err(Stop::Error(error) | Stop::Crash(error)) = self.step(Step::CreateStaging, &self.staging) {
            return Err(error);
        }
        let dir = tempfile::Builder::new().prefix("add-").tempdir_in(&self.staging).map_err(fail)?;
        let lock = File::create(dir.path().join(STAGING_LOCK)).map_err(fail)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| fail(error.into()))?;
        Ok(Staging { dir, _lock: lock })
    }

    fn finish(&self, staging: &Staging, draft: Draft) -> Result<Added, Stop> {
        let dir = staging.dir.path();
        let model = dir.join(MODEL_FILE);
        self.step(Step::SyncModel, &model)?;
        File::open(&model).and_then(|file| file.sync_all()).map_err(|error| StoreError::io(&model, error))?;
        self.step(Step::DigestModel, &model)?;
        let (bytes, blake3) = digest_file(&model)?;
        let id: ModelId = blake3.parse()?;
        let manifest = Manifest::new(draft, vec![FileRecord { name: MODEL_FILE.to_owned(), bytes, blake3 }]);
        self.write_manifest(&dir.join(MANIFEST_FILE), &manifest)?;
        self.step(Step::SyncStaging, dir)?;
        sync_dir(dir)?;
        self.publish(staging, id, manifest)
    }

    fn write_manifest(&self, path: &Path, manifest: &Manifest) -> Result<(), Stop> {
        let fail = |error| StoreError::io(path, error);
        let bad = |error: serde_json::Error| StoreError::io(path, error.into());
        let text = serde_json::to_vec_pretty(manifest).map_err(bad)?;
        let dir = path.parent().unwrap_or(Path::new("."));
        self.step(Step::WriteManifest, path)?;
        let mut temp = tempfile::NamedTempFile::new_in(dir).map_err(fail)?;
        temp.write_all(&text).map_err(fail)?;
        self.step(Step::SyncManifest, path)?;
        temp.as_file().sync_all().map_err(fail)?;
        temp.persist(path).map_err(|error| fail(error.error))?;
        Ok(())
    }

    fn publish(&self, staging: &Staging, id: ModelId, manifest: Manifest) -> Result<Added, Stop> {
        let _set = self.lock_set()?;
        let target = self.models.join(id.as_str());
        if target.exists() {
            match self.get(&id) {
                Ok(known) if check_digests(&known).is_ok() => return self.add_key(known, &manifest),
                _ => {
                    let grave = self.set_aside(Step::SetAsideDamaged, &target)?;
                    fs::remove_dir_all(&grave).map_err(|error| StoreError::io(&grave, error))?;
                }
            }
        }
        let dir = staging.dir.path();
        self.step(Step::Publish, &target)?;
        fs::remove_file(dir.join(STAGING_LOCK)).map_err(|error| StoreError::io(dir, error))?;
        fs::rename(dir, &target).map_err(|error| StoreError::io(&target, error))?;
        self.step(Step::SyncModels, &self.models)?;
        sync_dir(&self.models)?;
        Ok(Added::New(Entry { id, path: target, manifest }))
    }

    /// The same bytes came out under another key: remember it.
    fn add_key(&self, mut known: Entry, manifest: &Manifest) -> Result<Added, Stop> {
        let keys = &mut known.manifest.keys;
        keys.extend(manifest.keys.iter().cloned());
        keys.sort();
        keys.dedup();
        self.write_manifest(&known.path.join(MANIFEST_FILE), &known.manifest)?;
        self.step(Step::SyncModels, &known.path)?;
        sync_dir(&known.path)?;
        Ok(Added::Known(known))
    }
}

/// A folder that is being filled; removed when dropped, unless it was renamed away.
struct Staging {
    dir: TempDir,
    _lock: File,
}

impl Staging {
    fn stopped(self, stop: Stop) -> StoreError {
        match stop {
            Stop::Error(error) => error,
            Stop::Crash(error) => {
                // A killed process cleans nothing up, but the system takes its locks.
                let _ = self.dir.keep();
                error
            }
        }
    }
}
