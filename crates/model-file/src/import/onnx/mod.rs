//! ONNX graphs of decoders, with their data inside or in files beside them.
//!
//! The graph is not run: it is asked which of its constants is which weight, and the engine of this program computes
//! with them. Quantised graphs are refused, since their numbers mean something only together with their operations.

mod roles;
mod tensor;
mod transpose;
mod wire;

use super::files::map_regular;
use super::scratch::Scratch;
use super::{Gathered, ImportError};
use crate::gguf::check_overlap;
use crate::{Mapped, ModelFileError, TensorInfo};
use roles::{Found, Lie, Target};
use secateur_model::{ModelConfig, WeightId, WeightRole};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use tensor::{Home, Initializer};
use transpose::{Columns, transpose};
use wire::{Payload, fields};

/// Most files of data beside a graph.
const MAX_DATA_FILES: usize = 1 << 10;
/// Field of a model with its graph.
const GRAPH: u32 = 7;

/// Bytes of a graph's file that are walked before their pages are given back.
const GIVE_BACK_BYTES: usize = 1 << 20;

/// What a read may make resident in front of it.
const AROUND_BYTES: usize = 4 << 20;

/// How far a file has been walked. The kernel may map two megabytes where one byte is read, so a walk over the heads of
/// all tensors would make the whole file resident.
struct Passed {
    from: usize,
}

impl Passed {
    fn from(from: usize) -> Self {
        Self { from }
    }

    fn to(&mut self, at: usize, mapped: &Mapped) {
        if GIVE_BACK_BYTES <= at - self.from {
            mapped.give_back(self.from.saturating_sub(AROUND_BYTES)..at);
            self.from = at;
        }
    }
}

/// A weight that has to be stored anew as `[out, in]`.
pub(super) struct Transposed {
    pub(super) id: WeightId,
    /// File with the source.
    shard: usize,
    from: Columns,
}

impl Transposed {
    /// Bytes it takes in the temporary file, with room for a gap.
    pub(super) fn bytes(&self) -> u64 {
        (self.from.n_rows * self.from.columns.len() * self.from.value_bytes) as u64 + 64
    }
}

/// Gathers the weights of the graph at `path`.
pub(super) fn gather(path: &Path, config: &ModelConfig) -> Result<Gathered, ModelFileError> {
    let mapped = map_regular(path)?;
    let wrong = |error: ModelFileError| error.in_file(path);
    let graph = find_graph(mapped.bytes()).map_err(wrong)?;
    let initializers = tensor::read_initializers(&mapped, graph.clone()).map_err(wrong)?;
    let context_len = config.max_position_embeddings;
    let found = roles::find_weights(&mapped, graph, &initializers, context_len).map_err(wrong)?;
    if found.is_empty() {
        let why = "has no constants with the names of a decoder's weights".to_owned();
        return Err(wrong(ImportError::Graph(why).into()));
    }
    mapped.give_back(0..mapped.bytes().len());
    let mut files =
        DataFiles { dir: path.parent().unwrap_or(Path::new(".")), names: Vec::new(), shards: vec![mapped] };
    let mut gathered = Gathered::default();
    let mut places: BTreeMap<&str, TensorInfo> = BTreeMap::new();
    for (target, Found { initializer: name, lie }) in &found {
        let initializer = &initializers[name];
        let place = files.place(name, initializer).map_err(wrong)?;
        places.insert(name, place.clone());
        for (id, part) in parts(*target, config) {
            add(&mut gathered, id, &place, *lie, part).map_err(wrong)?;
        }
    }
    // Weights may share a constant, but two constants may not share bytes.
    check_overlap(&places.into_values().collect::<Vec<_>>()).map_err(wrong)?;
    gathered.shards = files.shards;
    Ok(gathered)
}

/// Stores what lies the wrong way round; the temporary file will be the shard after the others.
pub(super) fn transpose_all(gathered: &mut Gathered, scratch: &mut Scratch) -> Result<(), ModelFileError> {
    for Transposed { id, shard, from } in std::mem::take(&mut gathered.transposed) {
        let range = transpose(&gathered.shards[shard], &from, scratch)?;
        let tensor = gathered.weights.get_mut(&id).expect("added together with it");
        (tensor.shard, tensor.range) = (gathered.shards.len(), range);
    }
    Ok(())
}

fn find_graph(file: &[u8]) -> Result<Range<usize>, ModelFileError> {
    let mut graph = None;
    for field in fields(file, 0..file.len()) {
        let field = field?;
        if let (GRAPH, Payload::Bytes(range)) = (field.number, field.payload)
            && graph.replace(range).is_some()
        {
            let (what, at) = ("a second graph", field.whole.start as u64);
            return Err(ImportError::Protobuf { what, at }.into());
        }
    }
    graph.ok_or_else(|| ImportError::Protobuf { what: "no graph", at: 0 }.into())
}

/// The weights a constant holds: rows of the result, or all of them.
fn parts(target: Target, config: &ModelConfig) -> Vec<(WeightId, Option<Range<usize>>)> {
    use WeightRole::{KBias, KProj, QBias, QProj, VBias, VProj};
    match target {
        Target::One(id) => vec![(id, None)],
        Target::PackedQkv { layer_idx, is_bias } => {
            let layer = config.layers.get(layer_idx);
            let width = |heads: Option<usize>| heads.unwrap_or(0) * config.head_dim;
            let q = width(layer.map(|layer| layer.num_attention_heads));
            let kv = width(layer.map(|layer| layer.num_key_value_heads));
            let roles = if is_bias { [QBias, KBias, VBias] } else { [QProj, KProj, VProj] };
            let ranges = [0..q, q..q + kv, q + kv..q + 2 * kv];
            let ids = roles.map(|role| WeightId::layer(layer_idx, role));
            ids.into_iter().zip(ranges).map(|(id, range)| (id, Some(range))).collect()
        }
    }
}

/// Adds the weight `id`: the rows `part` of the tensor at `place`, or all of it.
fn add(
    gathered: &mut Gathered,
    id: WeightId,
    place: &TensorInfo,
    lie: Lie,
    part: Option<Range<usize>>,
) -> Result<(), ModelFileError> {
    let mut tensor = place.clone();
    let value_bytes = tensor.dtype.block_bytes();
    if id.role.is_vector() || tensor.dims.len() != 2 {
        if let Some(part) = part {
            let shape = || ModelFileError::TensorShape {
                name: place.name.clone(),
                want: vec![part.end],
                got: place.shape(),
            };
            if tensor.dims.len() != 1 || tensor.dims[0] < part.end {
                return Err(shape());
            }
            let start = place.range.start;
            tensor.range = start + part.start * value_bytes..start + part.end * value_bytes;
            tensor.dims = vec![part.len()];
        }
        return gathered.insert(id, tensor);
    }
    // The fastest dimension comes first: values in a row, then rows.
    let [n_columns, n_rows] = [tensor.dims[0], tensor.dims[1]];
    let out = if lie == Lie::InOut { n_columns } else { n_rows };
    let part = part.unwrap_or(0..out);
    if out < part.end {
        let (want, got) = (vec![part.end], vec![out]);
        return Err(ModelFileError::TensorShape { name: tensor.name, want, got });
    }
    if lie == Lie::OutIn {
        let row_bytes = n_columns * value_bytes;
        let start = place.range.start;
        tensor.range = start + part.start * row_bytes..start + part.end * row_bytes;
        tensor.dims = vec![n_columns, part.len()];
        return gathered.insert(id, tensor);
    }
    let from = Columns {
        offset: place.range.start as u64,
        n_rows,
        stride: n_columns,
        columns: part.clone(),
        value_bytes,
    };
    tensor.dims = vec![n_rows, part.len()];
    gathered.transposed.push(Transposed { id, shard: place.shard, from });
    gathered.insert(id, tensor)
}

/// The files with data.
struct DataFiles<'p> {
    dir: &'p Path,
    /// Names of the shards after the first, which is the graph's own file.
    names: Vec<String>,
    shards: Vec<Mapped>,
}

impl DataFiles<'_> {
    /// Where an initializer lies, checked against the length of its file.
    fn place(&mut self, name: &str, initializer: &Initializer) -> Result<TensorInfo, ModelFileError> {
        let name = name.to_owned();
        let Some(dtype) = initializer.dtype else {
            let (dtype, supported) =
                (initializer.type_name.to_owned(), "float, float16 and bfloat16 are supported");
            return Err(ImportError::DType { name, dtype, supported }.into());
        };
        let want = initializer.bytes();
        let (shard, offset, got) = match &initializer.home {
            Home::Elsewhere(why) => return Err(ImportError::Data { name, why }.into()),
            Home::Inline(range) => (0, range.start as u64, range.len() as u64),
            Home::External { location, offset, length } => {
                let shard = self.shard(location)?;
                (shard, *offset, length.unwrap_or(want))
            }
        };
        if got != want {
            return Err(ImportError::TensorBytes { name, want, got }.into());
        }
        let file = self.shards[shard].bytes().len() as u64;
        let end = offset.checked_add(want).filter(|&end| end <= file);
        let end =
            end.ok_or_else(|| ModelFileError::TensorRange { name: name.clone(), offset, want, got: file })?;
        let dims = initializer.dims.iter().rev().copied().collect();
        // Both ends lie in a file that is mapped, so they are sizes.
        Ok(TensorInfo { name, dtype, dims, shard, range: offset as usize..end as usize })
    }

    fn shard(&mut self, location: &str) -> Result<usize, ModelFileError> {
        if let Some(known) = self.names.iter().position(|name| name == location) {
            return Ok(known + 1);
        }
        if self.names.len() == MAX_DATA_FILES {
            let (value, limit) = (self.names.len() as u64 + 1, MAX_DATA_FILES as u64);
            return Err(ModelFileError::TooLarge { what: "the number of files with data", value, limit });
        }
        self.shards.push(map_regular(&self.dir.join(location))?);
        self.names.push(location.to_owned());
        Ok(self.names.len())
    }
}
