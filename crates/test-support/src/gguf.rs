//! A small GGUF emitter that writes what it is told, right or wrong.

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are the types of the format")]
pub enum Meta {
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    Bool(bool),
    Str(String),
    U32s(Vec<u32>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Strs(Vec<String>),
    /// Any type id with any bytes after it.
    Raw(u32, Vec<u8>),
}

impl From<&str> for Meta {
    fn from(text: &str) -> Self {
        Self::Str(text.to_owned())
    }
}

/// A tensor as it stands in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTensor {
    /// Name.
    pub name: String,
    /// Dimensions, the fastest first: `[in, out]`.
    pub dims: Vec<u64>,
    /// Type id of ggml.
    pub type_id: u32,
    /// Offset written in the header; `None` = where the data really goes.
    pub offset: Option<u64>,
    /// Data.
    pub data: Vec<u8>,
}

/// A GGUF file in the making. Every field may hold nonsense.
#[derive(Clone, Debug, PartialEq)]
pub struct Gguf {
    /// First four bytes.
    pub magic: [u8; 4],
    /// Format version.
    pub version: u32,
    /// Number of tensors written in the header; `None` = the real one.
    pub tensor_count: Option<u64>,
    /// Number of metadata pairs written in the header; `None` = the real one.
    pub metadata_count: Option<u64>,
    /// Metadata in order.
    pub metadata: Vec<(String, Meta)>,
    /// Tensors in order.
    pub tensors: Vec<GgufTensor>,
    /// Alignment of the data; the key `general.alignment` is not written by itself.
    pub alignment: usize,
}

impl Default for Gguf {
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            metadata_count: None,
            metadata: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
        }
    }
}

impl Gguf {
    /// Adds a metadata pair at the end.
    pub fn push(&mut self, key: impl Into<String>, value: impl Into<Meta>) {
        self.metadata.push((key.into(), value.into()));
    }

    /// Replaces the value of `key`, or adds it.
    pub fn set(&mut self, key: &str, value: impl Into<Meta>) {
        match self.metadata.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value.into(),
            None => self.push(key, value),
        }
    }

    /// Removes `key`; true when it was there.
    pub fn remove(&mut self, key: &str) -> bool {
        let before = self.metadata.len();
        self.metadata.retain(|(known, _)| known != key);
        self.metadata.len() < before
    }

    /// The tensor `name`.
    /// # Panics
    /// When there is none.
    pub fn tensor(&mut self, name: &str) -> &mut GgufTensor {
        let found = self.tensors.iter_mut().find(|tensor| tensor.name == name);
        found.unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// Everything before the data, without the padding.
    #[must_use]
    pub fn header_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.magic);
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.metadata_count.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_str(&mut out, key);
            put_value(&mut out, value);
        }
        let mut next = 0u64;
        for tensor in &self.tensors {
            put_str(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.type_id.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(next).to_le_bytes());
            next += (tensor.data.len().next_multiple_of(self.alignment)) as u64;
        }
        out
    }

    /// The file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.header_bytes();
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.data);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out
    }
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_array<T>(out: &mut Vec<u8>, type_id: u32, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    out.extend(9u32.to_le_bytes());
    out.extend(type_id.to_le_bytes());
    out.extend((items.len() as u64).to_le_bytes());
    items.iter().for_each(|item| put(out, item));
}

fn put_value(out: &mut Vec<u8>, value: &Meta) {
    let mut scalar = |type_id: u32, bytes: &[u8]| {
        out.extend(type_id.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Meta::U32(value) => scalar(4, &value.to_le_bytes()),
        Meta::I32(value) => scalar(5, &value.to_le_bytes()),
        Meta::F32(value) => scalar(6, &value.to_le_bytes()),
        Meta::Bool(value) => scalar(7, &[u8::from(*value)]),
        Meta::U64(value) => scalar(10, &value.to_le_bytes()),
        Meta::Raw(type_id, bytes) => scalar(*type_id, bytes),
        Meta::Str(text) => {
            scalar(8, &[]);
            put_str(out, text);
        }
        Meta::U32s(items) => put_array(out, 4, items, |out, item| out.extend(item.to_le_bytes())),
        Meta::I32s(items) => put_array(out, 5, items, |out, item| out.extend(item.to_le_bytes())),
        Meta::F32s(items) => put_array(out, 6, items, |out, item| out.extend(item.to_le_bytes())),
        Meta::Strs(items) => put_array(out, 8, items, |out, item| put_str(out, item)),
    }
}
