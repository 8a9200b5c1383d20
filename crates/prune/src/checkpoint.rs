//! What a job leaves in its work folder so that a kill loses at most one layer.
//!
//! `job.json` holds the fingerprint of the inputs; `layer-017.done` the outcome of a layer. A record is
//! written only after everything it stands for is on disk. Another fingerprint means another job: the folder
//! is emptied and the work starts anew.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes `path` so that it is either whole or as before: temporary file, sync, rename, sync of the folder.
pub fn write_atomic(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temp = tempfile::NamedTempFile::new_in(dir)?;
    let mut writer = BufWriter::new(temp.as_file());
    fill(&mut writer)?;
    writer.flush()?;
    drop(writer);
    temp.as_file().sync_all()?;
    temp.persist(path).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}

/// The work folder of one job.
#[derive(Debug, Clone)]
pub(crate) struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    /// Opens the folder for a job with this fingerprint, emptying it when it belongs to another one.
    /// Returns whether earlier work is there.
    pub(crate) fn open(path: &Path, fingerprint: &str) -> io::Result<(Self, bool)> {
        fs::create_dir_all(path)?;
        let this = Self { path: path.to_owned() };
        let known: Option<String> = this.read("job.json")?;
        if known.as_deref() == Some(fingerprint) {
            return Ok((this, true));
        }
        this.clear()?;
        this.write("job.json", &fingerprint)?;
        Ok((this, false))
    }

    /// The folder at `path`, whatever job it belongs to.
    pub(crate) fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a record.
    pub(crate) fn write<T: Serialize>(&self, name: &str, record: &T) -> io::Result<()> {
        write_atomic(&self.file(name), |file| Ok(serde_json::to_writer(file, record)?))
    }

    /// Reads a record; `None` when it is not there or not readable as one.
    pub(crate) fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match fs::read(self.file(name)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the files of a job; files of other names stay.
    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let ours = ["job.json", "layer-", "spill-", "probe", ".tmp"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
            if ours && entry.file_type()?.is_file() {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes everything of the job, and the folder when nothing else is in it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        self.clear()?;
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_fingerprint_starts_anew_and_the_same_one_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job");
        let (work, resumed) = WorkDir::open(&path, "a").unwrap();
        assert!(!resumed);
        work.write("layer-000.done", &7).unwrap();
        std::fs::write(path.join("notes.txt"), "mine").unwrap();
        let (work, resumed) = WorkDir::open(&path, "a").unwrap();
        assert!(resumed);
        assert_eq!(work.read::<u32>("layer-000.done").unwrap(), Some(7));
        let (work, resumed) = WorkDir::open(&path, "b").unwrap();
        assert!(!resumed);
        assert_eq!(work.read::<u32>("layer-000.done").unwrap(), None);
        work.remove().unwrap();
        assert!(path.join("notes.txt").exists(), "files of others stay");
        assert!(!path.join("job.json").exists());
    }
}
