//! A small ONNX emitter, and tiny models as graphs in the layouts of two exporters. The graphs hold the nodes that
//! read weights and nothing else; the readers do not run them.

use crate::{Checkpoint, CheckpointTensor};
use std::fs;
use std::path::Path;

/// Where the data of a constant goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Into `raw_data`.
    Raw(Vec<u8>),
    /// Into `float_data`, packed.
    Floats(Vec<u8>),
    /// Pairs of `external_data`.
    External(Vec<(String, String)>),
    /// Nowhere.
    None,
}

/// A constant of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnnxTensor {
    /// Name.
    pub name: String,
    /// 1 = float, 10 = float16, 16 = bfloat16, or anything.
    pub data_type: u64,
    /// The slowest first.
    pub dims: Vec<u64>,
    /// Data.
    pub data: Data,
}

/// A node of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnnxNode {
    /// Operation.
    pub op: String,
    /// Name.
    pub name: String,
    /// Inputs in order.
    pub inputs: Vec<String>,
    /// Attributes that are whole numbers.
    pub ints: Vec<(String, u64)>,
}

/// A graph in the making.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Onnx {
    /// Nodes in order.
    pub nodes: Vec<OnnxNode>,
    /// Constants in order.
    pub tensors: Vec<OnnxTensor>,
}

/// Whose layout and names a graph has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Folded constants `[in, out]` that only their nodes name; norms and biases with the names of modules.
    Optimum,
    /// Constants `[in, out]` with names; queries, keys and values packed.
    Genai,
    /// Constants `[out, in]` with the names of modules, turned by a node.
    Turned,
}

impl Onnx {
    /// The bytes of the model.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut graph = Vec::new();
        for node in &self.nodes {
            put_bytes(&mut graph, 1, &node_bytes(node));
        }
        put_bytes(&mut graph, 2, b"main_graph");
        for tensor in &self.tensors {
            put_bytes(&mut graph, 5, &tensor_bytes(tensor));
        }
        let mut model = Vec::new();
        put_number(&mut model, 1, 8);
        put_bytes(&mut model, 2, b"tiny");
        put_bytes(&mut model, 7, &graph);
        put_bytes(&mut model, 8, &[0x10, 17]);
        model
    }

    /// The constant `name`.
    /// # Panics
    /// When there is none.
    pub fn tensor(&mut self, name: &str) -> &mut OnnxTensor {
        let found = self.tensors.iter_mut().find(|tensor| tensor.name == name);
        found.unwrap_or_else(|| panic!("no constant {name}"))
    }

    /// Moves the data of all constants into one file and returns its content.
    pub fn externalize(&mut self, location: &str) -> Vec<u8> {
        let mut file = vec![0xee; 5];
        for tensor in &mut self.tensors {
            let Data::Raw(bytes) = &tensor.data else { continue };
            let pairs = [
                ("location", location.to_owned()),
                ("offset", file.len().to_string()),
                ("length", bytes.len().to_string()),
            ];
            file.extend(bytes);
            tensor.data = Data::External(pairs.map(|(key, value)| (key.to_owned(), value)).to_vec());
        }
        file
    }

    fn reads(&mut self, op: &str, name: &str, constant: &str, place: usize) {
        let mut inputs = vec![format!("{name}_in")];
        inputs.insert(place, constant.to_owned());
        self.nodes.push(OnnxNode { op: op.to_owned(), name: name.to_owned(), inputs, ints: Vec::new() });
    }
}

impl Checkpoint {
    /// The weights as a graph.
    #[must_use]
    pub fn onnx(&self, style: Style) -> Onnx {
        let mut onnx = Onnx::default();
        let n_layers = self.config["num_hidden_layers"].to_string();
        for (number, tensor) in self.tensors.iter().enumerate() {
            let (module, ending) = tensor.name.rsplit_once('.').expect("a name with an ending");
            let genai = style == Style::Genai;
            let module = match module {
                "model.norm" if genai => format!("model.layers.{n_layers}.final_norm_layernorm"),
                other if genai => other.replace("self_attn", "attn"),
                other => other.to_owned(),
            };
            let node = format!("/{}", module.replace('.', "/").replace("/layers/", "/layers."));
            let is_packed = genai && ["q_proj", "k_proj", "v_proj"].iter().any(|part| module.ends_with(part));
            match (tensor.shape.len(), ending) {
                _ if is_packed => {}
                (2, _) if module.ends_with("embed_tokens") => {
                    onnx.reads("Gather", &format!("{node}/Gather"), &tensor.name, 0);
                    onnx.tensors.push(constant(tensor.name.clone(), tensor));
                }
                (2, _) if style == Style::Turned => {
                    onnx.reads("Transpose", &format!("{node}/Transpose"), &tensor.name, 0);
                    onnx.tensors.push(constant(tensor.name.clone(), tensor));
                }
                (2, _) => {
                    let folded = format!("onnx::MatMul_{}", 900 + number);
                    let name = if genai { format!("{module}.MatMul.weight") } else { folded };
                    onnx.reads("MatMul", &format!("{node}/MatMul"), &name, 1);
                    onnx.tensors.push(constant(name, &turned(tensor)));
                }
                (_, "bias") => {
                    let name = if genai { format!("{module}.Add.bias") } else { tensor.name.clone() };
                    onnx.reads("Add", &format!("{node}/Add"), &name, usize::from(genai));
                    onnx.tensors.push(constant(name, tensor));
                }
                _ => {
                    let op = if genai { "SimplifiedLayerNormalization" } else { "Mul" };
                    let name = format!("{module}.weight");
                    onnx.reads(op, &format!("{node}/{op}"), &name, usize::from(genai));
                    onnx.tensors.push(constant(name, tensor));
                }
            }
        }
        if style == Style::Genai {
            self.put_packed(&mut onnx);
        }
        onnx
    }

    /// Queries, keys and values of every layer as one constant `[in, out]`, and their biases as one.
    fn put_packed(&self, onnx: &mut Onnx) {
        for layer in 0.. {
            let part = |part: &str, ending: &str| {
                let name = format!("model.layers.{layer}.self_attn.{part}.{ending}");
                self.tensors.iter().find(|tensor| tensor.name == name)
            };
            let all = |ending: &str| {
                Some([part("q_proj", ending)?, part("k_proj", ending)?, part("v_proj", ending)?])
            };
            let Some(matrices) = all("weight") else { return };
            let node = format!("/model/layers.{layer}/attn/qkv_proj");
            let module = format!("model.layers.{layer}.attn.qkv_proj");
            let name = format!("{module}.MatMul.weight");
            onnx.reads("MatMul", &format!("{node}/MatMul"), &name, 1);
            onnx.tensors.push(constant(name, &turned(&stacked(matrices))));
            if let Some(biases) = all("bias") {
                let name = format!("{module}.Add.bias");
                onnx.reads("Add", &format!("{node}/Add"), &name, 1);
                onnx.tensors.push(constant(name, &stacked(biases)));
            }
        }
    }

    /// Writes a folder with a graph, its data inside.
    /// # Panics
    /// When it cannot be written.
    pub fn write_onnx(&self, dir: &Path, style: Style) {
        self.write_config(dir);
        fs::write(dir.join("model.onnx"), self.onnx(style).to_bytes())
            .expect("the test's folder can be written");
    }

    /// Writes a folder with a graph and a file of data.
    /// # Panics
    /// When it cannot be written.
    pub fn write_onnx_with_data(&self, dir: &Path, style: Style) {
        self.write_config(dir);
        let mut onnx = self.onnx(style);
        let data = onnx.externalize("model.onnx_data");
        fs::write(dir.join("model.onnx_data"), data).expect("the test's folder can be written");
        fs::write(dir.join("model.onnx"), onnx.to_bytes()).expect("the test's folder can be written");
    }
}

fn constant(name: String, tensor: &CheckpointTensor) -> OnnxTensor {
    let data_type = match tensor.dtype.as_str() {
        "F32" => 1,
        "F16" => 10,
        "BF16" => 16,
        other => panic!("no type {other}"),
    };
    let dims = tensor.shape.iter().map(|&dim| dim as u64).collect();
    OnnxTensor { name, data_type, dims, data: Data::Raw(tensor.data.clone()) }
}

/// `[out, in]` as `[in, out]`.
fn turned(tensor: &CheckpointTensor) -> CheckpointTensor {
    let [n_rows, n_cols] = tensor.shape[..] else { panic!("{} is no matrix", tensor.name) };
    let size = tensor.data.len() / (n_rows * n_cols);
    let value = |row: usize, col: usize| &tensor.data[(row * n_cols + col) * size..][..size];
    let data =
        (0..n_cols).flat_map(|col| (0..n_rows).flat_map(move |row| value(row, col))).copied().collect();
    CheckpointTensor { shape: vec![n_cols, n_rows], data, ..tensor.clone() }
}

/// Tensors of equal width one below the other.
fn stacked(parts: [&CheckpointTensor; 3]) -> CheckpointTensor {
    let mut whole = parts[0].clone();
    whole.shape[0] = parts.iter().map(|part| part.shape[0]).sum();
    whole.data = parts.iter().flat_map(|part| &part.data).copied().collect();
    whole
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while 0x80 <= value {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_number(out: &mut Vec<u8>, field: u64, value: u64) {
    put_varint(out, field << 3);
    put_varint(out, value);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn node_bytes(node: &OnnxNode) -> Vec<u8> {
    let mut out = Vec::new();
    node.inputs.iter().for_each(|input| put_bytes(&mut out, 1, input.as_bytes()));
    put_bytes(&mut out, 2, format!("{}_out", node.name).as_bytes());
    put_bytes(&mut out, 3, node.name.as_bytes());
    put_bytes(&mut out, 4, node.op.as_bytes());
    for (name, value) in &node.ints {
        let mut attribute = Vec::new();
        put_bytes(&mut attribute, 1, name.as_bytes());
        put_number(&mut attribute, 3, *value);
        put_number(&mut attribute, 20, 2);
        put_bytes(&mut out, 5, &attribute);
    }
    out
}

fn tensor_bytes(tensor: &OnnxTensor) -> Vec<u8> {
    let mut out = Vec::new();
    tensor.dims.iter().for_each(|&dim| put_number(&mut out, 1, dim));
    put_number(&mut out, 2, tensor.data_type);
    put_bytes(&mut out, 8, tensor.name.as_bytes());
    match &tensor.data {
        Data::Raw(bytes) => put_bytes(&mut out, 9, bytes),
        Data::Floats(bytes) => put_bytes(&mut out, 4, bytes),
        Data::External(pairs) => {
            for (key, value) in pairs {
                let mut pair = Vec::new();
                put_bytes(&mut pair, 1, key.as_bytes());
                put_bytes(&mut pair, 2, value.as_bytes());
                put_bytes(&mut out, 13, &pair);
            }
            put_number(&mut out, 14, 1);
        }
        Data::None => {}
    }
    out
}
