//! A file mapped read-only. The only place with `unsafe` in this crate.
//!
//! The bytes are handed out as [`Bytes`] that keep the mapping alive. Pages count as resident only after they
//! are touched and until they are given back; the file's page cache is the kernel's.
//!
//! Another process that shortens the file makes an access beyond its new end a SIGBUS, which no check can
//! rule out. [`Mapped::check_unchanged`] finds a file that was shortened before; keep models where nobody
//! else writes.

use crate::ModelFileError;
use bytes::Bytes;
use memmap2::{Mmap, UncheckedAdvice};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A read-only mapping of a whole file.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    file: File,
    map: Arc<Mmap>,
    bytes: Bytes,
}

/// Keeps the mapping alive for as long as any [`Bytes`] points into it.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A fault may map what lies around it in an aligned stretch of this many bytes: Linux maps the large folio of the page
/// cache that the page is part of (since 6.18; before that, 64 KiB).
const MAPPED_AROUND: usize = 2 << 20;

impl Mapped {
    /// Maps the file at `path`. Nothing of it is read yet.
    /// # Errors
    /// [`ModelFileError::Io`] when it is no regular file or cannot be mapped.
    pub fn open(path: &Path) -> Result<Self, ModelFileError> {
        let io = |source| ModelFileError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(io(std::io::Error::other("not a regular file")));
        }
        Self::from_file(path, file)
    }

    /// Maps a regular file that is open already; `path` is what errors call it.
    /// # Errors
    /// [`ModelFileError::Io`] when it cannot be mapped.
    pub(crate) fn from_file(path: &Path, file: File) -> Result<Self, ModelFileError> {
        let io = |source| ModelFileError::Io { path: path.to_owned(), source };
        // SAFETY: the mapping is read-only and the file is a regular one. Writers elsewhere could change or
        // shorten it; the module documentation says what then happens and how the crate reduces the risk.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(io)?);
        let bytes = Bytes::from_owner(Owner(Arc::clone(&map)));
        Ok(Self { path: path.to_owned(), file, map, bytes })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Checks that the file still has the length it had when it was mapped.
    /// # Errors
    /// [`ModelFileError::Changed`], or [`ModelFileError::Io`] when the length cannot be had.
    pub fn check_unchanged(&self) -> Result<(), ModelFileError> {
        let io = |source| ModelFileError::Io { path: self.path.clone(), source };
        let (want, got) = (self.bytes.len() as u64, self.file.metadata().map_err(io)?.len());
        if want == got { Ok(()) } else { Err(ModelFileError::Changed { path: self.path.clone(), want, got }) }
    }

    /// Reads bytes at `offset` through the file instead of the mapping, so that no page becomes resident.
    /// Returns how many were read; 0 at the end.
    /// # Errors
    /// [`ModelFileError::Io`]
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, ModelFileError> {
        self.file
            .read_at(buffer, offset)
            .map_err(|source| ModelFileError::Io { path: self.path.clone(), source })
    }

    /// Lets the pages of `range` leave memory, and those around it that the kernel may have mapped with them: left
    /// behind, they would add up from tensor to tensor. They come back when they are touched.
    pub fn give_back(&self, range: Range<usize>) {
        let start = range.start / MAPPED_AROUND * MAPPED_AROUND;
        let end = range.end.checked_next_multiple_of(MAPPED_AROUND).unwrap_or(usize::MAX);
        let Some((offset, len)) = self.whole_pages(start..end) else { return };
        // SAFETY: the mapping is shared, read-only and backed by a file: dropped pages are read from the same
        // file again, so the bytes that others may be looking at stay the same.
        let result = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len) };
        debug_assert!(result.is_ok(), "the range is page-aligned and inside the mapping: {result:?}");
    }

    /// Offset and length of the whole pages inside `range`.
    fn whole_pages(&self, range: Range<usize>) -> Option<(usize, usize)> {
        let page = rustix::param::page_size();
        let end = range.end.min(self.bytes.len());
        let start = range.start.checked_next_multiple_of(page)?;
        // The last page of the file is partly padding: it may go when the range reaches the end.
        let end = if end == self.bytes.len() { end } else { end / page * page };
        (start < end).then(|| (start, end - start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn mapped(bytes: &[u8]) -> (tempfile::NamedTempFile, Mapped) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let map = Mapped::open(file.path()).unwrap();
        (file, map)
    }

    #[test]
    fn pages_are_rounded_inward() {
        let page = rustix::param::page_size();
        let (_file, map) = mapped(&vec![7; 3 * page + 100]);
        let cases = [
            (0..page, Some((0, page))),
            (1..page, None),
            (1..2 * page, Some((page, page))),
            (1..2 * page + 5, Some((page, page))),
            (2 * page..3 * page + 100, Some((2 * page, page + 100))),
            (2 * page..usize::MAX, Some((2 * page, page + 100))),
            (3 * page + 1..3 * page + 100, None),
            (usize::MAX..usize::MAX, None),
        ];
        for (range, want) in cases {
            assert_eq!(map.whole_pages(range.clone()), want, "{range:?}");
        }
    }

    #[test]
    fn given_back_pages_read_the_same_again() {
        let page = rustix::param::page_size();
        let content: Vec<u8> = (0..5 * page).map(|idx| (idx % 251) as u8).collect();
        let (_file, map) = mapped(&content);
        let view = map.bytes().slice(..);
        assert_eq!(view, content);
        map.give_back(0..content.len());
        assert_eq!(view, content);
        drop(map);
        assert_eq!(view, content);
    }

    /// Ranges that share pages, as tensors do, given back one after the other.
    #[test]
    #[cfg(target_os = "linux")]
    fn ranges_given_back_leave_nothing_behind() {
        const STEP: usize = 150_123;
        let (_file, map) = mapped(&vec![1; 40 * STEP]);
        let resident_kib = || {
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let start = format!("{:x}-", map.bytes().as_ptr() as usize);
            let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
            let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
            rss.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap()
        };
        for nth in 0..40 {
            let range = nth * STEP..(nth + 1) * STEP;
            assert!(map.bytes()[range.clone()].iter().all(|byte| *byte == 1));
            assert_ne!(resident_kib(), 0, "the pages that were read are in memory");
            map.give_back(range);
            assert_eq!(resident_kib(), 0, "after range {nth}");
        }
    }

    #[test]
    fn a_shortened_file_is_noticed() {
        let (file, map) = mapped(&[1; 9000]);
        map.check_unchanged().unwrap();
        file.as_file().set_len(8999).unwrap();
        let error = map.check_unchanged().unwrap_err();
        assert!(matches!(error, ModelFileError::Changed { want: 9000, got: 8999, .. }));
    }

    #[test]
    fn a_folder_is_no_model() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Mapped::open(folder.path()), Err(ModelFileError::Io { .. })));
    }
}
