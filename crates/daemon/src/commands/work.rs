//! Commands on one model: plan, prune, eval, generate, bench, export, inspect.

use super::show;
use crate::cli::{
    BenchCommand, CompareCommand, EvalCommand, ExportCommand, GenerateCommand, InspectCommand,
    OwnTextCommand, PlanCommand, PruneCommand,
};
use crate::failure::{Failure, INTERRUPTED, OK};
use crate::output;
use crate::progress::ProgressLine;
use crate::settings::Settings;
use crate::signals::cancel_flag;
use secateur_service::api::{GenerationParams, SamplingParams};
use secateur_service::ops::{
    self, BenchRequest, CompareProgress, CompareRequest, EvalRequest, GenerateOptions, OwnTextRequest,
    PromptKind, PruneFileRequest, TasksRequest,
};
use secateur_service::{IdleDisk, OpenModel, method_names, resolve_model};
use std::path::PathBuf;
use std::process::ExitCode;

fn model_path(model: &str, settings: &Settings) -> Result<PathBuf, Failure> {
    Ok(resolve_model(model, &settings.state_dir)?)
}

fn open(model: &str, settings: &Settings) -> Result<OpenModel, Failure> {
    Ok(OpenModel::open(&model_path(model, settings)?)?)
}

pub(super) fn plan(args: &PlanCommand, settings: &Settings, json: bool) -> Result<ExitCode, Failure> {
    let path = model_path(&args.model, settings)?;
    let report = ops::plan(&path, &settings.memory_budget, &settings.plan(args.ratio))?;
    output::report(&report, json, show::plan)?;
    Ok(ExitCode::from(OK))
}

pub(super) fn prune(args: &PruneCommand, settings: &Settings, json: bool) -> Result<ExitCode, Failure> {
    if args.format != "gguf" {
        return Err(Failure::usage(format!("--format `{}`: this version writes gguf", args.format)));
    }
    let _idle = step_back(args.job.nice);
    let model = open(&args.model, settings)?;
    let request = PruneFileRequest {
        out: args.out.clone(),
        settings: settings.prune(args.ratio),
        run: settings.run(),
        report: args.report.clone(),
    };
    let cancel = cancel_flag();
    let mut line = ProgressLine::new();
    let report = ops::prune_to_file(model, &request, &mut |view| line.prune(&view), &cancel)?;
    drop(line);
    output::report(&report, json, show::prune)?;
    Ok(ExitCode::from(OK))
}

/// Lets other programs go first, at the processors for as long as this process lives, at the disk for as long as the
/// result does: threads are as nice as the one that starts them.
fn step_back(by: u8) -> Option<IdleDisk> {
    if by == 0 {
        return None;
    }
    if let Err(error) = rustix::process::nice(i32::from(by)) {
        tracing::warn!(%error, "the job runs at the usual priority");
    }
    Some(IdleDisk::new())
}

pub(super) fn eval(args: &EvalCommand, settings: &Settings, json: bool) -> Result<ExitCode, Failure> {
    let model = open(&args.model, settings)?;
    let cancel = cancel_flag();
    let mut line = ProgressLine::new();
    match (&args.text, &args.tasks) {
        (Some(text), _) => {
            let request = EvalRequest {
                text: text.clone(),
                seq_len: args.seq_len,
                max_tokens: args.max_tokens,
                base: args.base.as_ref().map(|base| open(base, settings)).transpose()?,
                run: settings.run(),
            };
            let mut progress = |p: ops::EvalProgress| {
                line.count("window", p.done, p.total, &format!("perplexity {:.3}", p.so_far));
            };
            let report = ops::eval_text(&model, &request, &mut progress, &cancel)?;
            drop(line);
            output::report(&report, json, show::eval)?;
        }
        (None, Some(tasks)) => {
            let request =
                TasksRequest { tasks: tasks.clone(), max_items: args.max_items, run: settings.run() };
            let mut progress = |p: ops::EvalProgress| {
                line.count("items", p.done, p.total, &format!("acc {:.3}", p.so_far));
            };
            let report = ops::eval_tasks(&model, &request, &mut progress, &cancel)?;
            drop(line);
            output::report(&report, json, show::tasks)?;
        }
        (None, None) => return Err(Failure::usage("give --text or --tasks")),
    }
    Ok(ExitCode::from(OK))
}

pub(super) fn compare(args: &CompareCommand, settings: &Settings, json: bool) -> Result<ExitCode, Failure> {
    let _idle = step_back(args.job.nice);
    let model = open(&args.model, settings)?;
    let methods = if args.methods.is_empty() {
        method_names().into_iter().map(str::to_owned).collect()
    } else {
        args.methods.clone()
    };
    let request = CompareRequest {
        methods,
        settings: settings.prune(Some(args.ratio)),
        texts: args.text.clone(),
        seq_len: args.seq_len,
        max_tokens: args.max_tokens,
        tasks: args.tasks.clone(),
        max_items: args.max_items,
        out_dir: args.out_dir.clone(),
        run: settings.run(),
    };
    let cancel = cancel_flag();
    let mut line = ProgressLine::new();
    let mut show = |method: &str, at: CompareProgress<'_>| match at {
        CompareProgress::Prune(view) => line.prune(view),
        CompareProgress::Eval(file, at) => {
            line.count(&format!("{method}: {file}"), at.done, at.total, &format!("{:.3}", at.so_far));
        }
    };
    let report = ops::compare(&model, &request, &mut show, &cancel)?;
    drop(line);
    output::report(&report, json, show::compare)?;
    Ok(ExitCode::from(OK))
}

pub(super) fn generate(args: &GenerateCommand, settings: &Settings, json: bool) -> Result<ExitCode, Failure> {
    let model = open(&args.model, settings)?;
    let sampling = SamplingParams {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed.unwrap_or_else(SamplingParams::random_seed),
        ..SamplingParams::default()
    };
    let options = GenerateOptions {
        prompt: args.prompt.clone(),
        kind: if args.chat { PromptKind::Chat } else { PromptKind::Text },
        params: GenerationParams {
            max_tokens: Some(args.max_tokens),
            sampling,
            stop: args.stop.clone(),
            ..GenerationParams::default()
        },
        draft: args.draft.as_deref().map(|draft| open(draft, settings)).transpose()?,
        context_len: args.context_len,
        run: settings.run(),
    };
    let cancel = cancel_flag();
    let mut on_text = |text: &str| {
        if !json {
            output::stream(text);
        }
    };
    let report = ops::generate(&model, &options, &mut on_text, &cancel)?;
    if json {
        output::report(&report, json, |_| String::new())?;
    } else {
        output::print("")?;
        output::note(&show::generated(&report));
    }
    let cancelled = report.finish_reason == "cancelled";
    Ok(ExitCode::from(if cancelled { INTERRUPTED } else { OK }))
}

pub(super) fn own_text(args: &OwnTextCommand, settings: &Settings, json: bool) -> Result<ExitCode, Failure> {
    let model = open(&args.model, settings)?;
    let request =
        OwnTextRequest { out: args.out.clone(), tokens: args.tokens, seed: args.seed, run: settings.run() };
    let cancel = cancel_flag();
    let mut line = ProgressLine::new();
    let mut progress = |done, total| line.count("tokens", done, total, "");
    let report = ops::own_text(&model, &request, &mut progress, &cancel)?;
    drop(line);
    output::report(&report, json, show::own_text)?;
    Ok(ExitCode::from(OK))
}

pub(super) fn bench(args: &BenchCommand, settings: &Settings, json: bool) -> Result<ExitCode, Failure> {
    let model = open(&args.model, settings)?;
    let request = BenchRequest {
        prompt_tokens: args.prompt_tokens,
        generate_tokens: args.generate_tokens,
        repeats: args.repeats,
        depths: args.depths.clone(),
        run: settings.run(),
    };
    let cancel = cancel_flag();
    let mut line = ProgressLine::new();
    let report =
        ops::bench(&model, &request, &mut |done, total| line.count("run", done, total, ""), &cancel)?;
    drop(line);
    output::report(&report, json, show::bench)?;
    Ok(ExitCode::from(OK))
}

pub(super) fn export(args: &ExportCommand, settings: &Settings, json: bool) -> Result<ExitCode, Failure> {
    let report = ops::export(&open(&args.model, settings)?, &args.out, &args.format, &args.dtype)?;
    output::report(&report, json, show::export)?;
    Ok(ExitCode::from(OK))
}

pub(super) fn inspect(args: &InspectCommand, settings: &Settings, json: bool) -> Result<ExitCode, Failure> {
    let report = ops::inspect(&open(&args.model, settings)?)?;
    output::report(&report, json, show::inspect)?;
    Ok(ExitCode::from(OK))
}
