//! Models that are folders: pruned, exported and read by their tokenizers as GGUF files are.
#![expect(clippy::unwrap_used, reason = "test code")]

use secateur_service::ops::{
    EvalRequest, PruneFileReport, PruneFileRequest, RunOptions, eval_text, export, inspect, prune_to_file,
};
use secateur_service::{Calibration, OpenModel, PlanSettings, PruneSettings, ServiceError};
use secateur_test_support::{Checkpoint, Style, TinyLayer, TinyModel};
use secateur_tokenizer::{AddSpecial, Tokenizer};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

fn run_options() -> RunOptions {
    RunOptions { memory_budget: "1GiB".to_owned(), n_threads: Some(2), ..RunOptions::default() }
}

fn prune(model: &Path, out: &Path) -> PruneFileReport {
    let settings = PruneSettings {
        plan: PlanSettings { ratio: Some(0.3), ..PlanSettings::default() },
        calibration: Calibration { tokens: Some(2048), ..Calibration::default() },
        ..PruneSettings::default()
    };
    let request = PruneFileRequest { out: out.to_owned(), settings, run: run_options(), report: None };
    prune_to_file(OpenModel::open(model).unwrap(), &request, &mut |_| {}, &AtomicBool::new(false)).unwrap()
}

fn perplexity(model: &Path, text: &Path) -> f64 {
    let request = EvalRequest {
        text: text.to_owned(),
        seq_len: 128,
        max_tokens: Some(512),
        base: None,
        run: run_options(),
    };
    let model = OpenModel::open(model).unwrap();
    eval_text(&model, &request, &mut |_| {}, &AtomicBool::new(false)).unwrap().perplexity
}

/// The model as a GGUF file and as folders.
fn forms(tiny: &TinyModel, dir: &Path) -> Vec<PathBuf> {
    let folder = |name: &str| {
        let folder = dir.join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    };
    let (shards, onnx, data) = (folder("Tiny-1.5B"), folder("onnx-inline"), folder("onnx-data"));
    let checkpoint = tiny.checkpoint();
    checkpoint.write_shards(&shards, 2);
    checkpoint.write_onnx(&onnx, Style::Optimum);
    checkpoint.write_onnx_with_data(&data, Style::Genai);
    vec![tiny.write_to(dir), shards, onnx, data]
}

#[test]
fn every_form_is_pruned_to_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let layer = TinyLayer { heads: 4, kv_heads: 2, intermediate_size: 128 };
    let forms = forms(&TinyModel { layers: vec![layer; 3], ..TinyModel::default() }, dir.path());
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "The men and the women of the town went on to see it again. ".repeat(30)).unwrap();
    let mut results = Vec::new();
    for (number, form) in forms.iter().enumerate() {
        let base = perplexity(form, &text);
        let out = dir.path().join(format!("pruned-{number}.gguf"));
        let report = prune(form, &out);
        assert!((report.ratio_reached - 0.3).abs() < 0.05, "{}", report.ratio_reached);
        assert_eq!(inspect(&OpenModel::open(&out).unwrap()).unwrap().form, "gguf");
        results.push((report.widths, report.kv_heads, base, perplexity(&out, &text)));
    }
    let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-3;
    let (widths, kv_heads, base, pruned) = &results[0];
    for (other, form) in results.iter().zip(&forms) {
        assert_eq!((&other.0, &other.1), (widths, kv_heads), "{}", form.display());
        assert!(near(other.2, *base) && near(other.3, *pruned), "{}: {results:?}", form.display());
    }
    // Three files with the same bytes in other forms and folders are one input: so is their result.
    let again = prune(&forms[1].join("model.safetensors.index.json"), &dir.path().join("again.gguf"));
    let bytes = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert!(bytes("again.gguf") == bytes("pruned-1.gguf"));
    assert_eq!(again.widths, results[1].0);
}

#[test]
fn folders_have_names_and_are_exported() {
    let dir = tempfile::tempdir().unwrap();
    let forms = forms(&TinyModel::default(), dir.path());
    let model = OpenModel::open(&forms[1]).unwrap();
    assert_eq!(model.name(), "Tiny-1.5B");
    assert_eq!(OpenModel::open(&forms[1].join("model.safetensors.index.json")).unwrap().name(), "Tiny-1.5B");
    let out = dir.path().join("exported.gguf");
    for (dtype, name) in [("keep", "f32"), ("f16", "f16"), ("q8_0", "q8_0")] {
        let report = export(&model, &out, "gguf", dtype).unwrap();
        assert_eq!((report.form, report.output_architecture), ("safetensors", "llama"));
        let inspected = inspect(&OpenModel::open(&out).unwrap()).unwrap();
        assert!(inspected.dtypes.contains_key(name), "{dtype}: {:?}", inspected.dtypes);
        assert!(inspected.has_chat_template);
    }
    for (out, dtype, param) in [(dir.path(), "keep", "out"), (&out, "q9", "dtype"), (&out, "q6_k", "dtype")] {
        let result = export(&model, out, "gguf", dtype);
        assert!(
            matches!(&result, Err(ServiceError::Invalid { param: named, .. }) if named == param),
            "{result:?}"
        );
    }
    let folder = dir.path().join("again");
    let report = export(&model, &folder, "safetensors", "bf16").unwrap();
    assert_eq!((report.output_form, report.output_architecture), ("safetensors", "LlamaForCausalLM"));
    let again = OpenModel::open(&folder).unwrap();
    assert_eq!(inspect(&again).unwrap().digest, report.output_digest);
    assert!(inspect(&again).unwrap().dtypes.contains_key("bf16"));
    for (out, format, dtype, param) in [
        (folder.as_path(), "safetensors", "keep", "out"),
        (out.as_path(), "safetensors", "keep", "out"),
        (&dir.path().join("absent/x"), "safetensors", "keep", "out"),
        (&dir.path().join("x"), "pickle", "keep", "format"),
    ] {
        let result = export(&model, out, format, dtype);
        assert!(
            matches!(&result, Err(ServiceError::Invalid { param: named, .. }) if named == param),
            "{result:?}"
        );
    }
    let missing = OpenModel::open(&dir.path().join("nothing")).unwrap_err();
    assert!(matches!(missing, ServiceError::Io { .. }));
    let empty = tempfile::tempdir().unwrap();
    let error = OpenModel::open(empty.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("model.onnx"), "{error}");
}

/// Pieces that are joined, best first.
const PIECES: [&str; 25] = [
    "▁t",
    "he",
    "▁a",
    "in",
    "▁th",
    "▁the",
    "er",
    "on",
    "re",
    "▁s",
    "nd",
    "▁and",
    "at",
    "ou",
    "ing",
    "en",
    "▁b",
    "▁to",
    "it",
    "▁ing",
    "▁▁",
    "▁▁▁▁",
    "ther",
    "▁other",
    "▁o",
];

/// A tokenizer.json like those of the first Llama models: marked spaces, tokens for bytes, and for every way to make a
/// piece of two tokens a merge, in the order of the pieces.
fn sentence_piece(prepend: bool) -> Value {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(PIECES.map(str::to_owned));
    tokens.extend("▁abcdefghijklmnopqrstuvwxyzTH.,é".chars().map(String::from));
    let is_token = |text: &str| tokens.iter().any(|token| token == text);
    let mut merges = Vec::new();
    for piece in PIECES {
        let splits = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        merges.extend(splits.filter(|(l, r)| is_token(l) && is_token(r)).map(|(l, r)| json!([l, r])));
    }
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let special = |id: usize| {
        json!({"id": id, "content": tokens[id], "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false})
    };
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizers = match prepend {
        true => json!([{"type": "Prepend", "prepend": "▁"}, replace]),
        false => json!([replace]),
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": usize::from(prepend), "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges},
    })
}

fn with_tokenizer(tokenizer: &Value) -> Checkpoint {
    let mut checkpoint = TinyModel::with_layers(1).checkpoint();
    let rows = tokenizer["model"]["vocab"].as_object().unwrap().len();
    checkpoint.config["vocab_size"] = rows.into();
    let table = checkpoint.tensor("model.embed_tokens.weight");
    table.data.resize(table.data.len() / table.shape[0] * rows, 0);
    table.shape[0] = rows;
    checkpoint.tokenizer = tokenizer.clone();
    checkpoint.tokenizer_config = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"});
    checkpoint
}

#[test]
fn vocabularies_with_marked_spaces_give_the_tokens_that_tokenizer_json_gives() {
    let texts = [
        "The other and the nothing.",
        "  two  spaces, four    spaces",
        "",
        " ",
        "ünïcode é 漢字 \n\ttabs",
        "thethethe andand toto inging otherother",
        "a\u{0}b",
        "it at on in re er en he",
    ];
    for prepend in [true, false] {
        let json = sentence_piece(prepend);
        let dir = tempfile::tempdir().unwrap();
        with_tokenizer(&json).write_safetensors(dir.path());
        let model = OpenModel::open(dir.path()).unwrap();
        let theirs = Tokenizer::from_tokenizer_json(json.to_string().as_bytes(), None).unwrap();
        for text in texts {
            let want = theirs.encode(text, AddSpecial::Yes).unwrap();
            let got = model.tokenizer().encode(text, AddSpecial::Yes).unwrap();
            assert_eq!(got, want, "{text:?}, prepend {prepend}");
            assert_eq!(model.tokenizer().decode(&got).unwrap(), theirs.decode(&want).unwrap(), "{text:?}");
        }
    }
    // Rules that no scores could have made are refused: one is missing, or those of a piece stand apart.
    let mut missing = sentence_piece(true);
    missing["model"]["merges"].as_array_mut().unwrap().retain(|rule| rule[0] != "▁t" || rule[1] != "he");
    let mut apart = sentence_piece(true);
    let rules = apart["model"]["merges"].as_array_mut().unwrap();
    let at = rules.iter().position(|rule| rule[0] == "▁th" && rule[1] == "e").unwrap();
    let rule = rules.remove(at);
    rules.push(rule);
    for json in [missing, apart] {
        let dir = tempfile::tempdir().unwrap();
        with_tokenizer(&json).write_safetensors(dir.path());
        let error = OpenModel::open(dir.path()).map(|model| model.name()).unwrap_err().to_string();
        assert!(error.contains("SentencePiece"), "{error}");
    }
}
