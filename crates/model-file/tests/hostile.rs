//! Broken GGUF files: a typed error each, never a panic, and a file that is still accepted can be used.
#![expect(clippy::unwrap_used, reason = "test code")]

mod support;

use secateur_model::{WeightId, WeightSource};
use secateur_model_file::{ModelFile, ModelFileError};
use secateur_test_support::{Gguf, GgufTensor, Meta, TinyLayer, TinyModel};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tempfile::NamedTempFile;

/// A valid model with a header of about 2 KiB.
fn small() -> Gguf {
    let layer = TinyLayer { heads: 2, kv_heads: 1, intermediate_size: 32 };
    let tiny = TinyModel { hidden_size: 32, head_dim: 16, layers: vec![layer], ..TinyModel::default() };
    let mut gguf = tiny.gguf();
    gguf.set("tokenizer.ggml.tokens", Meta::Strs(["<s>", "a", "b", "é"].map(str::to_owned).to_vec()));
    gguf.set("tokenizer.ggml.token_type", Meta::I32s(vec![3, 1, 1, 1]));
    gguf.set("tokenizer.ggml.merges", Meta::Strs(vec!["a b".to_owned()]));
    let table = gguf.tensor("token_embd.weight");
    table.dims = vec![32, 4];
    table.data.truncate(4 * 32 * 4);
    gguf
}

fn open(bytes: &[u8], dir: &Path) -> Result<ModelFile, ModelFileError> {
    let path = dir.join("hostile.gguf");
    std::fs::write(&path, bytes).unwrap();
    ModelFile::open(&path)
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
    if let Ok(vocab) = model.vocab() {
        vocab.tokens.iter().chain(vocab.merges.iter()).for_each(|text| assert!(text.len() < 10_000));
    }
    model.tensors().for_each(|tensor| assert!(0 < tensor.bytes()));
}

struct Case {
    name: &'static str,
    change: fn(&mut Gguf),
    /// What the error must contain, in `{:?}` form.
    want: &'static str,
}

fn remove(gguf: &mut Gguf, key: &str) {
    assert!(gguf.remove(key), "{key} was there");
}

const fn case(name: &'static str, change: fn(&mut Gguf), want: &'static str) -> Case {
    Case { name, change, want }
}

fn raw(type_id: u32, parts: &[&[u8]]) -> Meta {
    Meta::Raw(type_id, parts.concat())
}

const HEADER_CASES: &[Case] = &[
    case("magic", |f| f.magic = *b"GGUG", "Magic"),
    case("old magic", |f| f.magic = *b"ggjt", "Magic"),
    case("version 0", |f| f.version = 0, "Version(0)"),
    case("version 1", |f| f.version = 1, "Version(1)"),
    case("version 4", |f| f.version = 4, "Version(4)"),
    case("version huge", |f| f.version = u32::MAX, "Version(4294967295)"),
    case("big endian", |f| f.version = 3u32.swap_bytes(), "BigEndian"),
    case("2^64-1 tensors", |f| f.tensor_count = Some(u64::MAX), "TooLarge { what: \"the number of tensors\""),
    case("2^63 tensors", |f| f.tensor_count = Some(1 << 63), "TooLarge { what: \"the number of tensors\""),
    case("16384 tensors", |f| f.tensor_count = Some(16384), "Truncated { what: \"the header\""),
    case(
        "one tensor more",
        |f| f.tensor_count = Some(f.tensors.len() as u64 + 1),
        "EmptyName { what: \"a tensor name\"",
    ),
    case("2^64-1 pairs", |f| f.metadata_count = Some(u64::MAX), "TooLarge { what: \"the number of metadata"),
    case("4096 pairs", |f| f.metadata_count = Some(4096), "Truncated { what: \"the header\""),
    case(
        "one pair more",
        |f| f.metadata_count = Some(f.metadata.len() as u64 + 1),
        "TooLarge { what: \"a tensor name\"",
    ),
    case(
        "one pair fewer",
        |f| f.metadata_count = Some(f.metadata.len() as u64 - 1),
        "TensorType { name: \"general.quantization_version\"",
    ),
    case("empty key", |f| f.push("", Meta::U32(1)), "EmptyName { what: \"a metadata key\""),
    case("long key", |f| f.push("k".repeat(1025), Meta::U32(1)), "TooLarge { what: \"a metadata key\""),
    case("key twice", |f| f.push("general.name", "again"), "DuplicateKey(\"general.name\")"),
    case("unknown value type", |f| f.push("x", raw(13, &[&[0; 8]])), "ValueType { key: \"x\", type_id: 13 }"),
    case("huge value type", |f| f.push("x", raw(u32::MAX, &[&[0; 8]])), "ValueType"),
    case(
        "string of 2^64-1 bytes",
        |f| f.push("x", raw(8, &[&[0xff; 8]])),
        "Truncated { what: \"a metadata str",
    ),
    case("string of 2^63 bytes", |f| f.push("x", raw(8, &[&(1u64 << 63).to_le_bytes()])), "Truncated"),
    case(
        "string that is not UTF-8",
        |f| f.push("x", raw(8, &[&1u64.to_le_bytes(), &[0xff]])),
        "NotUtf8 { what: \"a metadata string\"",
    ),
    case("boolean of 2", |f| f.push("x", raw(7, &[&[2]])), "NotBool { key: \"x\", value: 2 }"),
    case(
        "array of booleans with a 7",
        |f| f.push("x", raw(9, &[&7u32.to_le_bytes(), &3u64.to_le_bytes(), &[0, 1, 7]])),
        "NotBool { key: \"x\", value: 7 }",
    ),
    case(
        "array of arrays",
        |f| f.push("x", raw(9, &[&9u32.to_le_bytes(), &1u64.to_le_bytes(), &[0; 12]])),
        "NestedArray(\"x\")",
    ),
    case(
        "array of an unknown type",
        |f| f.push("x", raw(9, &[&77u32.to_le_bytes(), &1u64.to_le_bytes(), &[0; 12]])),
        "ValueType { key: \"x\", type_id: 77 }",
    ),
    case(
        "array of 2^64-1 numbers",
        |f| f.push("x", raw(9, &[&10u32.to_le_bytes(), &u64::MAX.to_le_bytes()])),
        "Truncated { what: \"a metadata array of numbers\"",
    ),
    case(
        "array of 2^61 + 1 eight-byte numbers",
        |f| f.push("x", raw(9, &[&10u32.to_le_bytes(), &((1u64 << 61) + 1).to_le_bytes(), &[0; 8]])),
        "Truncated { what: \"a metadata array of numbers\"",
    ),
    case(
        "array of 2^64-1 strings",
        |f| f.push("x", raw(9, &[&8u32.to_le_bytes(), &u64::MAX.to_le_bytes()])),
        "Truncated { what: \"a metadata array of strings\"",
    ),
    case(
        "array of strings, one too long",
        |f| f.push("x", raw(9, &[&8u32.to_le_bytes(), &1u64.to_le_bytes(), &[0xff; 8]])),
        "Truncated { what: \"a metadata array of strings\"",
    ),
    case(
        "array of strings that are not UTF-8",
        |f| {
            let text = [&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &2u64.to_le_bytes(), &[0xc3, 0x28]];
            f.push("x", raw(9, &text));
        },
        "NotUtf8 { what: \"a metadata array of strings\"",
    ),
    case("alignment 0", |f| f.push("general.alignment", Meta::U32(0)), "Alignment"),
    case("alignment 24", |f| f.push("general.alignment", Meta::U32(24)), "Alignment"),
    case("alignment 2^31", |f| f.push("general.alignment", Meta::U32(1 << 31)), "Alignment"),
    case("alignment of 64 bits", |f| f.push("general.alignment", Meta::U64(32)), "Alignment"),
    case("alignment as a string", |f| f.push("general.alignment", "32"), "Alignment"),
];

fn tensor(f: &mut Gguf) -> &mut GgufTensor {
    f.tensor("blk.0.attn_q.weight")
}

const TENSOR_CASES: &[Case] = &[
    case("empty name", |f| tensor(f).name = String::new(), "EmptyName { what: \"a tensor name\""),
    case("long name", |f| tensor(f).name = "n".repeat(64), "TooLarge { what: \"a tensor name\", value: 64"),
    case(
        "name twice",
        |f| tensor(f).name = "blk.0.attn_k.weight".into(),
        "DuplicateTensor(\"blk.0.attn_k.wei",
    ),
    case(
        "unknown name",
        |f| tensor(f).name = "blk.0.attn_q_norm.weight".into(),
        "UnexpectedTensor(\"blk.0.att",
    ),
    case(
        "no dimensions",
        |f| tensor(f).dims = vec![],
        "TensorDims { name: \"blk.0.attn_q.weight\", n_dims: 0 }",
    ),
    case("five dimensions", |f| tensor(f).dims = vec![1; 5], "n_dims: 5"),
    case("a dimension of 0", |f| tensor(f).dims = vec![32, 0], "TensorSize { name: \"blk.0.attn_q.weight\""),
    case("dimensions 2^32 * 2^32", |f| tensor(f).dims = vec![1 << 32, 1 << 32], "TensorSize"),
    case("dimensions of a product of 2^64", |f| tensor(f).dims = vec![1 << 16; 4], "TensorSize"),
    case("dimensions of a product of 2^63", |f| tensor(f).dims = vec![1 << 62, 2], "TensorSize"),
    case("2^62 values of 4 bytes", |f| tensor(f).dims = vec![1 << 31, 1 << 31], "TensorSize"),
    case("2^64-1 columns", |f| tensor(f).dims = vec![u64::MAX, 1], "TensorSize"),
    case("2^61 - 1 values", |f| tensor(f).dims = vec![(1 << 61) - 1, 1], "TensorRange"),
    case("removed type", |f| tensor(f).type_id = 4, "type_name: \"a type removed from ggml\""),
    case("unsupported type", |f| tensor(f).type_id = 23, "type_id: 23, type_name: \"iq4_xs\""),
    case("unknown type", |f| tensor(f).type_id = u32::MAX, "type_name: \"unknown\""),
    case("K blocks over 32 columns", |f| tensor(f).type_id = 14, "TensorRow { name: \"blk.0.attn_q.weight\""),
    case(
        "offset of 1",
        |f| tensor(f).offset = Some(1),
        "TensorOffset { name: \"blk.0.attn_q.weight\", offset: 1",
    ),
    case("offset of 2^64-1", |f| tensor(f).offset = Some(u64::MAX), "TensorRange"),
    case("offset of 2^64-32", |f| tensor(f).offset = Some(u64::MAX - 31), "TensorRange"),
    case("offset of 2^63", |f| tensor(f).offset = Some(1 << 63), "TensorRange"),
    case("offset past the end", |f| tensor(f).offset = Some(1 << 20), "TensorRange"),
    case(
        "an offset of another tensor",
        |f| tensor(f).offset = Some(0),
        "TensorOverlap { first: \"token_embd.wei",
    ),
    case("an offset into another tensor", |f| tensor(f).offset = Some(96), "TensorOverlap"),
    case("a last tensor cut short", |f| f.tensor("output_norm.weight").data.truncate(32), "TensorRange"),
    case("too many values", |f| tensor(f).dims = vec![32, 33], "TensorOverlap"),
    case("fewer rows", |f| tensor(f).dims = vec![32, 31], "TensorShape { name: \"blk.0.attn_q.weight\""),
    case("swapped dimensions", |f| f.tensor("blk.0.attn_k.weight").dims = vec![16, 32], "TensorShape"),
    case("rows in a third dimension", |f| tensor(f).dims = vec![32, 4, 8], "TensorShape"),
    case("a norm that is a matrix", |f| f.tensor("output_norm.weight").dims = vec![16, 2], "TensorShape"),
    case(
        "a norm in blocks",
        |f| {
            let norm = f.tensor("output_norm.weight");
            (norm.type_id, norm.data) = (8, vec![0; 34]);
        },
        "VectorType { name: \"output_norm.weight\", dtype: Q8_0 }",
    ),
    case("no token table", |f| drop(f.tensors.remove(0)), "MissingTensor(\"token_embd.weight\")"),
    case("no final norm", |f| drop(f.tensors.pop()), "MissingTensor(\"output_norm.weight\")"),
    case("no tensors", |f| f.tensors.clear(), "MissingTensor"),
    case(
        "a layer too many",
        |f| {
            let mut tensor = tensor(f).clone();
            tensor.name = "blk.1.attn_q.weight".into();
            f.tensors.push(tensor);
        },
        "UnexpectedTensor(\"blk.1.attn_q.weight\")",
    ),
    case(
        "a weight missing",
        |f| f.tensors.retain(|t| t.name != "blk.0.ffn_up.weight"),
        "MissingTensor(\"blk.0.ffn_",
    ),
    case("a padded number", |f| tensor(f).name = "blk.00.attn_q.weight".into(), "UnexpectedTensor"),
    case(
        "a huge number",
        |f| tensor(f).name = format!("blk.{}.attn_q.weight", "9".repeat(30)),
        "UnexpectedTensor",
    ),
];

const CONFIG_CASES: &[Case] = &[
    case("no architecture", |f| remove(f, "general.architecture"), "MissingKey(\"general.architecture\")"),
    case("unknown architecture", |f| f.set("general.architecture", "gpt2"), "Architecture(\"gpt2\")"),
    case("architecture as a number", |f| f.set("general.architecture", Meta::U32(1)), "KeyType"),
    case("no layers", |f| f.set("llama.block_count", Meta::U32(0)), "Range { key: \"num_hidden_layers\""),
    case(
        "2^32-1 layers",
        |f| f.set("llama.block_count", Meta::U32(u32::MAX)),
        "TooLarge { what: \"the number of l",
    ),
    case("513 layers", |f| f.set("llama.block_count", Meta::U32(513)), "TooLarge"),
    case("two layers claimed", |f| f.set("llama.block_count", Meta::U32(2)), "MissingTensor(\"blk.1."),
    case("layers as a string", |f| f.set("llama.block_count", "1"), "KeyType { key: \"llama.block_count\""),
    case("negative layers", |f| f.set("llama.block_count", Meta::I32(-1)), "KeyType"),
    case("no width", |f| remove(f, "llama.embedding_length"), "MissingKey(\"llama.embedding_length\")"),
    case("width 0", |f| f.set("llama.embedding_length", Meta::U32(0)), "Range { key: \"hidden_size\""),
    case("width 2^64-1", |f| f.set("llama.embedding_length", Meta::U64(u64::MAX)), "hidden_size"),
    case("other width", |f| f.set("llama.embedding_length", Meta::U32(64)), "TensorShape"),
    case("no context", |f| remove(f, "llama.context_length"), "MissingKey"),
    case("context 0", |f| f.set("llama.context_length", Meta::U32(0)), "max_position_embeddings"),
    case("no epsilon", |f| remove(f, "llama.attention.layer_norm_rms_epsilon"), "MissingKey"),
    case(
        "epsilon NaN",
        |f| f.set("llama.attention.layer_norm_rms_epsilon", Meta::F32(f32::NAN)),
        "NotFinite",
    ),
    case(
        "epsilon as an integer",
        |f| f.set("llama.attention.layer_norm_rms_epsilon", Meta::U32(1)),
        "KeyType",
    ),
    case(
        "rotary base 0",
        |f| f.set("llama.rope.freq_base", Meta::F32(0.0)),
        "NotFinite { key: \"rope_theta\"",
    ),
    case("rotary base infinite", |f| f.set("llama.rope.freq_base", Meta::F32(f32::INFINITY)), "NotFinite"),
    case("no heads", |f| f.set("llama.attention.head_count", Meta::U32(0)), "Heads { layer_idx: 0"),
    case("3 heads over 2", |f| f.set("llama.attention.head_count_kv", Meta::U32(3)), "Heads"),
    case("2^20 heads", |f| f.set("llama.attention.head_count", Meta::U32(1 << 20)), "num_attention_heads"),
    case("too few widths", |f| f.set("llama.feed_forward_length", Meta::U32s(vec![])), "KeyLen"),
    case("too many widths", |f| f.set("llama.feed_forward_length", Meta::U32s(vec![32, 32])), "KeyLen"),
    case(
        "widths as strings",
        |f| f.set("llama.feed_forward_length", Meta::Strs(vec!["32".into()])),
        "KeyType",
    ),
    case("widths as floats", |f| f.set("llama.feed_forward_length", Meta::F32s(vec![32.0])), "KeyType"),
    case("negative widths", |f| f.set("llama.feed_forward_length", Meta::I32s(vec![-32])), "KeyType"),
    case("width 2^32-1", |f| f.set("llama.feed_forward_length", Meta::U32(u32::MAX)), "intermediate_size"),
    case("odd heads", |f| f.set("llama.attention.key_length", Meta::U32(15)), "Unsupported"),
    case(
        "odd heads throughout",
        |f| {
            for key in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
                f.set(&format!("llama.{key}"), Meta::U32(15));
            }
        },
        "Range { key: \"head_dim\"",
    ),
    case("values wider than keys", |f| f.set("llama.attention.value_length", Meta::U32(32)), "Unsupported"),
    case("heads that turn in part", |f| f.set("llama.rope.dimension_count", Meta::U32(8)), "Unsupported"),
    case("experts", |f| f.set("llama.expert_count", Meta::U32(8)), "Unsupported(\"a mixture of experts\")"),
    case("yarn", |f| f.set("llama.rope.scaling.type", "yarn"), "Unsupported(\"rotary scaling `yarn`\")"),
    case("negative scaling", |f| f.set("llama.rope.scaling.factor", Meta::F32(-1.0)), "KeyType"),
    case(
        "too few rotary factors",
        |f| f.tensors.push(factors(&[1.0; 7])),
        "TensorShape { name: \"rope_freqs.weight\", want: [8], got: [7] }",
    ),
    case(
        "a rotary factor of 0",
        |f| f.tensors.push(factors(&[0.0; 8])),
        "RopeFactors(\"rope_freqs.weight\")",
    ),
    case("a rotary factor NaN", |f| f.tensors.push(factors(&[f32::NAN; 8])), "RopeFactors"),
    case("2000 rotary factors", |f| f.tensors.push(factors(&[1.0; 2000])), "TooLarge"),
    case(
        "a token too many",
        |f| f.set("tokenizer.ggml.tokens", Meta::Strs(vec!["a".into(); 5])),
        "VocabSize",
    ),
    case("tokens as numbers", |f| f.set("tokenizer.ggml.tokens", Meta::U32s(vec![1; 4])), "KeyType"),
];

fn factors(values: &[f32]) -> GgufTensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    GgufTensor {
        name: "rope_freqs.weight".into(),
        dims: vec![values.len() as u64],
        type_id: 0,
        offset: None,
        data,
    }
}

#[test]
fn every_kind_of_broken_file_has_its_error() {
    let dir = tempfile::tempdir().unwrap();
    use_model(&open(&small().to_bytes(), dir.path()).unwrap());
    let mut failures = Vec::new();
    for Case { name, change, want } in HEADER_CASES.iter().chain(TENSOR_CASES).chain(CONFIG_CASES) {
        let mut gguf = small();
        change(&mut gguf);
        match open(&gguf.to_bytes(), dir.path()) {
            Ok(_) => failures.push(format!("{name}: accepted")),
            Err(error) if !format!("{error:?}").contains(want) => {
                failures.push(format!("{name}: {error:?}, not {want}"));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

const VOCAB_CASES: &[Case] = &[
    case("no tokens", |f| remove(f, "tokenizer.ggml.tokens"), "MissingKey(\"tokenizer.ggml.tokens\")"),
    case("no model", |f| remove(f, "tokenizer.ggml.model"), "MissingKey(\"tokenizer.ggml.model\")"),
    case("a type too few", |f| f.set("tokenizer.ggml.token_type", Meta::I32s(vec![1; 3])), "VocabLen"),
    case("types as floats", |f| f.set("tokenizer.ggml.token_type", Meta::F32s(vec![1.0; 4])), "KeyType"),
    case("a score too many", |f| f.set("tokenizer.ggml.scores", Meta::F32s(vec![1.0; 5])), "VocabLen"),
    case("scores as numbers", |f| f.set("tokenizer.ggml.scores", Meta::I32s(vec![1; 4])), "KeyType"),
    case("an end beyond the tokens", |f| f.set("tokenizer.ggml.eos_token_id", Meta::U32(4)), "KeyType"),
    case("merges as a string", |f| f.set("tokenizer.ggml.merges", "a b"), "KeyType"),
    case("a template of numbers", |f| f.set("tokenizer.chat_template", Meta::U32(1)), "KeyType"),
];

#[test]
fn a_broken_vocabulary_has_its_error_and_does_not_stop_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    for Case { name, change, want } in VOCAB_CASES {
        let mut gguf = small();
        change(&mut gguf);
        let model = open(&gguf.to_bytes(), dir.path()).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let error = model.vocab().map(drop).unwrap_err();
        assert!(format!("{error:?}").contains(want), "{name}: {error:?}");
        use_model(&model);
    }
}

/// Opens the file and uses the model if there is one; a panic names the place.
fn survive(path: &Path, place: &dyn Fn() -> String) -> bool {
    let outcome = catch_unwind(AssertUnwindSafe(|| ModelFile::open(path).as_ref().map(use_model).is_ok()));
    outcome.unwrap_or_else(|_| panic!("panicked at {}", place()))
}

fn file_of(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = small().to_bytes();
    let file = file_of(&bytes);
    assert!(survive(file.path(), &|| "full length".to_owned()));
    for len in (0..bytes.len()).rev() {
        file.as_file().set_len(len as u64).unwrap();
        assert!(!survive(file.path(), &|| format!("length {len}")), "{len} of {} accepted", bytes.len());
    }
}

#[test]
fn every_flipped_bit_of_the_header_is_survived() {
    let gguf = small();
    let bytes = gguf.to_bytes();
    let file = file_of(&bytes);
    let header = gguf.header_bytes().len();
    let mut refused = 0;
    for (at, &byte) in bytes[..header].iter().enumerate() {
        for flip in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff] {
            file.as_file().write_all_at(&[byte ^ flip], at as u64).unwrap();
            refused += usize::from(!survive(file.path(), &|| format!("byte {at} ^ {flip:#x}")));
        }
        file.as_file().write_all_at(&[byte], at as u64).unwrap();
    }
    // Flips inside free text change nothing that can be checked; most of the rest must not pass.
    assert!(header * 9 / 3 < refused, "{refused} of {} refused", header * 9);
    assert!(survive(file.path(), &|| "the whole file".to_owned()));
}

#[test]
fn empty_and_foreign_files() {
    let dir = tempfile::tempdir().unwrap();
    for (bytes, want) in [
        (&b""[..], "Truncated"),
        (b"GGU", "Truncated"),
        (b"GGUF", "Truncated"),
        (b"PK\x03\x04 a zip file that is long enough", "Magic"),
        (b"\x7fELF\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "Magic"),
        (&[0; 4096], "Magic"),
        (&[0xff; 4096], "Magic"),
    ] {
        let error = open(bytes, dir.path()).map(drop).unwrap_err();
        assert!(format!("{error:?}").contains(want), "{error:?}");
    }
    let missing = ModelFile::open(&dir.path().join("missing")).map(drop).unwrap_err();
    assert!(matches!(missing, ModelFileError::Io { .. }));
}
