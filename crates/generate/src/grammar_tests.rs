use super::*;
use crate::{Sampler, SamplingParams};
use secateur_test_support::TinyVocab;
use secateur_tokenizer::{GgufVocab, SpecialIds};

fn tokenizer() -> (Tokenizer, usize) {
    let vocab = TinyVocab::default();
    let tokenizer = Tokenizer::from_gguf(&GgufVocab {
        model: "gpt2",
        pre: Some("smollm"),
        tokens: &vocab.tokens,
        token_types: &vocab.token_types,
        scores: &[],
        merges: &vocab.merges,
        special_ids: SpecialIds {
            bos: Some(vocab.bos_id),
            eos: Some(vocab.eos_id),
            eot: None,
            eom: None,
            unk: Some(vocab.endoftext_id),
            pad: None,
        },
        add_bos: None,
        add_eos: None,
        add_space_prefix: None,
        chat_template: None,
    });
    (tokenizer.unwrap(), vocab.tokens.len())
}

/// What a model that knows nothing writes under a grammar, and whether it came to the end.
fn babble(grammar: &Grammar, seed: u64) -> (String, bool) {
    let (tokenizer, vocab_size) = tokenizer();
    let factory = GrammarFactory::new(&tokenizer, vocab_size).unwrap();
    let mut matcher = factory.matcher(grammar).unwrap();
    let params = SamplingParams { temperature: 1.0, seed, ..SamplingParams::default() };
    let mut sampler = Sampler::new(params, vocab_size).unwrap();
    // Ends and quotes are likely, or strings would hardly end.
    let mut logits = vec![0.0; vocab_size];
    for likely in ["\"", "}", "]", "0", ","] {
        for token in tokenizer.encode(likely, secateur_tokenizer::AddSpecial::No).unwrap() {
            logits[token as usize] = 5.0;
        }
    }
    for stop in tokenizer.stop_ids() {
        logits[*stop as usize] = 5.0;
    }
    let mut tokens = Vec::new();
    for _ in 0..400 {
        let token = sampler.sample_among(&logits, &matcher.allowed().unwrap()).unwrap();
        if tokenizer.is_stop(token) {
            return (tokenizer.decode(&tokens).unwrap(), true);
        }
        matcher.accept(token).unwrap();
        tokens.push(token);
        if matcher.is_over() {
            return (tokenizer.decode(&tokens).unwrap(), true);
        }
    }
    (tokenizer.decode(&tokens).unwrap(), false)
}

#[test]
fn babble_becomes_json() {
    let mut n_over = 0;
    for seed in 0..20 {
        let (text, is_over) = babble(&Grammar::JsonObject, seed);
        if is_over {
            n_over += 1;
            assert!(serde_json::from_str::<Value>(&text).is_ok_and(|value| value.is_object()), "{text}");
        }
    }
    assert!(5 < n_over, "{n_over} of 20 came to an end");
}

#[test]
fn babble_satisfies_a_schema() {
    let schema = json!({
        "type": "object",
        "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 30}},
        "required": ["kind", "age"],
        "additionalProperties": false,
    });
    for seed in 0..10 {
        let (text, is_over) = babble(&Grammar::JsonSchema(schema.clone()), seed);
        assert!(is_over, "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(["cat", "dog"].contains(&value["kind"].as_str().unwrap()), "{text}");
        assert!((0..=30).contains(&value["age"].as_i64().unwrap()), "{text}");
        assert_eq!(value.as_object().unwrap().len(), 2, "{text}");
    }
}

#[test]
fn babble_follows_lark_and_expressions() {
    let (text, is_over) = babble(&Grammar::Lark("start: \"yes\" | \"no\"".into()), 3);
    assert!(is_over && ["yes", "no"].contains(&text.as_str()), "{text}");
    let (text, is_over) = babble(&Grammar::Regex("[0-9]{3}-[a-f]{2}".into()), 4);
    assert!(is_over && text.len() == 6 && text.as_bytes()[3] == b'-', "{text}");
}

#[test]
fn bad_grammars_are_errors() {
    let (tokenizer, vocab_size) = tokenizer();
    let factory = GrammarFactory::new(&tokenizer, vocab_size).unwrap();
    let mut deep = json!({"type": "string"});
    for _ in 0..60 {
        deep = json!({"type": "object", "properties": {"x": deep}, "required": ["x"]});
    }
    let huge: Vec<String> = (0..60_000).map(|idx| format!("v{idx}")).collect();
    for grammar in [
        Grammar::JsonSchema(json!(true)),
        Grammar::JsonSchema(json!({"type": "no such type"})),
        Grammar::JsonSchema(json!({"$ref": "https://example.org/schema.json"})),
        Grammar::JsonSchema(json!({"type": "string", "pattern": "(unclosed"})),
        Grammar::Lark("start: nothing".into()),
        Grammar::Lark(String::new()),
        Grammar::Regex("(unclosed".into()),
    ] {
        let error = factory.matcher(&grammar).err();
        assert!(error.as_ref().is_some_and(|error| !error.message.is_empty()), "{grammar:?}: {error:?}");
    }
    // Large but harmless ones end in a matcher or an error, not in a crash.
    let _ = factory.matcher(&Grammar::Regex("(a{1,1000}){1,1000}".into()));
    let _ = factory.matcher(&Grammar::JsonSchema(deep));
    let _ = factory.matcher(&Grammar::JsonSchema(json!({"enum": huge})));
}

#[test]
fn nothing_allowed_is_an_error_of_its_own() {
    let (tokenizer, vocab_size) = tokenizer();
    let factory = GrammarFactory::new(&tokenizer, vocab_size).unwrap();
    let mut matcher = factory.matcher(&Grammar::Lark("start: \"q\"".into())).unwrap();
    let q = tokenizer.encode("q", secateur_tokenizer::AddSpecial::No).unwrap()[0];
    let params = SamplingParams { logit_bias: vec![(q, -100.0)], ..SamplingParams::default() };
    let mut sampler = Sampler::new(params, vocab_size).unwrap();
    let logits = vec![0.0; vocab_size];
    let error = sampler.sample_among(&logits, &matcher.allowed().unwrap()).unwrap_err();
    assert!(matches!(error, GenerateError::NothingAllowed), "{error}");
}
