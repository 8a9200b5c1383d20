//! Commands on the host, the store and the configuration.

use super::show;
use crate::cli::{Cli, ConfigAction, DoctorCommand, ManCommand, ModelsAction};
use crate::failure::{DATA, Failure, OK, UNAVAILABLE};
use crate::output;
use crate::settings::{Layers, Settings};
use clap::CommandFactory;
use secateur_service::ops::{self, DoctorRequest, Level};
use secateur_service::{format_bytes, resolve_model};
use serde_json::{Map, Value, json};
use std::process::ExitCode;

pub(super) fn doctor(args: &DoctorCommand, settings: &Settings, json: bool) -> Result<ExitCode, Failure> {
    let model = args.model.as_ref().or(settings.model.as_ref());
    let host = settings
        .host
        .parse()
        .map_err(|_| Failure::usage(format!("--host `{}`: not an IP address", settings.host)))?;
    let request = DoctorRequest {
        memory_budget: settings.memory_budget.clone(),
        state_dir: settings.state_dir.clone(),
        address: (host, settings.port),
        model: model.map(|model| resolve_model(model, &settings.state_dir)).transpose()?,
    };
    let report = ops::doctor(&request)?;
    output::report(&report, json, show::doctor)?;
    Ok(ExitCode::from(if report.level == Level::Error { UNAVAILABLE } else { OK }))
}

pub(super) fn models(action: &ModelsAction, settings: &Settings, json: bool) -> Result<ExitCode, Failure> {
    match action {
        ModelsAction::List => list(settings, json),
        ModelsAction::Verify { ids } => verify(ids, settings, json),
        ModelsAction::Remove { ids } => {
            let removed = ops::remove_models(&settings.state_dir, ids)?;
            output::report(&json!({ "removed": removed }), json, |_| {
                removed.iter().map(|id| format!("removed {id}")).collect::<Vec<_>>().join("\n")
            })?;
            Ok(ExitCode::from(OK))
        }
    }
}

fn list(settings: &Settings, json: bool) -> Result<ExitCode, Failure> {
    let report = ops::list_models(&settings.state_dir)?;
    output::report(&report, json, |report| {
        let mut lines: Vec<String> = report
            .models
            .iter()
            .map(|model| {
                let ratio = 100.0 * model.ratio.unwrap_or(0.0);
                let method = model.method.as_deref().unwrap_or("");
                let id = &model.id[..12];
                format!("{id}  {:>10}  {ratio:5.1} % {method:<12} {}", format_bytes(model.bytes), model.name)
            })
            .collect();
        lines.extend(
            report.damaged.iter().map(|damaged| format!("DAMAGED {}: {}", damaged.path, damaged.error)),
        );
        if lines.is_empty() {
            lines.push(format!("no pruned models in {}", settings.state_dir.display()));
        }
        lines.join("\n")
    })?;
    Ok(ExitCode::from(OK))
}

fn verify(ids: &[String], settings: &Settings, json: bool) -> Result<ExitCode, Failure> {
    let report = ops::verify_models(&settings.state_dir, ids)?;
    output::report(&report, json, |report| {
        let mut lines: Vec<String> = report.whole.iter().map(|id| format!("ok      {id}")).collect();
        lines.extend(
            report.damaged.iter().map(|damaged| format!("DAMAGED {}: {}", damaged.path, damaged.error)),
        );
        if lines.is_empty() {
            lines.push("no pruned models".to_owned());
        }
        lines.join("\n")
    })?;
    Ok(ExitCode::from(if report.damaged.is_empty() { OK } else { DATA }))
}

pub(super) fn config(
    action: &ConfigAction,
    settings: &Settings,
    layers: &Layers,
    json: bool,
) -> Result<ExitCode, Failure> {
    let ConfigAction::Show { origin, .. } = action;
    let values = serde_json::to_value(settings)
        .map_err(|error| Failure::new(crate::failure::SOFTWARE, "internal", error.to_string()))?;
    let values = values.as_object().cloned().unwrap_or_default();
    let origins: Map<String, Value> =
        values.keys().map(|name| (name.clone(), Value::from(layers.origin(name)))).collect();
    let report = if *origin {
        json!({ "settings": values, "origins": origins })
    } else {
        json!({ "settings": values })
    };
    output::report(&report, json, |_| {
        let line = |(name, value): (&String, &Value)| {
            // JSON's scalars and lists read the same in TOML; what is not set has no form there.
            let text = if value.is_null() { format!("# {name} =") } else { format!("{name} = {value}") };
            match origins.get(name).and_then(Value::as_str) {
                Some(from) if *origin => format!("{text}  # {from}"),
                _ => text,
            }
        };
        values.iter().map(line).collect::<Vec<_>>().join("\n")
    })?;
    Ok(ExitCode::from(OK))
}

pub(super) fn completions(shell: clap_complete::Shell) -> Result<ExitCode, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "secateur", &mut text);
    output::print(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::from(OK))
}

/// The manual page of the program, or of every command into a folder.
pub(super) fn man(args: &ManCommand) -> Result<ExitCode, Failure> {
    let failed = |error: std::io::Error| Failure::new(crate::failure::IO, "io", error.to_string());
    let command = Cli::command().disable_help_subcommand(true);
    match &args.out {
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(failed)?;
            clap_mangen::generate_to(command, dir).map_err(failed)?;
        }
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(command).render(&mut text).map_err(failed)?;
            output::print(&String::from_utf8_lossy(&text))?;
        }
    }
    Ok(ExitCode::from(OK))
}
