//! Metadata values. Arrays stay encoded as they are in the file: a vocabulary costs no memory of its own.

use bytes::Bytes;
use std::io::{self, Write};

/// Type of a number in the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are the types of the format")]
pub enum NumberType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

/// Type id of strings.
pub(crate) const STRING_ID: u32 = 8;
/// Type id of arrays.
pub(crate) const ARRAY_ID: u32 = 9;

impl NumberType {
    const ALL: [Self; 11] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    pub(crate) fn id(self) -> u32 {
        match self {
            Self::U8 => 0,
            Self::I8 => 1,
            Self::U16 => 2,
            Self::I16 => 3,
            Self::U32 => 4,
            Self::I32 => 5,
            Self::F32 => 6,
            Self::Bool => 7,
            Self::U64 => 10,
            Self::I64 => 11,
            Self::F64 => 12,
        }
    }

    pub(crate) fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|number| number.id() == id)
    }

    /// Bytes of one number.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}

/// One number of the metadata, in its own type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Number {
    kind: NumberType,
    /// Little-endian bytes, zero beyond the size of the type.
    raw: [u8; 8],
}

impl Number {
    /// `bytes` holds [`NumberType::size`] bytes.
    pub(crate) fn from_le(kind: NumberType, bytes: &[u8]) -> Self {
        let mut raw = [0; 8];
        raw[..kind.size()].copy_from_slice(bytes);
        Self { kind, raw }
    }

    /// Its type.
    #[must_use]
    pub fn kind(&self) -> NumberType {
        self.kind
    }

    fn as_le(&self) -> &[u8] {
        &self.raw[..self.kind.size()]
    }

    /// Its value when it is a whole number of an integer type.
    #[must_use]
    pub fn as_int(&self) -> Option<i128> {
        let word = u64::from_le_bytes(self.raw);
        Some(match self.kind {
            NumberType::U8 | NumberType::U16 | NumberType::U32 | NumberType::U64 => i128::from(word),
            NumberType::I8 => i128::from(word as u8 as i8),
            NumberType::I16 => i128::from(word as u16 as i16),
            NumberType::I32 => i128::from(word as u32 as i32),
            NumberType::I64 => i128::from(word as i64),
            NumberType::F32 | NumberType::F64 | NumberType::Bool => return None,
        })
    }

    /// Its value when it is of a float type.
    #[must_use]
    pub fn as_float(&self) -> Option<f64> {
        let word = u64::from_le_bytes(self.raw);
        match self.kind {
            NumberType::F32 => Some(f64::from(f32::from_bits(word as u32))),
            NumberType::F64 => Some(f64::from_bits(word)),
            _ => None,
        }
    }

    /// Its value when it is a boolean.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        (self.kind == NumberType::Bool).then(|| self.raw[0] != 0)
    }
}

/// A string. Shares the bytes of the file.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(Bytes);

impl Text {
    /// `None` when `bytes` is not UTF-8.
    pub(crate) fn from_utf8(bytes: Bytes) -> Option<Self> {
        std::str::from_utf8(&bytes).is_ok().then_some(Self(bytes))
    }

    /// The string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked when it was made")
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

/// An array of numbers of one type. Shares the bytes of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct NumberArray {
    kind: NumberType,
    data: Bytes,
}

impl NumberArray {
    /// `data` holds whole numbers of `kind`.
    pub(crate) fn new(kind: NumberType, data: Bytes) -> Self {
        debug_assert_eq!(data.len() % kind.size(), 0);
        Self { kind, data }
    }

    /// An array of u32.
    #[must_use]
    pub fn from_u32s(values: &[u32]) -> Self {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { kind: NumberType::U32, data: data.into() }
    }

    /// Type of the numbers.
    #[must_use]
    pub fn kind(&self) -> NumberType {
        self.kind
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.data.len() / self.kind.size()
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The numbers in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Number> + '_ {
        self.data.chunks_exact(self.kind.size()).map(|bytes| Number::from_le(self.kind, bytes))
    }
}

/// An array of strings, encoded as in the file: each with its length before it.
#[derive(Clone, PartialEq, Eq)]
pub struct StringArray {
    len: usize,
    data: Bytes,
}

impl StringArray {
    /// `data` holds `len` encoded strings, each of them UTF-8.
    pub(crate) fn new(len: usize, data: Bytes) -> Self {
        Self { len, data }
    }

    /// An array of the given strings.
    pub fn from_strs<'s>(texts: impl IntoIterator<Item = &'s str>) -> Self {
        let mut data = Vec::new();
        let mut len = 0;
        for text in texts {
            data.extend((text.len() as u64).to_le_bytes());
            data.extend(text.as_bytes());
            len += 1;
        }
        Self { len, data: data.into() }
    }

    /// An array without strings.
    #[must_use]
    pub fn empty() -> Self {
        Self { len: 0, data: Bytes::new() }
    }

    /// The strings as they are encoded.
    pub(crate) fn data(&self) -> &Bytes {
        &self.data
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The strings in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> + '_ {
        let mut rest: &[u8] = &self.data;
        (0..self.len).map(move |_| {
            let (len, tail) = rest.split_first_chunk::<8>().expect("checked when it was made");
            let (text, tail) = tail.split_at(u64::from_le_bytes(*len) as usize);
            rest = tail;
            std::str::from_utf8(text).expect("checked when it was made")
        })
    }
}

impl std::fmt::Debug for StringArray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StringArray({} strings)", self.len)
    }
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number or boolean.
    Number(Number),
    /// A string.
    Text(Text),
    /// Numbers or booleans.
    Numbers(NumberArray),
    /// Strings.
    Strings(StringArray),
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Number(Number::from_le(NumberType::U32, &value.to_le_bytes()))
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Number(Number::from_le(NumberType::U64, &value.to_le_bytes()))
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Self::Number(Number::from_le(NumberType::F32, &value.to_le_bytes()))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Number(Number::from_le(NumberType::Bool, &[u8::from(value)]))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl Value {
    /// Writes the value with its type, as a GGUF file holds it.
    pub(crate) fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Number(number) => {
                out.write_all(&number.kind.id().to_le_bytes())?;
                out.write_all(number.as_le())
            }
            Self::Text(text) => {
                out.write_all(&STRING_ID.to_le_bytes())?;
                write_text(out, text.as_str())
            }
            Self::Numbers(array) => write_array(out, array.kind.id(), array.len(), &array.data),
            Self::Strings(array) => write_array(out, STRING_ID, array.len, &array.data),
        }
    }
}

/// Writes a string with its length before it.
pub(crate) fn write_text(out: &mut dyn Write, text: &str) -> io::Result<()> {
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text.as_bytes())
}

fn write_array(out: &mut dyn Write, item_id: u32, len: usize, data: &[u8]) -> io::Result<()> {
    out.write_all(&ARRAY_ID.to_le_bytes())?;
    out.write_all(&item_id.to_le_bytes())?;
    out.write_all(&(len as u64).to_le_bytes())?;
    out.write_all(data)
}
