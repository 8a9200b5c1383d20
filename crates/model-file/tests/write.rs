//! What is written reads back, in every form the exporter has.
#![expect(clippy::unwrap_used, reason = "test code")]

mod support;

use secateur_model::{LayerConfig, RopeLayout, RopeScaling, WeightId, WeightRole, WeightSource};
use secateur_model_file::{
    Metadata, ModelFile, Value, WriteError, WriteOptions, Written, stored_dtype, write_gguf,
};
use secateur_tensor::DType;
use secateur_test_support::{Biases, Gguf, Head, TinyFamily, TinyLayer, TinyModel};
use std::path::Path;
use support::{ALL_ROLES, MemoryModel, quantized};

fn open(gguf: &Gguf, dir: &Path) -> ModelFile {
    let path = dir.join("base.gguf");
    std::fs::write(&path, gguf.to_bytes()).unwrap();
    ModelFile::open(&path).unwrap()
}

fn asked(dtype: DType) -> WriteOptions {
    WriteOptions { dtype: Some(dtype), ..WriteOptions::default() }
}

fn write(
    dir: &Path,
    base: &Metadata,
    source: &dyn WeightSource,
    options: &WriteOptions,
) -> Result<(Written, ModelFile), WriteError> {
    let path = dir.join("out.gguf");
    let written = write_gguf(&path, base, source, options)?;
    let back = ModelFile::open(&path).unwrap();
    assert_eq!(written.bytes, back.file_bytes());
    assert_eq!(written.digest, back.digest().unwrap());
    Ok((written, back))
}

fn shape(heads: usize, kv_heads: usize, width: usize) -> LayerConfig {
    LayerConfig { num_attention_heads: heads, num_key_value_heads: kv_heads, intermediate_size: width }
}

fn all_weights(source: &dyn WeightSource) -> Vec<(WeightId, DType, Vec<u8>)> {
    let layers = (0..source.config().layers.len()).map(Some).chain([None]);
    layers
        .flat_map(|layer_idx| ALL_ROLES.map(|role| WeightId { layer_idx, role }))
        .filter_map(|id| {
            source.weight(id).unwrap().map(|matrix| (id, matrix.dtype(), matrix.data().to_vec()))
        })
        .collect()
}

#[test]
fn keeping_the_dtypes_copies_every_byte_and_the_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    for dtype in DType::ALL {
        for (head, biases) in [(Head::Tied, Biases::None), (Head::Separate, Biases::All)] {
            let tiny = TinyModel { head, biases, ..TinyModel::with_dtype(dtype) };
            let base = open(&tiny.gguf(), dir.path());
            let (written, back) =
                write(dir.path(), base.metadata(), &base, &WriteOptions::default()).unwrap();
            assert_eq!((written.architecture, written.n_layers), ("llama", 2));
            assert!(written.stored_as_f16.is_empty());
            assert_eq!(back.config(), base.config());
            assert_eq!(all_weights(&back), all_weights(&base), "{dtype}");
            assert_eq!(back.vocab().unwrap(), base.vocab().unwrap());
            assert_eq!(back.metadata(), base.metadata(), "{dtype}");
        }
    }
}

#[test]
fn a_file_of_ours_written_again_is_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let base = open(&TinyModel::default().gguf(), dir.path());
    let (first, back) = write(dir.path(), base.metadata(), &base, &asked(DType::Q4_1)).unwrap();
    let second =
        write_gguf(&dir.path().join("again.gguf"), back.metadata(), &back, &asked(DType::Q4_1)).unwrap();
    assert_eq!(first, second);
}

#[test]
fn every_writable_dtype() {
    let dir = tempfile::tempdir().unwrap();
    let base = open(&TinyModel { head: Head::Separate, ..TinyModel::default() }.gguf(), dir.path());
    let file_types = [
        (DType::F32, 0),
        (DType::F16, 1),
        (DType::BF16, 32),
        (DType::Q8_0, 7),
        (DType::Q4_0, 2),
        (DType::Q4_1, 3),
    ];
    for (dtype, file_type) in file_types {
        let (written, back) = write(dir.path(), base.metadata(), &base, &asked(dtype)).unwrap();
        assert!(written.stored_as_f16.is_empty(), "{dtype}");
        assert_eq!(back.metadata().uint("general.file_type").unwrap(), Some(file_type));
        for (id, got, bytes) in all_weights(&back) {
            let matrix = base.require(id).unwrap();
            let want = match (id.role, dtype) {
                (role, _) if role.is_vector() => DType::F32,
                (WeightRole::EmbedTokens | WeightRole::LmHead, DType::Q4_0 | DType::Q4_1) => DType::Q8_0,
                _ => dtype,
            };
            assert_eq!(got, want, "{id}");
            let want = quantized(want, matrix.n_rows(), matrix.n_cols(), &matrix.to_f32());
            assert_eq!(&bytes, want.data(), "{id} in {dtype}");
        }
    }
    for dtype in [DType::Q5_0, DType::Q6_K] {
        let error = write(dir.path(), base.metadata(), &base, &asked(dtype)).unwrap_err();
        assert!(matches!(error, WriteError::Dtype(got) if got == dtype));
    }
}

#[test]
fn tables_that_are_quantized_stay_so_with_four_bits() {
    let cases = [
        (WeightRole::EmbedTokens, Some(DType::Q4_0), DType::F16, 64, DType::Q8_0),
        (WeightRole::EmbedTokens, Some(DType::Q4_0), DType::Q6_K, 256, DType::Q6_K),
        (WeightRole::LmHead, Some(DType::Q4_1), DType::F32, 40, DType::F16),
        (WeightRole::LmHead, Some(DType::Q8_0), DType::Q6_K, 256, DType::Q8_0),
        (WeightRole::QProj, Some(DType::Q4_0), DType::Q6_K, 256, DType::Q4_0),
        (WeightRole::DownProj, Some(DType::Q4_0), DType::F32, 40, DType::F16),
        (WeightRole::DownProj, None, DType::Q3_K, 256, DType::Q3_K),
        (WeightRole::DownBias, Some(DType::Q4_0), DType::F32, 64, DType::F32),
    ];
    for (role, asked, source, n_cols, want) in cases {
        assert_eq!(stored_dtype(role, asked, source, n_cols), want, "{role:?} {asked:?} {source} {n_cols}");
    }
}

#[test]
fn uneven_layers_become_deci() {
    let dir = tempfile::tempdir().unwrap();
    let base = open(&TinyModel::with_layers(6).gguf(), dir.path());
    let mut model = MemoryModel::copy_of(&base);
    model.cut(1, shape(2, 1, 96));
    model.cut(2, shape(0, 0, 128));
    model.cut(3, shape(4, 2, 0));
    model.cut(4, shape(0, 0, 0));
    model.cut(5, shape(2, 1, 0));
    let (written, back) = write(dir.path(), base.metadata(), &model, &WriteOptions::default()).unwrap();
    assert_eq!((written.architecture, written.n_layers), ("deci", 5));
    let want = [shape(4, 2, 128), shape(2, 1, 96), shape(0, 0, 128), shape(4, 2, 32), shape(2, 1, 32)];
    assert_eq!(back.config().layers, want);
    let metadata = back.metadata();
    assert_eq!(metadata.text("general.architecture").unwrap(), Some("deci"));
    let counts = metadata.numbers("deci.attention.head_count_kv").unwrap().unwrap();
    assert_eq!(counts.iter().map(|count| count.as_int()).collect::<Vec<_>>(), [2, 1, 0, 2, 1].map(Some));
    for key in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
        assert_eq!(metadata.uint(&format!("deci.{key}")).unwrap(), Some(16), "{key}");
    }
    assert!(metadata.iter().all(|(key, _)| !key.starts_with("llama.")));
    assert_eq!(back.vocab().unwrap(), base.vocab().unwrap());
    // The layer without an MLP has one that adds nothing.
    let down = back.require(WeightId::layer(3, WeightRole::DownProj)).unwrap();
    assert!(down.to_f32().iter().all(|value| *value == 0.0));
    let gate = back.require(WeightId::layer(3, WeightRole::GateProj)).unwrap();
    assert_eq!((gate.n_rows(), gate.n_cols()), (32, 64));
    // Layer 4 of the source is gone: the last one took its place.
    let id = WeightId::layer(4, WeightRole::QProj);
    let want = model.require(WeightId::layer(5, WeightRole::QProj)).unwrap();
    assert_eq!(back.require(id).unwrap().data(), want.data());
}

#[test]
fn equal_layers_stay_llama_after_a_cut() {
    let dir = tempfile::tempdir().unwrap();
    let base = open(&TinyModel::with_layers(3).gguf(), dir.path());
    let mut model = MemoryModel::copy_of(&base);
    for layer_idx in [0, 2] {
        model.cut(layer_idx, shape(2, 1, 64));
    }
    model.cut(1, shape(0, 0, 0));
    let (written, back) = write(dir.path(), base.metadata(), &model, &asked(DType::Q8_0)).unwrap();
    assert_eq!((written.architecture, written.n_layers), ("llama", 2));
    assert_eq!(back.config().layers, [shape(2, 1, 64); 2]);
    assert_eq!(back.config().head_dim, 16);
    assert_eq!(back.metadata().uint("llama.attention.head_count").unwrap(), Some(2));
    assert_eq!(back.metadata().uint("llama.block_count").unwrap(), Some(2));
}

#[test]
fn a_first_layer_without_attention_gets_one_of_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let base = open(&TinyModel::with_layers(2).gguf(), dir.path());
    let mut model = MemoryModel::copy_of(&base);
    model.cut(0, shape(0, 0, 128));
    let (_, back) = write(dir.path(), base.metadata(), &model, &asked(DType::Q4_0)).unwrap();
    assert_eq!(back.config().layers, [shape(2, 1, 128), shape(4, 2, 128)]);
    for role in [WeightRole::QProj, WeightRole::KProj, WeightRole::VProj, WeightRole::OProj] {
        let matrix = back.require(WeightId::layer(0, role)).unwrap();
        assert!(matrix.to_f32().iter().all(|value| *value == 0.0), "{role:?}");
    }
    let norm = back.require(WeightId::layer(0, WeightRole::AttnNorm)).unwrap();
    assert_eq!(norm.to_f32(), [1.0; 64]);
}

#[test]
fn rows_that_do_not_divide_become_halves_and_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let base = open(&TinyModel::with_layers(2).gguf(), dir.path());
    let mut model = MemoryModel::copy_of(&base);
    model.cut(0, shape(4, 2, 40));
    model.cut(1, shape(4, 2, 40));
    let (written, back) = write(dir.path(), base.metadata(), &model, &asked(DType::Q4_0)).unwrap();
    let downs = [0, 1].map(|layer_idx| WeightId::layer(layer_idx, WeightRole::DownProj));
    assert_eq!(written.stored_as_f16, downs);
    assert_eq!(back.dtype_of(downs[0]), Some(DType::F16));
    assert_eq!(back.dtype_of(WeightId::layer(0, WeightRole::UpProj)), Some(DType::Q4_0));
}

/// Dot products of rotated queries and keys, with pairs `(a, b)` of elements rotating together.
fn rotated_scores(q: &[f32], k: &[f32], pairs: &[(usize, usize)]) -> Vec<f32> {
    let rotate = |head: &[f32], position: f32| {
        let mut out = head.to_vec();
        for (idx, &(a, b)) in pairs.iter().enumerate() {
            let angle = position * 100f32.powf(-(idx as f32) / pairs.len() as f32);
            out[a] = head[a] * angle.cos() - head[b] * angle.sin();
            out[b] = head[a] * angle.sin() + head[b] * angle.cos();
        }
        out
    };
    [(0.0, 0.0), (3.0, 1.0), (17.0, 5.0)]
        .map(|(at_q, at_k)| rotate(q, at_q).iter().zip(rotate(k, at_k)).map(|(a, b)| a * b).sum())
        .to_vec()
}

#[test]
fn rotary_halves_become_pairs_with_the_same_scores() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = TinyModel { biases: Biases::Qkv, ..TinyModel::with_layers(2) };
    let base = open(&tiny.gguf(), dir.path());
    let mut model = MemoryModel::copy_of(&base);
    model.config.rope_layout = RopeLayout::Halves;
    let (_, back) = write(dir.path(), base.metadata(), &model, &WriteOptions::default()).unwrap();
    assert_eq!(back.config().rope_layout, RopeLayout::Interleaved);
    let halves: Vec<(usize, usize)> = (0..8).map(|idx| (idx, idx + 8)).collect();
    let pairs: Vec<(usize, usize)> = (0..8).map(|idx| (2 * idx, 2 * idx + 1)).collect();
    let input: Vec<f32> = (0..64).map(|idx| (idx as f32 * 0.7).sin()).collect();
    let project = |source: &dyn WeightSource, role, bias| -> Vec<f32> {
        let matrix = source.require(WeightId::layer(1, role)).unwrap().to_f32();
        let bias = source.require(WeightId::layer(1, bias)).unwrap().to_f32();
        let rows = matrix.chunks_exact(64).zip(bias);
        rows.map(|(row, bias)| row.iter().zip(&input).map(|(a, b)| a * b).sum::<f32>() + bias).collect()
    };
    let heads = |source: &dyn WeightSource| {
        let q = project(source, WeightRole::QProj, WeightRole::QBias);
        (q, project(source, WeightRole::KProj, WeightRole::KBias))
    };
    let ((q, k), (new_q, new_k)) = (heads(&model), heads(&back));
    for head in 0..4 {
        let (q_at, k_at) = (head * 16..head * 16 + 16, head / 2 * 16..head / 2 * 16 + 16);
        let want = rotated_scores(&q[q_at.clone()], &k[k_at.clone()], &halves);
        let got = rotated_scores(&new_q[q_at], &new_k[k_at], &pairs);
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() < 1e-4, "head {head}: {got} instead of {want}");
        }
    }
    let v = WeightId::layer(1, WeightRole::VProj);
    assert_eq!(back.require(v).unwrap().data(), model.require(v).unwrap().data());
}

#[test]
fn qwen2_stays_itself_only_while_a_stock_runtime_can_read_it_so() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = TinyModel { family: TinyFamily::Qwen2, biases: Biases::Qkv, ..TinyModel::with_layers(2) };
    let base = open(&tiny.gguf(), dir.path());
    let (written, back) = write(dir.path(), base.metadata(), &base, &WriteOptions::default()).unwrap();
    assert_eq!((written.architecture, back.config()), ("qwen2", base.config()));
    assert_eq!(all_weights(&back), all_weights(&base));

    let mut model = MemoryModel::copy_of(&base);
    model.cut(1, shape(2, 1, 128));
    let (written, back) = write(dir.path(), base.metadata(), &model, &WriteOptions::default()).unwrap();
    assert_eq!((written.architecture, written.notes.len()), ("deci", 1));
    assert_eq!(back.config().rope_layout, RopeLayout::Interleaved);
    assert_eq!(back.metadata().uint("deci.context_length").unwrap(), Some(256));

    model.cut(0, shape(2, 1, 128));
    let (written, _) = write(dir.path(), base.metadata(), &model, &WriteOptions::default()).unwrap();
    assert_eq!(written.architecture, "llama");

    let mut model = MemoryModel::copy_of(&base);
    let bias = WeightId::layer(1, WeightRole::DownBias);
    model.weights.insert(bias, quantized(DType::F32, 1, 64, &[0.5; 64]));
    let (written, back) = write(dir.path(), base.metadata(), &model, &WriteOptions::default()).unwrap();
    assert_eq!(written.architecture, "llama");
    assert_eq!(back.require(bias).unwrap().to_f32(), [0.5; 64]);
}

#[test]
fn rotary_scaling_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let base = open(&TinyModel::default().gguf(), dir.path());
    let mut model = MemoryModel::copy_of(&base);
    model.config.rope_scaling = RopeScaling::Linear { factor: 2.5 };
    let (_, back) = write(dir.path(), base.metadata(), &model, &WriteOptions::default()).unwrap();
    assert_eq!(back.config().rope_scaling, model.config.rope_scaling);
    model.config.rope_scaling = RopeScaling::Factors((0..8).map(|idx| 1.0 + idx as f32).collect());
    let (_, back) = write(dir.path(), back.metadata(), &model, &WriteOptions::default()).unwrap();
    assert_eq!(back.config().rope_scaling, model.config.rope_scaling);
    model.config.rope_theta = 500_000.0;
    model.config.rope_scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let (_, back) = write(dir.path(), base.metadata(), &model, &WriteOptions::default()).unwrap();
    let RopeScaling::Factors(factors) = &back.config().rope_scaling else { panic!("factors expected") };
    // Wavelengths 6.3, 32, 168, 863: short; 4443 is between 2048 and 8192; the rest is long.
    assert_eq!((&factors[..4], &factors[5..]), (&[1.0; 4][..], &[8.0; 3][..]));
    let smooth = (8192.0 / 4442.88 - 1.0) / 3.0;
    assert!((factors[4] - 1.0 / ((1.0 - smooth) / 8.0 + smooth)).abs() < 1e-3, "{}", factors[4]);
}

#[test]
fn extra_keys_and_alignment() {
    let dir = tempfile::tempdir().unwrap();
    let mut gguf = TinyModel::with_layers(1).gguf();
    gguf.alignment = 256;
    gguf.set("general.alignment", secateur_test_support::Meta::U32(256));
    gguf.set("split.count", secateur_test_support::Meta::U32(2));
    gguf.set("llama.rope.scaling.type", "none");
    let base = open(&gguf, dir.path());
    let extra = vec![("secateur.method".to_owned(), Value::from("comp"))];
    let options = WriteOptions { dtype: Some(DType::Q4_0), extra };
    let (written, back) = write(dir.path(), base.metadata(), &base, &options).unwrap();
    assert_eq!(written.bytes % 256, 0);
    assert_eq!(back.metadata().text("secateur.method").unwrap(), Some("comp"));
    assert_eq!(back.metadata().get("split.count"), None);
    assert_eq!(back.metadata().uint("general.alignment").unwrap(), Some(256));
}

fn files_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_failure_leaves_the_target_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let base = open(&TinyModel::with_layers(2).gguf(), dir.path());
    let target = dir.path().join("out.gguf");
    std::fs::write(&target, "an older model").unwrap();
    let fresh = || MemoryModel::copy_of(&base);
    let with = |change: &dyn Fn(&mut MemoryModel)| {
        let mut model = fresh();
        change(&mut model);
        model
    };
    let gate = WeightId::layer(1, WeightRole::GateProj);
    let cases = [
        ("unreadable", with(&|model| model.broken = Some(gate))),
        ("missing", with(&|model| drop(model.weights.remove(&gate)))),
        (
            "wrong shape",
            with(&|model| {
                model.weights.insert(gate, quantized(DType::F32, 64, 64, &[0.0; 64 * 64]));
            }),
        ),
        (
            "not finite",
            with(&|model| {
                let mut bytes = model.weights[&gate].data().to_vec();
                bytes[4 * 64 * 7..4 * 64 * 7 + 4].copy_from_slice(&f32::NAN.to_le_bytes());
                let matrix = secateur_tensor::WeightMatrix::new(DType::F32, 128, 64, bytes.into()).unwrap();
                model.weights.insert(gate, matrix);
            }),
        ),
        ("no layer", with(&|model| (0..2).for_each(|idx| model.cut(idx, shape(0, 0, 0))))),
        ("no attention", with(&|model| (0..2).for_each(|idx| model.cut(idx, shape(0, 0, 128))))),
        ("heads do not divide", with(&|model| model.config.layers[0].num_key_value_heads = 3)),
    ];
    for (name, model) in cases {
        let error = write_gguf(&target, base.metadata(), &model, &asked(DType::Q8_0)).unwrap_err();
        match name {
            "unreadable" | "missing" => assert!(matches!(error, WriteError::Weight(_)), "{name}: {error}"),
            "wrong shape" => assert!(matches!(error, WriteError::Shape { .. }), "{error}"),
            "not finite" => assert!(matches!(error, WriteError::Quantize { row: 7, .. }), "{error:?}"),
            _ => assert!(matches!(error, WriteError::NotExportable(_)), "{name}: {error}"),
        }
        assert_eq!(std::fs::read(&target).unwrap(), b"an older model", "{name}");
        assert_eq!(files_in(dir.path()), ["base.gguf", "out.gguf"], "{name}");
    }
    let missing = dir.path().join("no such folder/out.gguf");
    assert!(matches!(
        write_gguf(&missing, base.metadata(), &base, &WriteOptions::default()),
        Err(WriteError::Io { .. })
    ));
    assert!(matches!(
        write_gguf(dir.path(), base.metadata(), &base, &WriteOptions::default()),
        Err(WriteError::Io { .. })
    ));
    write_gguf(&target, base.metadata(), &base, &WriteOptions::default()).unwrap();
    assert_eq!(files_in(dir.path()), ["base.gguf", "out.gguf"]);
    assert!(std::fs::metadata(&target).unwrap().len() > 1000);
}

#[test]
fn a_deci_file_is_read_and_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let layer = |heads, kv_heads, intermediate_size| TinyLayer { heads, kv_heads, intermediate_size };
    let layers = vec![layer(4, 2, 96), layer(0, 0, 64), layer(4, 4, 32)];
    let base = open(&TinyModel { layers, ..TinyModel::default() }.gguf(), dir.path());
    let (written, back) = write(dir.path(), base.metadata(), &base, &WriteOptions::default()).unwrap();
    assert_eq!(written.architecture, "deci");
    assert_eq!(back.config(), base.config());
    assert_eq!(all_weights(&back), all_weights(&base));
}
