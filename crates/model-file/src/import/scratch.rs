//! An unlinked temporary file for what a checkpoint does not hold in the form we use: transposed weights, and the
//! vocabulary in the form of GGUF. It is mapped when it is finished, so its pages leave memory like those of any
//! model, and it is gone when the process is.
//!
//! Memory while it is written: one buffer.

use super::ImportError;
use crate::{Mapped, ModelFileError};
use rustix::fs::{fstatfs, fstatvfs};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes collected before they go to the file.
const BUFFER_BYTES: usize = 1 << 17;
/// What each piece begins at a multiple of.
const ALIGNMENT: u64 = 64;
/// Free space that is left over on purpose.
const DISK_RESERVE_BYTES: u64 = 1 << 20;
/// `f_type` of file systems that live in memory, where a mapped weight would count twice against the budget.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// The file while it is being written.
pub(super) struct Scratch {
    dir: PathBuf,
    out: BufWriter<File>,
    len: u64,
}

impl Scratch {
    /// Makes a file with room for `need_bytes`, on a disk rather than in memory where there is a choice: in `TMPDIR`
    /// when it is set, else beside the model, in `/var/tmp`, or where the system keeps temporary files.
    pub(super) fn create(model_dir: &Path, need_bytes: u64) -> Result<Self, ModelFileError> {
        let system = std::env::temp_dir();
        let places = match std::env::var_os("TMPDIR") {
            Some(_) => vec![system],
            None => vec![model_dir.to_owned(), PathBuf::from("/var/tmp"), system],
        };
        let mut in_memory = None;
        let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
        for dir in &places {
            match open_in(dir, need_bytes) {
                Ok((file, Medium::Disk)) => return Ok(Self::new(dir, file)),
                Ok((file, Medium::Memory)) => in_memory = in_memory.or(Some((dir, file))),
                Err(error) => last = error,
            }
        }
        if let Some((dir, file)) = in_memory {
            return Ok(Self::new(dir, file));
        }
        let names: Vec<String> = places.iter().map(|dir| dir.display().to_string()).collect();
        let tried = names.join(", ");
        Err(ImportError::Scratch { need_bytes, tried, source: last }.into())
    }

    fn new(dir: &Path, file: File) -> Self {
        Self { dir: dir.to_owned(), out: BufWriter::with_capacity(BUFFER_BYTES, file), len: 0 }
    }

    /// Begins a piece, and returns where it will be when `bytes` bytes have been put.
    pub(super) fn begin(&mut self, bytes: u64) -> Result<Range<usize>, ModelFileError> {
        let padding = self.len.next_multiple_of(ALIGNMENT) - self.len;
        self.put(&[0; ALIGNMENT as usize][..padding as usize])?;
        let too_long =
            || ModelFileError::from(ImportError::ScratchWrite(std::io::ErrorKind::FileTooLarge.into()));
        let start = usize::try_from(self.len).map_err(|_| too_long())?;
        let len = usize::try_from(bytes).map_err(|_| too_long())?;
        Ok(start..start.checked_add(len).ok_or_else(too_long)?)
    }

    /// Adds bytes at the end.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), ModelFileError> {
        self.out.write_all(bytes).map_err(ImportError::ScratchWrite)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Adds a whole piece.
    pub(super) fn piece(&mut self, bytes: &[u8]) -> Result<Range<usize>, ModelFileError> {
        let range = self.begin(bytes.len() as u64)?;
        self.put(bytes)?;
        Ok(range)
    }

    /// Maps what was written.
    pub(super) fn finish(self) -> Result<Mapped, ModelFileError> {
        let file = self.out.into_inner().map_err(|error| ImportError::ScratchWrite(error.into_error()))?;
        Mapped::from_file(&self.dir.join("(temporary file of the model)"), file)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Medium {
    Disk,
    Memory,
}

fn open_in(dir: &Path, need_bytes: u64) -> std::io::Result<(File, Medium)> {
    let file = tempfile::tempfile_in(dir)?;
    let space = fstatvfs(&file)?;
    if space.f_bavail.saturating_mul(space.f_frsize) < need_bytes.saturating_add(DISK_RESERVE_BYTES) {
        return Err(std::io::ErrorKind::StorageFull.into());
    }
    let is_memory = fstatfs(&file)?.f_type as u64 == TMPFS_MAGIC;
    Ok((file, if is_memory { Medium::Memory } else { Medium::Disk }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_where_they_were_put_and_no_name_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let mut scratch = Scratch::new(dir.path(), open_in(dir.path(), 10).unwrap().0);
        let first = scratch.piece(b"abc").unwrap();
        let second = scratch.piece(&[7; 5000]).unwrap();
        assert_eq!((first.clone(), second.clone()), (0..3, 64..5064));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let mapped = scratch.finish().unwrap();
        assert_eq!(&mapped.bytes()[first], b"abc");
        assert_eq!(&mapped.bytes()[second], &[7; 5000]);
    }

    #[test]
    fn a_place_without_room_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let error = open_in(dir.path(), 1 << 60).err().unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        assert!(Scratch::create(dir.path(), 1 << 60).is_err());
    }
}
