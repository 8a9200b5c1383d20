//! The reader on files nobody thought of.
#![expect(clippy::unwrap_used, reason = "test code")]

use proptest::prelude::*;
use secateur_model::{WeightId, WeightRole, WeightSource};
use secateur_model_file::{ModelFile, Number, Value, WriteOptions, write_gguf};
use secateur_tensor::DType;
use secateur_test_support::{Biases, Gguf, Head, Meta, TinyLayer, TinyModel};

fn open(bytes: &[u8]) -> (tempfile::TempDir, Result<ModelFile, secateur_model_file::ModelFileError>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let model = ModelFile::open(&path);
    (dir, model)
}

fn meta() -> impl Strategy<Value = Meta> {
    prop_oneof![
        any::<u32>().prop_map(Meta::U32),
        any::<i32>().prop_map(Meta::I32),
        any::<u64>().prop_map(Meta::U64),
        any::<f32>().prop_filter("NaN is not equal to itself", |value| !value.is_nan()).prop_map(Meta::F32),
        any::<bool>().prop_map(Meta::Bool),
        ".{0,40}".prop_map(Meta::Str),
        prop::collection::vec(any::<u32>(), 0..9).prop_map(Meta::U32s),
        prop::collection::vec(any::<i32>(), 0..9).prop_map(Meta::I32s),
        prop::collection::vec(".{0,12}", 0..9).prop_map(Meta::Strs),
    ]
}

fn same(meta: &Meta, value: &Value) -> bool {
    let int = |number: &Number| number.as_int();
    match (meta, value) {
        (Meta::U32(want), Value::Number(got)) => int(got) == Some(i128::from(*want)),
        (Meta::I32(want), Value::Number(got)) => int(got) == Some(i128::from(*want)),
        (Meta::U64(want), Value::Number(got)) => int(got) == Some(i128::from(*want)),
        (Meta::F32(want), Value::Number(got)) => got.as_float() == Some(f64::from(*want)),
        (Meta::Bool(want), Value::Number(got)) => got.as_bool() == Some(*want),
        (Meta::Str(want), Value::Text(got)) => want == got.as_str(),
        (Meta::U32s(want), Value::Numbers(got)) => {
            got.iter().map(|number| number.as_int()).eq(want.iter().map(|&want| Some(i128::from(want))))
        }
        (Meta::I32s(want), Value::Numbers(got)) => {
            got.iter().map(|number| number.as_int()).eq(want.iter().map(|&want| Some(i128::from(want))))
        }
        (Meta::Strs(want), Value::Strings(got)) => got.iter().eq(want.iter().map(String::as_str)),
        _ => false,
    }
}

fn layer() -> impl Strategy<Value = TinyLayer> {
    (0usize..3, 1usize..3, 0usize..3).prop_map(|(kv_heads, group, width)| TinyLayer {
        heads: kv_heads * group,
        kv_heads,
        intermediate_size: 32 * width,
    })
}

fn tiny() -> impl Strategy<Value = TinyModel> {
    let layers = prop::collection::vec(layer(), 1..4);
    let biases = prop_oneof![Just(Biases::None), Just(Biases::Qkv), Just(Biases::All)];
    let head = prop_oneof![Just(Head::Tied), Just(Head::Separate)];
    (layers, biases, head, any::<u64>()).prop_map(|(layers, biases, head, seed)| TinyModel {
        hidden_size: 32,
        head_dim: 16,
        layers,
        biases,
        head,
        seed,
        ..TinyModel::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_after_the_magic_are_survived(tail in prop::collection::vec(any::<u8>(), 0..400)) {
        for version in [2u32, 3] {
            let bytes = [b"GGUF".as_slice(), &version.to_le_bytes(), &tail].concat();
            prop_assert!(open(&bytes).1.is_err());
        }
    }

    #[test]
    fn any_changed_bytes_are_survived(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let gguf = TinyModel { hidden_size: 32, ..TinyModel::with_layers(1) }.gguf();
        let header = gguf.header_bytes().len();
        let mut bytes = gguf.to_bytes();
        for (index, byte) in changes {
            bytes[index.index(header)] = byte;
        }
        let (_dir, model) = open(&bytes);
        if let Ok(model) = model {
            let norm = model.require(WeightId::global(WeightRole::FinalNorm)).unwrap();
            prop_assert_eq!(norm.to_f32().len(), model.config().hidden_size);
            let _ = model.vocab();
        }
    }

    #[test]
    fn any_metadata_reads_back(pairs in prop::collection::btree_map("[a-z.]{1,20}", meta(), 0..12)) {
        let mut gguf = TinyModel { hidden_size: 32, ..TinyModel::with_layers(1) }.gguf();
        for (key, value) in &pairs {
            gguf.push(format!("extra.{key}"), value.clone());
        }
        let (_dir, model) = open(&gguf.to_bytes());
        let model = model.unwrap();
        let got: Vec<_> = model.metadata().iter().collect();
        prop_assert_eq!(got.len(), gguf.metadata.len());
        for ((key, value), (want_key, want)) in got.into_iter().zip(&gguf.metadata) {
            prop_assert_eq!(key, want_key);
            prop_assert!(same(want, value), "{}: {:?} is not {:?}", key, value, want);
        }
    }

    #[test]
    fn any_model_survives_a_round_trip(tiny in tiny()) {
        let gguf: Gguf = tiny.gguf();
        let has_attention = tiny.layers.iter().any(|layer| 0 < layer.heads);
        let (dir, model) = open(&gguf.to_bytes());
        // Without a head count in its first layer a file must name the head size: ours do.
        let model = model.unwrap();
        let path = dir.path().join("out.gguf");
        let result = write_gguf(&path, model.metadata(), &model, &WriteOptions::default());
        if !has_attention {
            prop_assert!(result.is_err());
            return Ok(());
        }
        let written = result.unwrap();
        let back = ModelFile::open(&path).unwrap();
        let kept: Vec<usize> = (0..tiny.layers.len())
            .filter(|&idx| 0 < tiny.layers[idx].heads + tiny.layers[idx].intermediate_size)
            .collect();
        prop_assert_eq!(written.n_layers, kept.len());
        for (new_idx, old_idx) in kept.into_iter().enumerate() {
            for role in WeightRole::LAYER_MATRICES {
                let old = model.weight(WeightId::layer(old_idx, role)).unwrap();
                let new = back.weight(WeightId::layer(new_idx, role)).unwrap();
                match (old, new) {
                    (Some(old), Some(new)) => prop_assert_eq!(old.data(), new.data()),
                    (None, Some(new)) => {
                        prop_assert_eq!(new.dtype(), DType::F16);
                        prop_assert!(new.data().iter().all(|byte| *byte == 0));
                    }
                    (None, None) => {}
                    (Some(_), None) => prop_assert!(false, "layer {old_idx} lost {role:?}"),
                }
            }
        }
    }
}
