//! Several pruning methods side by side: the same model, ratio, calibration and evaluation.

use super::eval::{EvalProgress, EvalRequest, eval_text};
use super::prune::{PruneFileRequest, prune_to_file};
use super::run::RunOptions;
use super::tasks::{TasksRequest, eval_tasks};
use crate::ServiceError;
use crate::api::ProgressView;
use crate::convert::{invalid, io_error};
use crate::opened::OpenModel;
use crate::pruning::{PruneSettings, check_method};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// What to compare, and on what.
#[derive(Clone, Debug)]
pub struct CompareRequest {
    /// Methods, in the order of the rows.
    pub methods: Vec<String>,
    /// How each of them prunes; its method is replaced.
    pub settings: PruneSettings,
    /// Texts for perplexity.
    pub texts: Vec<PathBuf>,
    /// Tokens of a window.
    pub seq_len: usize,
    /// Tokens used of each text.
    pub max_tokens: Option<usize>,
    /// Files of multiple-choice tasks.
    pub tasks: Vec<PathBuf>,
    /// Items used of each file.
    pub max_items: Option<usize>,
    /// Folder for the pruned models and their pages, which stay there. A rerun takes up what it finds unfinished.
    pub out_dir: PathBuf,
    /// How models are run.
    pub run: RunOptions,
}

/// Result on one text.
#[derive(Clone, Debug, Serialize)]
pub struct TextScore {
    /// Name of the file.
    pub text: String,
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Tokens scored.
    pub tokens: usize,
}

/// Result on one file of tasks.
#[derive(Clone, Debug, Serialize)]
pub struct TaskScore {
    /// Name of the file.
    pub tasks: String,
    /// Accuracy.
    pub acc: f64,
    /// Its standard error.
    pub acc_stderr: f64,
    /// Accuracy by loss per byte.
    pub acc_norm: f64,
    /// Its standard error.
    pub acc_norm_stderr: f64,
}

/// One model of the comparison.
#[derive(Clone, Debug, Serialize)]
pub struct CompareRow {
    /// Method; `base` is the untouched model.
    pub method: String,
    /// Share of decoder-layer parameters removed.
    pub ratio_reached: f64,
    /// Size of the file.
    pub bytes: u64,
    /// Loss on held-out calibration tokens, nats; absent for the base model.
    pub held_out_loss: Option<f64>,
    /// Perplexities, one for each text.
    pub texts: Vec<TextScore>,
    /// Accuracies, one for each file of tasks.
    pub tasks: Vec<TaskScore>,
    /// Seconds the pruning took.
    pub prune_seconds: f64,
}

/// A comparison.
#[derive(Clone, Debug, Serialize)]
pub struct CompareReport {
    /// The base model.
    pub model: PathBuf,
    /// Share asked for.
    pub ratio: f64,
    /// Calibration tokens of every method.
    pub calibration_tokens: usize,
    /// Rows: the base model, then the methods.
    pub rows: Vec<CompareRow>,
}

/// What a comparison is doing.
#[derive(Clone, Debug)]
pub enum CompareProgress<'a> {
    /// A method prunes.
    Prune(&'a ProgressView),
    /// A model is evaluated on a file.
    Eval(&'a str, EvalProgress),
}

/// Prunes by every method and evaluates base and results alike.
/// # Errors
/// Those of [`prune_to_file`] and of the evaluations; [`ServiceError::Invalid`] for a comparison without methods.
pub fn compare(
    model: &OpenModel,
    request: &CompareRequest,
    progress: &mut dyn FnMut(&str, CompareProgress<'_>),
    cancel: &AtomicBool,
) -> Result<CompareReport, ServiceError> {
    let Some(ratio) = request.settings.plan.ratio else {
        return Err(invalid(
            "ratio",
            "a comparison needs --ratio, so that all methods remove the same share",
        ));
    };
    if request.methods.is_empty() {
        return Err(invalid("methods", "name at least one method"));
    }
    request.methods.iter().try_for_each(|method| check_method(method))?;
    std::fs::create_dir_all(&request.out_dir).map_err(|error| io_error(&request.out_dir, error))?;
    let mut rows = vec![evaluate(model, "base", request, progress, cancel)?];
    for method in &request.methods {
        let out = request.out_dir.join(format!("{method}.gguf"));
        let mut settings = request.settings.clone();
        settings.method.clone_from(method);
        let report = Some(request.out_dir.join(format!("{method}.html")));
        let prune = PruneFileRequest { out: out.clone(), settings, run: request.run.clone(), report };
        let mut show = |view: ProgressView| progress(method, CompareProgress::Prune(&view));
        let pruned = prune_to_file(model.clone(), &prune, &mut show, cancel)?;
        let result = OpenModel::open(&out)?;
        let mut row = evaluate(&result, method, request, progress, cancel)?;
        row.ratio_reached = pruned.ratio_reached;
        row.held_out_loss = Some(pruned.held_out_loss_after);
        row.prune_seconds = pruned.seconds_total;
        rows.push(row);
    }
    Ok(CompareReport {
        model: model.file().path().to_owned(),
        ratio,
        calibration_tokens: request.settings.calibration.fit_tokens()?,
        rows,
    })
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn evaluate(
    model: &OpenModel,
    method: &str,
    request: &CompareRequest,
    progress: &mut dyn FnMut(&str, CompareProgress<'_>),
    cancel: &AtomicBool,
) -> Result<CompareRow, ServiceError> {
    let mut row = CompareRow {
        method: method.to_owned(),
        ratio_reached: 0.0,
        bytes: model.file().file_bytes(),
        held_out_loss: None,
        texts: Vec::new(),
        tasks: Vec::new(),
        prune_seconds: 0.0,
    };
    for text in &request.texts {
        let file = name(text);
        let eval = EvalRequest {
            text: text.clone(),
            seq_len: request.seq_len,
            max_tokens: request.max_tokens,
            base: None,
            run: request.run.clone(),
        };
        let mut show = |at| progress(method, CompareProgress::Eval(&file, at));
        let report = eval_text(model, &eval, &mut show, cancel)?;
        row.texts.push(TextScore { text: file, perplexity: report.perplexity, tokens: report.tokens });
    }
    for tasks in &request.tasks {
        let file = name(tasks);
        let eval =
            TasksRequest { tasks: tasks.clone(), max_items: request.max_items, run: request.run.clone() };
        let mut show = |at| progress(method, CompareProgress::Eval(&file, at));
        let report = eval_tasks(model, &eval, &mut show, cancel)?;
        row.tasks.push(TaskScore {
            tasks: file,
            acc: report.acc,
            acc_stderr: report.acc_stderr,
            acc_norm: report.acc_norm,
            acc_norm_stderr: report.acc_norm_stderr,
        });
    }
    Ok(row)
}
