//! The file itself: header, padding, temporary name, syncs, rename.

use super::plan::{Plan, Planned};
use crate::gguf::limits;
use crate::gguf::value::write_text;
use crate::{Metadata, ModelFile, ModelFileError, WriteError};
use secateur_model::{LayerConfig, WeightSource};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Version of the format that is written.
const VERSION: u32 = 3;
/// Bytes collected before they go to the file.
const BUFFER_BYTES: usize = 1 << 17;
/// Free space that is left over on purpose: directories and journals need some too.
const DISK_RESERVE_BYTES: u64 = 1 << 20;

/// Where everything lies in the file.
pub(super) struct Layout {
    pub(super) alignment: u64,
    pub(super) file_bytes: u64,
}

impl Layout {
    pub(super) fn new(metadata: &Metadata, plan: &Plan) -> Result<Self, WriteError> {
        let alignment = crate::gguf::alignment(metadata)
            .map_err(|error| WriteError::NotExportable(format!("base metadata: {error}")))?;
        let too_long =
            plan.tensors.iter().find(|tensor| limits::MAX_TENSOR_NAME_BYTES < tensor.name.len() as u64);
        assert!(too_long.is_none(), "our own tensor names are short: {too_long:?}");
        let mut counter = Counter(0);
        write_header(&mut counter, metadata, &plan.tensors, alignment).expect("counting cannot fail");
        let mut end = counter.0.next_multiple_of(alignment);
        for tensor in &plan.tensors {
            end = (end + tensor.bytes).next_multiple_of(alignment);
        }
        Ok(Self { alignment, file_bytes: end })
    }

    pub(super) fn write_header(
        &self,
        target: &mut Target,
        metadata: &Metadata,
        plan: &Plan,
    ) -> Result<(), WriteError> {
        let result = write_header(target, metadata, &plan.tensors, self.alignment);
        result.map_err(|source| target.io("write", source))
    }
}

fn write_header(
    out: &mut dyn Write,
    metadata: &Metadata,
    tensors: &[Planned],
    alignment: u64,
) -> io::Result<()> {
    out.write_all(b"GGUF")?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&(tensors.len() as u64).to_le_bytes())?;
    out.write_all(&(metadata.len() as u64).to_le_bytes())?;
    for (key, value) in metadata.iter() {
        write_text(out, key)?;
        value.write_to(out)?;
    }
    let mut offset = 0u64;
    for tensor in tensors {
        write_text(out, &tensor.name)?;
        let [n_rows, n_cols] = tensor.shape;
        let dims: &[usize] = if tensor.is_vector { &[n_cols] } else { &[n_cols, n_rows] };
        out.write_all(&(dims.len() as u32).to_le_bytes())?;
        for &dim in dims {
            out.write_all(&(dim as u64).to_le_bytes())?;
        }
        out.write_all(&tensor.dtype.ggml_id().to_le_bytes())?;
        out.write_all(&offset.to_le_bytes())?;
        offset = (offset + tensor.bytes).next_multiple_of(alignment);
    }
    Ok(())
}

/// Counts what is written to it.
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The file being written. Dropped before [`Target::commit`], it leaves nothing behind.
pub(super) struct Target {
    path: PathBuf,
    folder: PathBuf,
    out: BufWriter<NamedTempFile>,
    hasher: blake3::Hasher,
    written: u64,
    planned: u64,
}

impl Target {
    /// Opens a temporary file beside `path` and makes sure of room for `file_bytes`.
    pub(super) fn create(path: &Path, file_bytes: u64) -> Result<Self, WriteError> {
        let io = |action, source| WriteError::Io { action, path: path.to_owned(), source };
        let name =
            path.file_name().ok_or_else(|| io("write", io::Error::other("the path has no file name")))?;
        if path.is_dir() {
            return Err(io("write", io::Error::other("is a folder")));
        }
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let space = rustix::fs::statvfs(&folder).map_err(|error| io("find the free space", error.into()))?;
        check_space(path, file_bytes, space.f_bavail.saturating_mul(space.f_frsize))?;
        let prefix = format!(".{}.", name.to_string_lossy());
        // As any new file: readable as the umask says.
        let permissions = std::fs::Permissions::from_mode(0o666);
        let file = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".partial")
            .permissions(permissions)
            .tempfile_in(&folder)
            .map_err(|source| io("create a file beside it", source))?;
        reserve(path, file.as_file(), file_bytes)?;
        Ok(Self {
            path: path.to_owned(),
            folder,
            out: BufWriter::with_capacity(BUFFER_BYTES, file),
            hasher: blake3::Hasher::new(),
            written: 0,
            planned: file_bytes,
        })
    }

    pub(super) fn io(&self, action: &'static str, source: io::Error) -> WriteError {
        WriteError::Io { action, path: self.path.clone(), source }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.write_all(bytes).map_err(|source| self.io("write", source))
    }

    /// Fills up with zeros to the next multiple of `alignment`.
    pub(super) fn pad_to(&mut self, alignment: u64) -> Result<(), WriteError> {
        let zeros = [0; 256];
        let mut missing = self.written.next_multiple_of(alignment) - self.written;
        while 0 < missing {
            let len = missing.min(zeros.len() as u64);
            self.put(&zeros[..len as usize])?;
            missing -= len;
        }
        Ok(())
    }

    /// Syncs, reads back, renames, and syncs the folder. Returns size and digest.
    pub(super) fn commit(self, layers: &[LayerConfig]) -> Result<(u64, String), WriteError> {
        let (path, written) = (self.path.clone(), self.written);
        self.commit_checked(|file| {
            let back = ModelFile::open(file).map_err(|error| WriteError::ReadBack(Box::new(error)))?;
            if back.config().layers != layers || back.file_bytes() != written {
                let changed = ModelFileError::Changed { path, want: written, got: back.file_bytes() };
                return Err(WriteError::ReadBack(Box::new(changed)));
            }
            Ok(())
        })
    }

    /// Syncs, lets `check` look at the file under its temporary name, renames, and syncs the folder. Returns size and
    /// digest.
    pub(super) fn commit_checked(
        self,
        check: impl FnOnce(&Path) -> Result<(), WriteError>,
    ) -> Result<(u64, String), WriteError> {
        let Self { path, folder, out, hasher, written, planned } = self;
        assert_eq!(written, planned, "every byte of the file was planned");
        let io = |action, source| WriteError::Io { action, path: path.clone(), source };
        let file = out.into_inner().map_err(|error| io("write", error.into_error()))?;
        file.as_file().sync_all().map_err(|source| io("sync", source))?;
        check(file.path())?;
        file.persist(&path).map_err(|error| io("rename", error.error))?;
        let synced = File::open(&folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| io("sync the folder of", source))?;
        Ok((written, hasher.finalize().to_hex().to_string()))
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn check_space(path: &Path, need: u64, available: u64) -> Result<(), WriteError> {
    let need_bytes = need.saturating_add(DISK_RESERVE_BYTES);
    if need_bytes <= available {
        return Ok(());
    }
    Err(WriteError::DiskFull { path: path.to_owned(), need_bytes, available_bytes: available })
}

/// Takes the space at once where the file system can do that, so that a full disk shows before the work.
fn reserve(path: &Path, file: &File, bytes: u64) -> Result<(), WriteError> {
    use rustix::io::Errno;
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        Err(Errno::NOSPC) => check_space(path, bytes, 0),
        Err(error) => {
            Err(WriteError::Io { action: "reserve space for", path: path.to_owned(), source: error.into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named() {
        let path = Path::new("model.gguf");
        check_space(path, 5, DISK_RESERVE_BYTES + 5).unwrap();
        let error = check_space(path, 6, DISK_RESERVE_BYTES + 5).unwrap_err();
        let want = DISK_RESERVE_BYTES + 6;
        assert!(matches!(error, WriteError::DiskFull { need_bytes, .. } if need_bytes == want));
        assert!(check_space(path, u64::MAX, u64::MAX - 1).is_err());
    }

    #[test]
    fn an_impossible_reservation_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, "old").unwrap();
        assert!(Target::create(&path, 1 << 60).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
