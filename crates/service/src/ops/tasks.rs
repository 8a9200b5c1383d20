//! Multiple-choice tasks: the model chooses the ending it finds likeliest.
//!
//! A prompt that starts with `Question:` is followed by `\nAnswer: ` and the choice (ARC, PIQA), any other by a
//! space and the choice (OpenBookQA). `acc` compares summed log probabilities of the endings' tokens, `acc_norm`
//! the same divided by the bytes of the choice. Query and ending are tokenised together, so that a token that
//! reaches across belongs to the ending.

use super::eval::EvalProgress;
use super::run::{CacheNeed, RunOptions, engine_within};
use crate::ServiceError;
use crate::budget::resident_bytes;
use crate::calibration::read_text;
use crate::convert::{data_error, invalid, text_error};
use crate::opened::OpenModel;
use secateur_engine::{MAX_EACH, Precision, Session};
use secateur_generate::token_logprobs;
use secateur_model::{KvDType, WeightSource};
use secateur_tokenizer::{AddSpecial, Tokenizer};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Most bytes of a file of items.
const MAX_TASKS_BYTES: usize = 256 << 20;
/// Most choices of an item.
const MAX_CHOICES: usize = 64;

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct TasksRequest {
    /// JSON lines with `query`, `choices` and `gold`.
    pub tasks: PathBuf,
    /// Items used, from the start.
    pub max_items: Option<usize>,
    /// How the model is run.
    pub run: RunOptions,
}

/// Accuracy and how it was had.
#[derive(Clone, Debug, Serialize)]
pub struct TasksReport {
    /// Share of items whose likeliest ending is the right one.
    pub acc: f64,
    /// Its standard error.
    pub acc_stderr: f64,
    /// The same with log probabilities divided by the bytes of the choice.
    pub acc_norm: f64,
    /// Its standard error.
    pub acc_norm_stderr: f64,
    /// Items.
    pub items: usize,
    /// Share that guessing would get.
    pub chance: f64,
    /// Seconds it took.
    pub seconds: f64,
    /// Peak resident memory of the process.
    pub rss_peak_bytes: u64,
}

#[derive(Deserialize)]
struct Item {
    query: String,
    choices: Vec<String>,
    gold: usize,
}

/// An item as tokens.
struct Encoded {
    /// Query and ending, one for each choice.
    choices: Vec<Vec<u32>>,
    /// Bytes of each choice.
    bytes: Vec<usize>,
    /// Tokens of the query alone.
    query: Vec<u32>,
    gold: usize,
}

/// Measures the accuracy on a file of multiple-choice items.
/// # Errors
/// [`ServiceError::Data`] naming the line; [`ServiceError::Refused`] when it does not fit the budget;
/// [`ServiceError::Cancelled`].
pub fn eval_tasks(
    model: &OpenModel,
    request: &TasksRequest,
    progress: &mut dyn FnMut(EvalProgress),
    cancel: &AtomicBool,
) -> Result<TasksReport, ServiceError> {
    let items = read_items(request)?;
    let encoded: Vec<Encoded> =
        items.iter().map(|item| encode(model.tokenizer(), item)).collect::<Result<_, _>>()?;
    let longest = encoded.iter().flat_map(|item| item.choices.iter().map(Vec::len)).max().unwrap_or(1);
    let max_context = model.file().config().max_position_embeddings;
    if max_context < longest {
        let message = format!("an item has {longest} tokens, the model was trained for {max_context}");
        return Err(invalid("tasks", message));
    }
    let need = CacheNeed {
        context_len: longest,
        kv_dtype: request.run.kv_dtype(KvDType::F32)?,
        smaller_by: "file of tasks",
        precision: Precision::F32,
        extra_bytes: 0,
    };
    let engine = engine_within(model, &request.run, &need)?;
    let mut session = engine.session(longest, need.kv_dtype)?;
    let started = Instant::now();
    let (mut right, mut right_norm, mut chance) = (0, 0, 0.0);
    for (idx, item) in encoded.iter().enumerate() {
        let scores = score_item(&mut session, item, cancel)?;
        let norm: Vec<f64> = scores.iter().zip(&item.bytes).map(|(s, &b)| s / b.max(1) as f64).collect();
        right += usize::from(best(&scores) == item.gold);
        right_norm += usize::from(best(&norm) == item.gold);
        chance += 1.0 / item.choices.len() as f64;
        let so_far = right as f64 / (idx + 1) as f64;
        progress(EvalProgress { done: idx + 1, total: encoded.len(), so_far });
    }
    let n = encoded.len() as f64;
    let stderr = |p: f64| (p * (1.0 - p) / n).sqrt();
    let (acc, acc_norm) = (f64::from(right as u32) / n, f64::from(right_norm as u32) / n);
    Ok(TasksReport {
        acc,
        acc_stderr: stderr(acc),
        acc_norm,
        acc_norm_stderr: stderr(acc_norm),
        items: encoded.len(),
        chance: chance / n,
        seconds: started.elapsed().as_secs_f64(),
        rss_peak_bytes: resident_bytes().1,
    })
}

fn read_items(request: &TasksRequest) -> Result<Vec<Item>, ServiceError> {
    let path = &request.tasks;
    let part = read_text(path, MAX_TASKS_BYTES)?;
    let max_items = request.max_items.unwrap_or(usize::MAX);
    let mut items = Vec::new();
    for (number, line) in part.text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        if max_items <= items.len() {
            break;
        }
        let wrong = |message: String| ServiceError::Data {
            path: path.clone(),
            message: format!("line {}: {message}", number + 1),
        };
        let item: Item = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        if !(2..=MAX_CHOICES).contains(&item.choices.len()) || item.choices.len() <= item.gold {
            return Err(wrong(format!(
                "2 to {MAX_CHOICES} choices are needed, and `gold` below their number"
            )));
        }
        items.push(item);
    }
    if items.is_empty() {
        let error = std::io::Error::other("holds no items; give JSON lines with query, choices and gold");
        return Err(data_error(path, &error));
    }
    Ok(items)
}

/// What stands between query and choice.
fn separator(query: &str) -> &'static str {
    if query.starts_with("Question:") { "\nAnswer: " } else { " " }
}

fn encode(tokenizer: &Tokenizer, item: &Item) -> Result<Encoded, ServiceError> {
    let tokens = |text: &str| {
        let encoded = tokenizer.encode(text, AddSpecial::Yes);
        encoded.map_err(|error| text_error("tasks", &error))
    };
    let lead = format!("{}{}", item.query, separator(&item.query));
    // A space at the end belongs to the first word of the ending.
    let query = tokens(lead.trim_end_matches(' '))?;
    let choices =
        item.choices.iter().map(|choice| tokens(&format!("{lead}{choice}"))).collect::<Result<_, _>>()?;
    let bytes = item.choices.iter().map(String::len).collect();
    Ok(Encoded { choices, bytes, query, gold: item.gold })
}

/// Tokens that all of an item's texts begin with, fewer than any of them has.
fn common_len(item: &Encoded) -> usize {
    let same = |tokens: &Vec<u32>| item.query.iter().zip(tokens).take_while(|(a, b)| a == b).count();
    let shortest = |tokens: &Vec<u32>| same(tokens).min(tokens.len().saturating_sub(1));
    item.choices.iter().map(shortest).min().unwrap_or(0)
}

/// Summed log probability of each ending.
fn score_item(session: &mut Session, item: &Encoded, cancel: &AtomicBool) -> Result<Vec<f64>, ServiceError> {
    let cancelled = || cancel.load(Ordering::Relaxed);
    let common = common_len(item);
    if common == 0 {
        return Err(invalid("tasks", "an item has no tokens before its choices"));
    }
    session.truncate(0);
    let first = session.extend(&item.query[..common], &cancelled)?.to_vec();
    let mut scores = Vec::with_capacity(item.choices.len());
    for choice in &item.choices {
        session.truncate(common);
        let mut sum = logprob(&first, choice[common]);
        let (read, scored) = (&choice[common..choice.len() - 1], &choice[common + 1..]);
        for (read, scored) in read.chunks(MAX_EACH).zip(scored.chunks(MAX_EACH)) {
            let logits = session.extend_each(read, &cancelled)?;
            let rows = logits.chunks_exact(logits.len() / read.len());
            sum += rows.zip(scored).map(|(row, &token)| logprob(row, token)).sum::<f64>();
        }
        scores.push(sum);
    }
    Ok(scores)
}

fn logprob(logits: &[f32], token: u32) -> f64 {
    f64::from(token_logprobs(logits, token, 0).chosen.logprob)
}

/// Index of the largest score; the first of equals.
fn best(scores: &[f64]) -> usize {
    let mut best = 0;
    for (idx, score) in scores.iter().enumerate() {
        if scores[best] < *score {
            best = idx;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_beginning_never_covers_an_ending() {
        let item = |query: &[u32], choices: &[&[u32]]| Encoded {
            query: query.to_vec(),
            choices: choices.iter().map(|tokens| tokens.to_vec()).collect(),
            bytes: vec![1; choices.len()],
            gold: 0,
        };
        let cases: [(Encoded, usize); 4] = [
            (item(&[1, 2], &[&[1, 2, 3], &[1, 2, 4, 5]]), 2),
            (item(&[1, 2], &[&[1, 9, 3], &[1, 2, 4]]), 1),
            (item(&[1, 2], &[&[1, 2], &[1, 2, 4]]), 1),
            (item(&[1], &[&[1], &[1, 2]]), 0),
        ];
        for (item, want) in cases {
            assert_eq!(common_len(&item), want, "{:?}", item.choices);
        }
    }

    #[test]
    fn separators_follow_the_task() {
        assert_eq!(separator("Question: why?"), "\nAnswer: ");
        assert_eq!(separator("Predators eat"), " ");
        assert_eq!(best(&[-3.0, -1.0, -1.0]), 1);
    }
}
