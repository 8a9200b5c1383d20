//! Bounded reading: every step is checked against the end of the file.

use crate::ModelFileError;
use bytes::Bytes;

/// A place in a file that moves forward.
pub(crate) struct Cursor<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    /// A second cursor over the same file, at the same place.
    pub(crate) fn fork(&self) -> Self {
        Self { bytes: self.bytes, at: self.at }
    }

    /// Bytes read so far.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Bytes that are left.
    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `need` bytes.
    pub(crate) fn take(&mut self, need: u64, what: &'static str) -> Result<&'a [u8], ModelFileError> {
        let left = self.left();
        let len = usize::try_from(need).ok().filter(|&len| len <= left).ok_or(ModelFileError::Truncated {
            what,
            at: self.at as u64,
            need,
            left: left as u64,
        })?;
        let slice = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(slice)
    }

    /// The next `need` bytes as a view that keeps the file mapped.
    pub(crate) fn take_view(&mut self, need: u64, what: &'static str) -> Result<Bytes, ModelFileError> {
        let start = self.at;
        self.take(need, what)?;
        Ok(self.bytes.slice(start..self.at))
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], ModelFileError> {
        let slice = self.take(N as u64, what)?;
        Ok(*slice.first_chunk().expect("take returns as many bytes as asked"))
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, ModelFileError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, ModelFileError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A string with its length before it, as a view, checked to be UTF-8 of at most `limit` bytes.
    pub(crate) fn text(&mut self, limit: u64, what: &'static str) -> Result<&'a str, ModelFileError> {
        let at = self.at as u64;
        let len = self.u64(what)?;
        if limit < len {
            return Err(ModelFileError::TooLarge { what, value: len, limit });
        }
        let slice = self.take(len, what)?;
        std::str::from_utf8(slice).map_err(|_| ModelFileError::NotUtf8 { what, at })
    }
}
