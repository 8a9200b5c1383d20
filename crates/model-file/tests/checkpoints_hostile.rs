//! Broken and hostile checkpoints: a typed error each that names what is wrong, never a panic.
#![expect(clippy::unwrap_used, reason = "test code")]

mod support;

use secateur_model::{WeightId, WeightSource};
use secateur_model_file::{ModelFile, ModelFileError};
use secateur_test_support::{Checkpoint, Data, Onnx, OnnxNode, Style, TinyLayer, TinyModel};
use serde_json::{Value, json};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

fn small() -> Checkpoint {
    let layer = TinyLayer { heads: 2, kv_heads: 1, intermediate_size: 32 };
    TinyModel { hidden_size: 32, head_dim: 16, layers: vec![layer], ..TinyModel::default() }.checkpoint()
}

/// Touches everything a user of an accepted model would.
fn use_model(model: &ModelFile) {
    let layers = (0..model.config().n_layers()).map(Some).chain([None]);
    for id in layers.flat_map(|layer_idx| support::ALL_ROLES.map(|role| WeightId { layer_idx, role })) {
        if let Some(matrix) = model.weight(id).unwrap() {
            assert_eq!(matrix.to_f32().len(), matrix.n_rows() * matrix.n_cols());
            model.give_back(id);
        }
    }
    let vocab = model.vocab().unwrap();
    assert_eq!(vocab.tokens.iter().count(), model.config().vocab_size);
    vocab.merges.iter().for_each(|text| assert!(text.contains(' ')));
    model.digest().unwrap();
}

/// Opens what `write` puts into a folder; an accepted model must be usable.
fn outcome(write: impl FnOnce(&Path)) -> Result<(), ModelFileError> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    ModelFile::open(dir.path()).map(|model| use_model(&model))
}

/// Checks that every case is refused with an error whose text or form contains what is wanted.
fn check(cases: Vec<(&str, Result<(), ModelFileError>)>) {
    let mut faults = Vec::new();
    for (want, result) in cases {
        match result {
            Ok(()) => faults.push(format!("accepted, wanted {want:?}")),
            Err(error) => {
                let text = format!("{error} | {error:?}");
                if !text.contains(want) {
                    faults.push(format!("{text}, wanted {want:?}"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn with(change: impl FnOnce(&mut Checkpoint)) -> Result<(), ModelFileError> {
    outcome(|dir| {
        let mut checkpoint = small();
        change(&mut checkpoint);
        checkpoint.write_safetensors(dir);
    })
}

#[test]
fn configurations() {
    let set = |key: &'static str, value: Value| with(|checkpoint| checkpoint.config[key] = value);
    let rope = |value: Value| set("rope_scaling", value);
    check(vec![
        ("GPT2LMHeadModel", set("architectures", json!(["GPT2LMHeadModel"]))),
        ("name of a model class", set("architectures", json!([]))),
        ("quantised tensors", set("quantization_config", json!({"quant_method": "gptq"}))),
        ("activation `gelu`", set("hidden_act", json!("gelu"))),
        ("not the JSON expected", set("hidden_size", json!("64"))),
        ("not the JSON expected", set("hidden_size", json!(-1))),
        ("hidden_size", set("hidden_size", json!(u64::MAX))),
        ("`hidden_size` must be a whole number", set("hidden_size", Value::Null)),
        ("num_hidden_layers", set("num_hidden_layers", json!(0))),
        ("the number of layers", set("num_hidden_layers", json!(1_000_000_000))),
        ("head_dim", set("head_dim", json!(15))),
        ("TensorShape", set("head_dim", json!(32))),
        ("Heads {", set("num_key_value_heads", json!(3))),
        ("TensorShape", set("vocab_size", json!(287))),
        ("vocab_size", set("vocab_size", json!(0))),
        ("rms_norm_eps", set("rms_norm_eps", json!(0.0))),
        ("rope_theta", set("rope_theta", json!(-1.0))),
        ("rotary scaling `yarn`", rope(json!({"rope_type": "yarn", "factor": 2.0}))),
        ("rope_scaling.factor", rope(json!({"rope_type": "linear"}))),
        ("rope_scaling.rope_type", rope(json!({"factor": 2.0}))),
        ("low_freq_factor", rope(json!({"rope_type": "llama3", "factor": 8.0}))),
        (
            "original_max_position_embeddings",
            rope(json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4})),
        ),
        (
            "high_freq_factor",
            rope(json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
                "original_max_position_embeddings": 32})),
        ),
        ("a part of each head", set("partial_rotary_factor", json!(0.5))),
        ("q_proj.bias` is missing", set("attention_bias", json!(true))),
        ("gate_proj.bias` is missing", set("mlp_bias", json!(true))),
        ("lm_head.weight` is missing", set("tie_word_embeddings", json!(false))),
        (
            "a sliding window",
            with(|checkpoint| {
                checkpoint.config["architectures"] = json!(["MistralForCausalLM"]);
                checkpoint.config["max_position_embeddings"] = json!(32768);
            }),
        ),
        (
            "not the JSON expected",
            outcome(|dir| {
                small().write_safetensors(dir);
                fs::write(dir.join("config.json"), "[".repeat(1 << 19)).unwrap();
            }),
        ),
        (
            "not the JSON expected",
            outcome(|dir| {
                small().write_safetensors(dir);
                fs::write(dir.join("config.json"), format!("{{\"x\":{}", "{\"a\":".repeat(1 << 17))).unwrap();
            }),
        ),
        (
            "FileTooLarge",
            outcome(|dir| {
                small().write_safetensors(dir);
                fs::write(dir.join("config.json"), " ".repeat((1 << 20) + 1)).unwrap();
            }),
        ),
        (
            "`config.json` is missing",
            outcome(|dir| {
                small().write_safetensors(dir);
                fs::remove_file(dir.join("config.json")).unwrap();
            }),
        ),
        ("NoWeights", outcome(|dir| small().write_config(dir))),
        (
            "regular file",
            outcome(|dir| {
                small().write_safetensors(dir);
                fs::remove_file(dir.join("config.json")).unwrap();
                fs::create_dir(dir.join("config.json")).unwrap();
            }),
        ),
    ]);
}

#[test]
fn tokenizers() {
    let set = |path: &str, value: Value| {
        with(|checkpoint| *checkpoint.tokenizer.pointer_mut(path).unwrap() = value)
    };
    let add = |token: Value| {
        with(|checkpoint| checkpoint.tokenizer["added_tokens"].as_array_mut().unwrap().push(token))
    };
    let bomb = json!(vec![0; 5000]);
    check(vec![
        ("a model of type Unigram", set("/model", json!({"type": "Unigram", "vocab": [["a", 0.0]]}))),
        ("a model of type WordPiece", set("/model/type", json!("WordPiece"))),
        ("dropout", set("/model/dropout", json!(0.1))),
        ("ends of words", set("/model/end_of_word_suffix", json!("</w>"))),
        ("with `ignore_merges`", set("/model/ignore_merges", json!(true))),
        ("the pre-tokenizer", set("/pre_tokenizer", json!({"type": "Whitespace"}))),
        ("the pre-tokenizer", set("/pre_tokenizer", Value::Null)),
        ("the normalizer", set("/normalizer", json!({"type": "Lowercase"}))),
        ("the post-processor", set("/post_processor", json!({"type": "BertProcessing"}))),
        ("too many parts", set("/pre_tokenizer", bomb)),
        (
            "is no token",
            set(
                "/post_processor",
                json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<x>"}}, {"Sequence": {"id": "A"}}]}),
            ),
        ),
        (
            "other than BOS",
            set(
                "/post_processor",
                json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|endoftext|>"}}, {"Sequence": {"id": "A"}}]}),
            ),
        ),
        ("two tokens", set("/model/merges", json!(["a"]))),
        ("two tokens", set("/model/merges", json!(["a b c"]))),
        ("two tokens", set("/model/merges", json!([["a", "b", "c"]]))),
        ("two tokens", set("/model/merges", json!([["", "b"]]))),
        ("not the JSON expected", set("/model/merges", json!([1]))),
        ("not the JSON expected", set("/model/vocab/a", json!(-1))),
        ("not the JSON expected", set("/model/vocab/a", json!(1_u64 << 32))),
        ("two tokens have the id 40", set("/model/vocab/a", json!(40))),
        ("VocabSize", set("/model/vocab/a", json!(288))),
        ("VocabSize", add(json!({"id": 4_000_000_000_u32, "content": "x"}))),
        ("two tokens have the id 5", add(json!({"id": 5, "content": "x", "special": true}))),
        ("whole word", add(json!({"id": 5, "content": "x", "single_word": true}))),
        (
            "it has no tokens",
            with(|checkpoint| {
                checkpoint.tokenizer["model"]["vocab"] = json!({});
                checkpoint.tokenizer["added_tokens"] = json!([]);
            }),
        ),
        ("none is named", with(|checkpoint| checkpoint.tokenizer_config = json!({"add_bos_token": true}))),
        ("tokenizer_config.json", with(|checkpoint| checkpoint.tokenizer_config = json!({"bos_token": 1}))),
        (
            "`tokenizer.json` is missing",
            outcome(|dir| {
                small().write_safetensors(dir);
                fs::remove_file(dir.join("tokenizer.json")).unwrap();
            }),
        ),
        (
            "chat_template.jinja: not the JSON expected: not UTF-8",
            outcome(|dir| {
                small().write_safetensors(dir);
                fs::write(dir.join("chat_template.jinja"), [0xff]).unwrap();
            }),
        ),
    ]);
}

/// A folder whose safetensors file has this header, and as many bytes of data as the right one.
fn header(change: impl FnOnce(String) -> String) -> Result<(), ModelFileError> {
    outcome(|dir| {
        small().write_safetensors(dir);
        let path = dir.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let text = change(String::from_utf8(bytes[8..end].to_vec()).unwrap());
        let parts = [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &bytes[end..]];
        fs::write(path, parts.concat()).unwrap();
    })
}

fn raw(bytes: &[u8]) -> Result<(), ModelFileError> {
    outcome(|dir| {
        small().write_safetensors(dir);
        fs::write(dir.join("model.safetensors"), bytes).unwrap();
    })
}

#[test]
fn safetensors_headers() {
    let norm = "model.norm.weight";
    let entry = |change: &dyn Fn(&mut Value)| {
        header(|text| {
            let mut all: Value = serde_json::from_str(&text).unwrap();
            change(&mut all[norm]);
            all.to_string()
        })
    };
    let word = |length: u64| [&length.to_le_bytes()[..], &[b' '; 64]].concat();
    check(vec![
        ("the length of the header", raw(&[])),
        ("the length of the header", raw(&[0; 7])),
        ("Header(", raw(&[0; 8])),
        ("the file ends inside the header", raw(&word(65))),
        ("the length of the header", raw(&word(u64::MAX))),
        ("the length of the header", raw(&word((16 << 20) + 1))),
        ("Header(", raw(&word(64))),
        ("Header(", header(|_| "[]".to_owned())),
        ("Header(", header(|_| "[".repeat(100_000))),
        ("Header(", header(|_| format!("{{\"__metadata__\":{}", "[".repeat(100_000)))),
        ("Header(", header(|text| text.trim_end().to_owned() + "{}")),
        (
            "DuplicateTensor(\"model.norm.weight\")",
            header(|text| {
                text.replace("{\"__metadata__\"", "{\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"__metadata__\"")
            }),
        ),
        ("a tensor name", header(|text| text.replace(norm, &"n".repeat(1025)))),
        (
            "MissingTensor(\"model.norm.weight\")",
            header(|text| text.replace(norm, "model.layers.0.self_attn.rotary_emb.inv_freq")),
        ),
        ("UnexpectedTensor", header(|text| text.replace(norm, "model.layers.0.self_attn.q_norm.weight"))),
        ("UnexpectedTensor", header(|text| text.replace(norm, "model.layers.1.input_layernorm.weight"))),
        ("UnexpectedTensor", header(|text| text.replace("layers.0", "layers.00"))),
        ("is I8; F32, F16 and BF16", entry(&|entry| entry["dtype"] = json!("I8"))),
        ("is F8_E4M3;", entry(&|entry| entry["dtype"] = json!("F8_E4M3"))),
        ("tensor `model.norm.weight`", entry(&|entry| entry["dtype"] = json!(1))),
        ("tensor `model.norm.weight`", entry(&|entry| entry["extra"] = json!(1))),
        ("tensor `model.norm.weight`", entry(&|entry| *entry = json!({"dtype": "F32"}))),
        ("tensor `model.norm.weight`", entry(&|entry| entry["shape"] = json!([1, 1, 1, 1, 32]))),
        ("tensor `model.norm.weight`", entry(&|entry| entry["shape"] = json!([-32]))),
        ("TensorSize", entry(&|entry| entry["shape"] = json!([0]))),
        ("TensorSize", entry(&|entry| entry["shape"] = json!([1_u64 << 32, 1_u64 << 32]))),
        ("TensorSize", entry(&|entry| entry["shape"] = json!([1_u64 << 62]))),
        ("TensorBytes", entry(&|entry| entry["shape"] = json!([33]))),
        ("TensorBytes", entry(&|entry| entry["dtype"] = json!("F16"))),
        ("TensorShape", entry(&|entry| entry["shape"] = json!([2, 16]))),
        ("TensorRange", entry(&|entry| entry["data_offsets"] = json!([128, 0]))),
        ("TensorRange", entry(&|entry| entry["data_offsets"] = json!([u64::MAX - 128, u64::MAX]))),
        ("TensorRange", entry(&|entry| entry["data_offsets"] = json!([1 << 30, (1 << 30) + 128]))),
        ("TensorOverlap", entry(&|entry| entry["data_offsets"] = json!([0, 128]))),
        ("model.safetensors", entry(&|entry| entry["data_offsets"] = json!([0]))),
    ]);
}

#[test]
fn indices() {
    let index = |change: &dyn Fn(&mut Value)| {
        outcome(|dir| {
            small().write_shards(dir, 2);
            let path = dir.join("model.safetensors.index.json");
            let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            change(&mut index["weight_map"]);
            fs::write(path, index.to_string()).unwrap();
        })
    };
    let home = |file: &'static str| index(&|map| map["model.norm.weight"] = json!(file));
    check(vec![
        ("ShardName(\"../secret.safetensors\")", home("../secret.safetensors")),
        ("ShardName", home("/etc/passwd")),
        ("ShardName", home("a/b.safetensors")),
        ("ShardName", home("model.bin")),
        ("ShardName", home(".hidden.safetensors")),
        ("ShardName", home("a\0.safetensors")),
        ("ShardName", home("")),
        ("missing.safetensors", home("missing.safetensors")),
        ("NotInShard { tensor: \"model.norm.weight\"", home("model-00002-of-00002.safetensors")),
        (
            "NotInShard { tensor: \"other\"",
            index(&|map| map["other"] = json!("model-00002-of-00002.safetensors")),
        ),
        (
            "NotInIndex(\"model.norm.weight\")",
            index(&|map| drop(map.as_object_mut().unwrap().remove("model.norm.weight"))),
        ),
        ("not the JSON expected", index(&|map| *map = json!([]))),
        ("not the JSON expected", index(&|map| map["model.norm.weight"] = json!(1))),
    ]);
}

fn graph(style: Style, change: impl FnOnce(&mut Onnx)) -> Result<(), ModelFileError> {
    outcome(|dir| {
        small().write_config(dir);
        let mut onnx = small().onnx(style);
        change(&mut onnx);
        fs::write(dir.join("model.onnx"), onnx.to_bytes()).unwrap();
    })
}

fn node(op: &str) -> OnnxNode {
    OnnxNode { op: op.to_owned(), name: format!("/x/{op}"), inputs: vec!["x".to_owned()], ints: Vec::new() }
}

#[test]
fn onnx_graphs() {
    let norm = "model.norm.weight";
    let q = "model.layers.0.self_attn.q_proj.weight";
    let tensor = |change: &dyn Fn(&mut secateur_test_support::OnnxTensor)| {
        graph(Style::Optimum, |onnx| change(onnx.tensor(norm)))
    };
    let adds = |op: &str| graph(Style::Optimum, |onnx| onnx.nodes.push(node(op)));
    let flag = |op: &str, name: &str, value: u64| {
        graph(Style::Genai, |onnx| {
            onnx.nodes.push(OnnxNode { ints: vec![(name.to_owned(), value)], ..node(op) })
        })
    };
    let packed = "model.layers.0.attn.qkv_proj.MatMul.weight";
    check(vec![
        ("is quantised (`MatMulNBits`)", adds("MatMulNBits")),
        ("is quantised (`DequantizeLinear`)", adds("DequantizeLinear")),
        ("branches (`If`)", adds("If")),
        ("halves", flag("RotaryEmbedding", "interleaved", 1)),
        ("halves", flag("GroupQueryAttention", "rotary_interleaved", 1)),
        ("a sliding window", flag("GroupQueryAttention", "local_window_size", 16)),
        ("no constants with the names", graph(Style::Optimum, |onnx| *onnx = Onnx::default())),
        ("is double; float, float16", tensor(&|tensor| tensor.data_type = 11)),
        ("MissingTensor(\"model.norm.weight\")", tensor(&|tensor| tensor.data_type = 7)),
        ("MissingTensor(\"model.norm.weight\")", tensor(&|tensor| tensor.data_type = u64::MAX)),
        ("MissingTensor(\"model.norm.weight\")", tensor(&|tensor| tensor.dims = vec![0])),
        ("TensorSize", tensor(&|tensor| tensor.dims = vec![u64::MAX])),
        ("TensorSize", tensor(&|tensor| tensor.dims = vec![1 << 31, 1 << 31])),
        ("TensorBytes", tensor(&|tensor| tensor.dims = vec![33])),
        ("it has no data", tensor(&|tensor| tensor.data = Data::None)),
        ("DuplicateTensor", graph(Style::Optimum, |onnx| onnx.tensors.push(onnx.tensors[0].clone()))),
        ("a tensor name", tensor(&|tensor| tensor.name = "n".repeat(1025))),
        (
            "MissingTensor",
            graph(Style::Optimum, |onnx| onnx.nodes.retain(|node| !node.name.contains("up_proj"))),
        ),
        (
            "UnexpectedTensor",
            graph(Style::Optimum, |onnx| {
                let mut extra = onnx.tensor(norm).clone();
                "model.layers.0.attn.q_norm.layernorm.weight".clone_into(&mut extra.name);
                onnx.tensors.push(extra);
            }),
        ),
        (
            "UnexpectedTensor",
            graph(Style::Optimum, |onnx| {
                let mut extra = onnx.tensor(norm).clone();
                "model.layers.7.input_layernorm.weight".clone_into(&mut extra.name);
                onnx.tensors.push(extra);
            }),
        ),
        (
            "read both ways round",
            graph(Style::Turned, |onnx| {
                let inputs = vec!["x".to_owned(), q.to_owned()];
                onnx.nodes.push(OnnxNode { inputs, ..node("MatMul") });
            }),
        ),
        (
            "rows from its columns",
            graph(Style::Turned, |onnx| {
                onnx.nodes.retain(|node| !node.inputs.contains(&q.to_owned()));
            }),
        ),
        (
            "same place in the model",
            graph(Style::Turned, |onnx| {
                let name = "/model/layers.0/self_attn/q_proj/Other".to_owned();
                let inputs = vec!["model.layers.0.self_attn.o_proj.weight".to_owned()];
                onnx.nodes.push(OnnxNode { name, inputs, ..node("Transpose") });
            }),
        ),
        (
            "TensorShape",
            graph(Style::Genai, |onnx| {
                let tensor = onnx.tensor(packed);
                tensor.dims[1] -= 1;
                tensor.data = Data::Raw(vec![0; (tensor.dims[0] * tensor.dims[1] * 4) as usize]);
            }),
        ),
        (
            "TensorShape",
            graph(Style::Genai, |onnx| {
                let tensor = onnx.tensor("model.layers.0.mlp.up_proj.MatMul.weight");
                tensor.dims = vec![16, 64];
            }),
        ),
    ]);
    // Packed floats are as good as raw bytes.
    let floats = graph(Style::Optimum, |onnx| {
        for tensor in &mut onnx.tensors {
            let Data::Raw(bytes) = tensor.data.clone() else { continue };
            tensor.data = Data::Floats(bytes);
        }
    });
    floats.unwrap();
}

/// Keys and values that say where data lies.
type Pairs = Vec<(String, String)>;

#[test]
fn onnx_external_data() {
    let external = |change: &dyn Fn(&mut Pairs)| {
        outcome(|dir| {
            small().write_config(dir);
            let mut onnx = small().onnx(Style::Genai);
            fs::write(dir.join("model.onnx_data"), onnx.externalize("model.onnx_data")).unwrap();
            let Data::External(pairs) = &mut onnx.tensor("model.embed_tokens.weight").data else { panic!() };
            change(pairs);
            fs::write(dir.join("model.onnx"), onnx.to_bytes()).unwrap();
        })
    };
    let set = |key: &'static str, value: &'static str| {
        external(&|pairs| {
            pairs.iter_mut().find(|(known, _)| known == key).unwrap().1 = value.to_owned();
        })
    };
    check(vec![
        ("ExternalLocation", set("location", "../model.onnx_data")),
        ("ExternalLocation", set("location", "/etc/passwd")),
        ("ExternalLocation", set("location", "a/../../b")),
        ("ExternalLocation", set("location", "./model.onnx_data")),
        ("ExternalLocation", set("location", "")),
        ("ExternalLocation", external(&|pairs| pairs.clear())),
        ("missing_data", set("location", "missing_data")),
        ("TensorRange", set("offset", "18446744073709551615")),
        ("TensorRange", set("offset", "100000000")),
        ("no number", set("offset", "-1")),
        ("no number", set("length", "18446744073709551616")),
        ("TensorBytes", set("length", "4")),
        ("TensorOverlap", set("offset", "64")),
    ]);
}

#[test]
fn onnx_wire() {
    let bytes = small().onnx(Style::Optimum).to_bytes();
    let model = |bytes: Vec<u8>| {
        outcome(|dir| {
            small().write_config(dir);
            fs::write(dir.join("model.onnx"), bytes).unwrap();
        })
    };
    let message = |field: u8, inner: &[u8]| {
        let mut length = inner.len();
        let mut out = vec![field << 3 | 2];
        while 0x80 <= length {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        [out, inner.to_vec()].concat()
    };
    // Graphs inside of graphs: attributes that are not asked for are not looked into.
    let bomb = (0..2000).fold(Vec::new(), |inner, _| message(5, &message(6, &message(1, &inner))));
    check(vec![
        ("Protobuf", model(Vec::new())),
        ("Protobuf", model(vec![0x0b])),
        ("a second graph", model([bytes.clone(), message(7, &[])].concat())),
        ("not UTF-8", model(message(7, &message(1, &message(3, &[0xff]))))),
        ("not UTF-8", model(message(7, &message(5, &message(8, &[0xff]))))),
        ("a node of too many parts", model(message(7, &message(1, &message(1, &[]).repeat(5000))))),
        ("too many numbers", model(message(7, &message(5, &message(1, &[1; 17]))))),
        ("too many places", model(message(7, &message(5, &message(13, &[]).repeat(17))))),
        ("the number of initializers", model(message(7, &message(5, &[]).repeat((1 << 16) + 1)))),
        ("no constants", model(message(7, &message(1, &bomb)))),
    ]);
}

/// Shortens and changes one file of a good folder at many places.
fn damage(write: impl Fn(&Path), name: &str, end: usize) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let path = dir.path().join(name);
    let good = fs::read(&path).unwrap();
    let end = end.min(good.len());
    let mut variants: Vec<Vec<u8>> =
        (0..end).step_by((end / 150).max(1)).map(|at| good[..at].to_vec()).collect();
    for at in (0..end).step_by((end / 700).max(1)) {
        for mask in [0x01, 0x10, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= mask;
            variants.push(bytes);
        }
    }
    for bytes in variants {
        fs::write(&path, &bytes).unwrap();
        let opened = catch_unwind(AssertUnwindSafe(|| {
            if let Ok(model) = ModelFile::open(dir.path()) {
                use_model(&model);
            }
        }));
        assert!(
            opened.is_ok(),
            "{name} of {} bytes panics: {:02x?}",
            bytes.len(),
            &bytes[..bytes.len().min(200)]
        );
    }
}

#[test]
fn damaged_files_never_panic() {
    let safetensors = |dir: &Path| small().write_safetensors(dir);
    damage(safetensors, "model.safetensors", 1400);
    damage(safetensors, "config.json", usize::MAX);
    damage(safetensors, "tokenizer.json", usize::MAX);
    damage(safetensors, "tokenizer_config.json", usize::MAX);
    damage(|dir| small().write_shards(dir, 2), "model.safetensors.index.json", usize::MAX);
    damage(|dir| small().write_onnx_with_data(dir, Style::Genai), "model.onnx", usize::MAX);
    damage(|dir| small().write_onnx(dir, Style::Optimum), "model.onnx", 1500);
}
