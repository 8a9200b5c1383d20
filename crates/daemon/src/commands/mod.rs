//! The commands that run once.

mod admin;
mod show;
mod work;

use crate::cli::Command;
use crate::failure::Failure;
use crate::settings::{Layers, Settings};
use std::process::ExitCode;

/// Runs one command.
/// # Errors
/// [`Failure`].
pub(crate) fn run(
    command: Command,
    settings: &Settings,
    layers: &Layers,
    json: bool,
) -> Result<ExitCode, Failure> {
    match command {
        Command::Serve(_) => Err(Failure::usage("serve is not a command that runs once")),
        Command::Plan(args) => work::plan(&args, settings, json),
        Command::Prune(args) => work::prune(&args, settings, json),
        Command::Eval(args) => work::eval(&args, settings, json),
        Command::Compare(args) => work::compare(&args, settings, json),
        Command::Generate(args) => work::generate(&args, settings, json),
        Command::OwnText(args) => work::own_text(&args, settings, json),
        Command::Bench(args) => work::bench(&args, settings, json),
        Command::Export(args) => work::export(&args, settings, json),
        Command::Inspect(args) => work::inspect(&args, settings, json),
        Command::Doctor(args) => admin::doctor(&args, settings, json),
        Command::Models(args) => admin::models(&args.command, settings, json),
        Command::Config(args) => admin::config(&args.command, settings, layers, json),
        Command::Completions(args) => admin::completions(args.shell),
        Command::Man(args) => admin::man(&args),
    }
}
