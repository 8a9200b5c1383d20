//! The wire format of protobuf, walked without copying: where each field lies in the mapped file.
//!
//! Tensors of gigabytes lie inside messages. Decoders made from a schema copy them; this one finds fields by their
//! places, and the few that are wanted are read where they are. It is by hand for the memory of it: the types that
//! tract-onnx has for these messages bring eight megabytes of other code into the program, and the tests use them to
//! check what is read here.

use crate::ModelFileError;
use crate::import::ImportError;
use std::ops::Range;

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Payload {
    /// A number in the field itself; floats by their bits.
    Number(u64),
    /// Bytes of the file: a string, a message, packed numbers.
    Bytes(Range<usize>),
}

/// A field of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) number: u32,
    pub(super) payload: Payload,
    /// The whole field with its tag.
    pub(super) whole: Range<usize>,
}

/// Walks the fields of the message at `range` of `file`.
pub(super) fn fields(file: &[u8], range: Range<usize>) -> Fields<'_> {
    Fields { file, at: range.start, end: range.end }
}

/// See [`fields`]. Ends after the first error.
pub(super) struct Fields<'f> {
    file: &'f [u8],
    at: usize,
    end: usize,
}

impl Iterator for Fields<'_> {
    type Item = Result<Field, ModelFileError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.end <= self.at {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.at = self.end;
        }
        Some(field)
    }
}

impl Fields<'_> {
    fn read(&mut self) -> Result<Field, ModelFileError> {
        let start = self.at;
        let wrong = |what| ModelFileError::from(ImportError::Protobuf { what, at: start as u64 });
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|&number| 0 < number);
        let number = number.ok_or_else(|| wrong("a field without a number"))?;
        let payload = match tag & 7 {
            0 => Payload::Number(self.varint()?),
            1 => Payload::Number(self.fixed(8)?),
            2 => {
                let len = self.varint()?;
                let len = usize::try_from(len).map_err(|_| wrong("a field longer than the file"))?;
                Payload::Bytes(self.skip(len)?)
            }
            5 => Payload::Number(self.fixed(4)?),
            _ => return Err(wrong("a field of an unknown kind")),
        };
        Ok(Field { number, payload, whole: start..self.at })
    }

    fn varint(&mut self) -> Result<u64, ModelFileError> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.file[self.skip(1)?.start];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(ImportError::Protobuf { what: "a number without an end", at: start as u64 }.into())
    }

    fn fixed(&mut self, len: usize) -> Result<u64, ModelFileError> {
        let bytes = &self.file[self.skip(len)?];
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn skip(&mut self, len: usize) -> Result<Range<usize>, ModelFileError> {
        let start = self.at;
        let end = start.checked_add(len).filter(|&end| end <= self.end);
        let what = "a message that ends inside a field";
        self.at = end.ok_or(ImportError::Protobuf { what, at: start as u64 })?;
        Ok(start..self.at)
    }
}

/// The string at `range`.
pub(super) fn text(file: &[u8], range: Range<usize>) -> Result<&str, ModelFileError> {
    let at = range.start as u64;
    let what = "a string that is not UTF-8";
    std::str::from_utf8(&file[range]).map_err(|_| ImportError::Protobuf { what, at }.into())
}

/// Appends the whole numbers of a field that may be one number or several packed ones, up to `limit` in all.
pub(super) fn numbers(
    file: &[u8],
    field: &Field,
    limit: usize,
    out: &mut Vec<i64>,
) -> Result<(), ModelFileError> {
    let too_many = || {
        ModelFileError::from(ImportError::Protobuf { what: "too many numbers", at: field.whole.start as u64 })
    };
    match &field.payload {
        Payload::Number(number) => out.push(*number as i64),
        Payload::Bytes(range) => {
            let mut packed = Fields { file, at: range.start, end: range.end };
            while packed.at < packed.end {
                out.push(packed.varint()? as i64);
                if limit < out.len() {
                    return Err(too_many());
                }
            }
        }
    }
    if limit < out.len() { Err(too_many()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_where_they_are() {
        // 1: varint 300, 2: "ab", 3: fixed32, 4: fixed64.
        let bytes = [0x08, 0xac, 2, 0x12, 2, b'a', b'b', 0x1d, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0];
        let found: Vec<Field> = fields(&bytes, 0..bytes.len()).map(Result::unwrap).collect();
        assert_eq!(found.iter().map(|field| field.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(found[1], Field { number: 2, payload: Payload::Bytes(5..7), whole: 3..7 });
        assert_eq!((&found[0].payload, &found[3].payload), (&Payload::Number(300), &Payload::Number(0)));
        assert_eq!(text(&bytes, 5..7).unwrap(), "ab");
        let mut packed = Vec::new();
        numbers(
            &[0x0a, 3, 1, 0xac, 2],
            &Field { number: 1, payload: Payload::Bytes(2..5), whole: 0..5 },
            2,
            &mut packed,
        )
        .unwrap();
        assert_eq!(packed, [1, 300]);
        assert!(numbers(&bytes, &found[0], 2, &mut packed).is_err());
        for end in 1..bytes.len() {
            let whole = [3, 7, 12].contains(&end);
            assert_eq!(fields(&bytes, 0..end).all(|field| field.is_ok()), whole, "{end}");
        }
    }

    #[test]
    fn broken_fields_are_errors() {
        let long = [[0x12].as_slice(), &[0xff; 9], &[1]].concat();
        let endless = [0xff; 11];
        for bytes in [&long[..], &endless, &[0x00, 0], &[0x0b], &[0x0f, 0]] {
            assert!(fields(bytes, 0..bytes.len()).any(|field| field.is_err()), "{bytes:?}");
        }
    }
}
