//! `secateur`: prunes language models to fit the device's memory, and serves them.
//!
//! Results go to stdout (with `--json`, one object on its last line), everything else to stderr. Exit codes follow
//! sysexits; see [`failure`].
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod confine;
mod failure;
mod keys;
mod logging;
mod notify;
mod output;
mod progress;
mod serve;
mod settings;
mod signals;

use clap::Parser;
use cli::{Cli, Command};
use failure::Failure;
use settings::Layers;
use std::process::ExitCode;

fn main() -> ExitCode {
    secateur_service::return_large_blocks();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { failure::USAGE } else { failure::OK };
            // Nothing can be done about a closed terminal.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let json = cli.json;
    match run(cli) {
        Ok(code) => code,
        Err(failure) => failure.report(json),
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let read = |cli: &Cli| Ok::<_, Failure>(Layers::read(cli.config.as_deref())?.with(&cli.log));
    let json = cli.json;
    if let Command::Serve(args) = &cli.command {
        let again = || read(&cli)?.with_all(&args.layers()).settings();
        let settings = again()?;
        logging::start(&settings, "info")?;
        return serve::serve(&settings, &again, json);
    }
    let layers = read(&cli)?.with_all(&cli.command.layers());
    let settings = layers.settings()?;
    logging::start(&settings, "warn")?;
    commands::run(cli.command, &settings, &layers, json)
}
