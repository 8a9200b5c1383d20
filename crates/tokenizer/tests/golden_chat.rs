//! Chat templates against Python's jinja2; see the script beside the golden.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use secateur_tokenizer::{
    ChatMessage, ChatOptions, ChatTemplateErrorKind, CivilTime, GenerationPrompt, GgufVocab, SpecialIds,
    Tokenizer, TokenizerError,
};
use serde_json::Value;

const NOW: CivilTime = CivilTime { year: 2024, month: 2, day: 29, hour: 12, minute: 34, second: 56 };

fn tokenizer() -> Tokenizer {
    let tokens = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "a"];
    Tokenizer::from_gguf(&GgufVocab {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens: &tokens,
        token_types: &[3, 3, 3, 3, 1],
        special_ids: SpecialIds { bos: Some(0), eos: Some(1), ..SpecialIds::default() },
        ..GgufVocab::default()
    })
    .unwrap()
}

fn messages(chat: &Value) -> Vec<ChatMessage> {
    let field = |message: &Value, name: &str| message[name].as_str().unwrap().to_owned();
    let message = |message: &Value| {
        let mut extra = message.as_object().unwrap().clone();
        extra.remove("role");
        extra.remove("content");
        ChatMessage { role: field(message, "role"), content: field(message, "content"), extra }
    };
    chat.as_array().unwrap().iter().map(message).collect()
}

fn render(golden: &Value, case: &Value, template: &str) -> Result<String, TokenizerError> {
    let setup = &golden["setups"][case["setup"].as_u64().unwrap() as usize];
    let mut variables = setup.as_object().unwrap().clone();
    let adds_prompt = variables.remove("add_generation_prompt").unwrap() == true;
    let tools = variables.remove("tools").unwrap();
    let options = ChatOptions {
        generation_prompt: if adds_prompt { GenerationPrompt::Add } else { GenerationPrompt::Omit },
        tools: (!tools.is_null()).then_some(&tools),
        variables: Some(&variables),
        now: Some(NOW),
        template: Some(template),
    };
    let chat = messages(&golden["chats"][case["chat"].as_str().unwrap()]);
    tokenizer().apply_chat_template(&chat, &options).map(|prompt| prompt.into_string())
}

#[test]
fn templates_render_as_in_python() {
    let golden: Value = serde_json::from_str(include_str!("goldens/chat.json")).unwrap();
    let mut failures = Vec::new();
    let mut n_raised = 0;
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 72);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let got = render(&golden, case, golden["templates"][name].as_str().unwrap());
        let is_right = match (&got, case["text"].as_str()) {
            (Ok(text), Some(want)) => text == want,
            (Err(TokenizerError::ChatTemplate { message, kind: ChatTemplateErrorKind::Raised }), None) => {
                n_raised += 1;
                message == case["error"].as_str().unwrap()
            }
            _ => false,
        };
        if !is_right {
            failures
                .push(format!("{name} {} {}:\nwant {case:#}\ngot  {got:#?}", case["chat"], case["setup"]));
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n\n"));
    assert!(n_raised > 0);
}
