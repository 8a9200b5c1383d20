//! The command line. Flags that are also settings may stand in a configuration file or in `SECATEUR_*` variables;
//! a flag wins.

use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use std::path::PathBuf;

/// Prunes language models to fit the memory of a device, and serves them.
#[derive(Debug, Parser)]
#[command(name = "secateur", version, about, propagate_version = true)]
#[command(
    after_help = "Exit codes follow sysexits: 64 usage, 65 bad data, 66 no input, 69 does not fit the memory, \
    70 internal, 74 input/output, 75 try again, 77 permission, 78 configuration, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Print the result as one JSON object on the last line of stdout.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Read this configuration file instead of the usual ones.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Clone, Debug, Default, Args, Serialize)]
pub(crate) struct LogArgs {
    /// What to log: error, warn, info, debug, trace or a filter such as `info,secateur_service=debug`.
    #[arg(long, global = true, value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
    /// Form of the log: text or json on stderr, journald, or auto (journald under systemd, else text).
    #[arg(long, global = true, value_name = "FORM")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_format: Option<String>,
}

/// Bounds on the process.
#[derive(Clone, Debug, Default, Args, Serialize)]
pub(crate) struct RunArgs {
    /// Memory for the whole process: auto, a size such as 128MiB, or a share such as 70%.
    #[arg(long, value_name = "BUDGET")]
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_budget: Option<String>,
    /// Threads that compute; what the device allows when absent.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
}

/// How a model computes.
#[derive(Clone, Debug, Default, Args, Serialize)]
pub(crate) struct ComputeArgs {
    /// How activations enter products with weights: f32 (exact) or int8 (rounded, faster). Answers and bench use int8
    /// when absent, eval uses f32.
    #[arg(long, value_name = "PRECISION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    precision: Option<String>,
}

/// How a model remembers.
#[derive(Clone, Debug, Default, Args, Serialize)]
pub(crate) struct CacheArgs {
    /// How keys and values are kept: f32, f16, q8_0 in about half the memory of f16, or auto: f16, and q8_0 where the memory
    /// budget would otherwise force something out. auto when absent; eval uses f32.
    #[arg(long, value_name = "DTYPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_dtype: Option<String>,
}

#[derive(Clone, Debug, Default, Args, Serialize)]
pub(crate) struct StateArgs {
    /// Folder of the store and of jobs at work.
    #[arg(long, global = true, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    state_dir: Option<PathBuf>,
}

/// What a plan is made from.
#[derive(Clone, Debug, Default, Args, Serialize)]
pub(crate) struct PlanArgs {
    /// Tokens of context to have memory for.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    context_len: Option<usize>,
    /// quality (widths for each layer) or compatible (one width, for any stock runtime).
    #[arg(long, value_name = "POLICY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    /// Storage of the result: auto, keep, f32, f16, bf16, q8_0, q4_0, q4_1. auto stores it in fewer bits when a budget
    /// asks for less memory and that costs less than pruning; a ratio alone keeps it.
    #[arg(long, value_name = "DTYPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    dtype: Option<String>,
    /// Storage of token table and output head: auto, keep or a dtype. auto stores them in fewer bits when a budget
    /// asks for less memory and that costs less than pruning.
    #[arg(long, value_name = "DTYPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    table_dtype: Option<String>,
}

/// How a model is pruned.
#[derive(Clone, Debug, Default, Args, Serialize)]
pub(crate) struct MethodArgs {
    /// Method; an unknown one is answered with the list of them.
    #[arg(long, value_name = "METHOD")]
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    /// Text to calibrate on instead of the built-in one.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<PathBuf>,
    /// Calibration tokens to fit on.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration_tokens: Option<usize>,
    /// Seed of whatever is random.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
}

#[derive(Clone, Debug, Default, Args, Serialize)]
pub(crate) struct ListenArgs {
    /// Address to listen on; anything but loopback needs --api-key-file.
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    /// Port; 0 takes a free one.
    #[arg(long, value_name = "PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// Host name to answer to besides localhost; may be given several times.
    #[arg(long = "allowed-host", value_name = "NAME")]
    #[serde(rename = "allowed_hosts", skip_serializing_if = "Vec::is_empty")]
    allowed_host: Vec<String>,
    /// Origin of a page that may ask from a browser, such as `https://app.example`; may be given several times.
    #[arg(long = "cors-origin", value_name = "ORIGIN")]
    #[serde(rename = "cors_origins", skip_serializing_if = "Vec::is_empty")]
    cors_origin: Vec<String>,
    /// Listen on this UNIX socket too; whoever may open it needs no key.
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<PathBuf>,
    /// Confine the process to its folders with landlock, where the kernel has it: true or false.
    #[arg(long, value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    confine: Option<bool>,
    /// File of API keys, one a line; `user:KEY` may only ask, `admin:KEY` or `KEY` may do everything.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_file: Option<PathBuf>,
    /// Requests that may wait.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_len: Option<usize>,
    /// Requests at work at the same time; they take turns.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    parallel: Option<usize>,
    /// Seconds that requests at work get to finish at the end.
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_s: Option<u64>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    model: ServedModelArgs,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    method: MethodArgs,
}

#[derive(Clone, Debug, Default, Args, Serialize)]
pub(crate) struct ServedModelArgs {
    /// GGUF file, folder with config.json and safetensors or ONNX, or id of a stored model; the newest stored model
    /// when absent.
    #[arg(long, value_name = "MODEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// A pruned form of the model that guesses ahead, file or id: answers stay the same. Not used where both do not fit the
    /// memory budget.
    #[arg(long, value_name = "MODEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    draft: Option<String>,
}

/// The flags of one command that are settings, as layers of values.
pub(crate) type ArgLayers = Vec<serde_json::Value>;

fn layer<T: Serialize>(args: &T) -> serde_json::Value {
    serde_json::to_value(args).expect("flags are plain values")
}

impl ServeArgs {
    pub(crate) fn layers(&self) -> ArgLayers {
        vec![
            layer(&self.model),
            layer(&self.listen),
            layer(&self.run),
            layer(&self.compute),
            layer(&self.state),
            layer(&self.cache),
            layer(&self.plan),
            layer(&self.method),
        ]
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model on localhost, pruning it first when it does not fit.
    Serve(ServeArgs),
    /// Say what would be cut, and change nothing.
    Plan(PlanCommand),
    /// Prune a model into a file.
    Prune(PruneCommand),
    /// Measure perplexity on a text or accuracy on multiple-choice tasks.
    Eval(EvalCommand),
    /// Prune by several methods and evaluate them side by side.
    Compare(CompareCommand),
    /// Generate text.
    Generate(GenerateCommand),
    /// Let the model write a text to calibrate on, where there is none at hand.
    OwnText(OwnTextCommand),
    /// Measure speed.
    Bench(BenchCommand),
    /// Write a model as GGUF or safetensors, without pruning it.
    Export(ExportCommand),
    /// Describe a model.
    Inspect(InspectCommand),
    /// Look at this host: what it can give, and what is wrong with it.
    Doctor(DoctorCommand),
    /// Look after the store of pruned models.
    Models(ModelsCommand),
    /// Look at the configuration.
    Config(ConfigCommand),
    /// Print completions for a shell.
    Completions(CompletionsCommand),
    /// Print the manual page, or write one for every command.
    Man(ManCommand),
}

#[derive(Debug, Args)]
pub(crate) struct PlanCommand {
    /// GGUF file, folder with config.json and safetensors or ONNX, or id of a stored model.
    pub(crate) model: String,
    /// Share of decoder-layer parameters to remove, whatever the budget.
    #[arg(long, value_name = "RATIO")]
    pub(crate) ratio: Option<f64>,
    #[command(flatten)]
    pub(crate) plan: PlanArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

/// How a long job treats other programs.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// Niceness: how far the job steps back behind other programs, from 0 (not at all) to 19; above 0 it also uses the disk
    /// only when nobody else does.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u8).range(0..=19))]
    pub(crate) nice: u8,
}

#[derive(Debug, Args)]
pub(crate) struct PruneCommand {
    /// GGUF file, folder with config.json and safetensors or ONNX, or id of a stored model.
    pub(crate) model: String,
    /// File to write.
    #[arg(short, long, value_name = "OUT")]
    pub(crate) out: PathBuf,
    /// Share of decoder-layer parameters to remove; the memory budget decides when absent.
    #[arg(long, value_name = "RATIO")]
    pub(crate) ratio: Option<f64>,
    /// Write a page that shows the outcome layer by layer.
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
    /// Form of the file: gguf.
    #[arg(long, value_name = "FORMAT", default_value = "gguf")]
    pub(crate) format: String,
    #[command(flatten)]
    pub(crate) job: JobArgs,
    #[command(flatten)]
    pub(crate) plan: PlanArgs,
    #[command(flatten)]
    pub(crate) method: MethodArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct EvalCommand {
    /// GGUF file, folder with config.json and safetensors or ONNX, or id of a stored model.
    pub(crate) model: String,
    /// Text to measure perplexity on.
    #[arg(long, value_name = "FILE", required_unless_present = "tasks", conflicts_with = "tasks")]
    pub(crate) text: Option<PathBuf>,
    /// JSON lines with `query`, `choices` and `gold` to measure accuracy on.
    #[arg(long, value_name = "FILE")]
    pub(crate) tasks: Option<PathBuf>,
    /// Tokens of a window.
    #[arg(long, value_name = "N", default_value_t = secateur_service::ops::DEFAULT_SEQ_LEN, conflicts_with = "tasks")]
    pub(crate) seq_len: usize,
    /// Tokens of the text to use, from its start.
    #[arg(long, value_name = "N", conflicts_with = "tasks")]
    pub(crate) max_tokens: Option<usize>,
    /// Model to tell the divergence (KL) of the predictions from: the one this was pruned from.
    #[arg(long, value_name = "MODEL", conflicts_with = "tasks")]
    pub(crate) base: Option<String>,
    /// Items to use, from the start.
    #[arg(long, value_name = "N", conflicts_with = "text")]
    pub(crate) max_items: Option<usize>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CompareCommand {
    /// GGUF file, folder with config.json and safetensors or ONNX, or id of a stored model.
    pub(crate) model: String,
    /// Share of decoder-layer parameters every method removes.
    #[arg(long, value_name = "RATIO")]
    pub(crate) ratio: f64,
    /// Methods, with commas between them; all of them when absent.
    #[arg(long, value_name = "METHODS", value_delimiter = ',')]
    pub(crate) methods: Vec<String>,
    /// Text to measure perplexity on; may be given several times.
    #[arg(long, value_name = "FILE", required_unless_present = "tasks")]
    pub(crate) text: Vec<PathBuf>,
    /// Tokens of a window.
    #[arg(long, value_name = "N", default_value_t = secateur_service::ops::DEFAULT_SEQ_LEN)]
    pub(crate) seq_len: usize,
    /// Tokens to use of each text, from its start.
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// JSON lines with `query`, `choices` and `gold`; may be given several times.
    #[arg(long, value_name = "FILE")]
    pub(crate) tasks: Vec<PathBuf>,
    /// Items to use of each file of tasks, from the start.
    #[arg(long, value_name = "N")]
    pub(crate) max_items: Option<usize>,
    /// Folder for the pruned models; they stay there.
    #[arg(long, value_name = "DIR")]
    pub(crate) out_dir: PathBuf,
    #[command(flatten)]
    pub(crate) job: JobArgs,
    #[command(flatten)]
    pub(crate) plan: PlanArgs,
    #[command(flatten)]
    pub(crate) method: MethodArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateCommand {
    /// GGUF file, folder with config.json and safetensors or ONNX, or id of a stored model.
    pub(crate) model: String,
    /// The prompt.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// Put the prompt through the model's chat template.
    #[arg(long)]
    pub(crate) chat: bool,
    /// Most tokens to generate.
    #[arg(long, value_name = "N", default_value_t = secateur_service::ops::DEFAULT_MAX_TOKENS)]
    pub(crate) max_tokens: usize,
    /// 0 takes the likeliest token.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Keep the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub(crate) top_p: f32,
    /// Keep the likeliest K tokens; 0 keeps all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Text that ends the answer; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// A pruned form of the model that guesses ahead; the answer stays the same.
    #[arg(long, value_name = "MODEL")]
    pub(crate) draft: Option<String>,
    /// Tokens of context; as many as needed when absent.
    #[arg(long, value_name = "N")]
    pub(crate) context_len: Option<usize>,
    /// Seed; a random one when absent.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct OwnTextCommand {
    /// GGUF file, folder with config.json and safetensors or ONNX, or id of a stored model.
    pub(crate) model: String,
    /// Text file to write.
    #[arg(short, long, value_name = "OUT")]
    pub(crate) out: PathBuf,
    /// Tokens to write.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub(crate) tokens: usize,
    /// Seed of the draws.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BenchCommand {
    /// GGUF file, folder with config.json and safetensors or ONNX, or id of a stored model.
    pub(crate) model: String,
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) prompt_tokens: usize,
    /// Tokens to generate.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) generate_tokens: usize,
    /// Measured runs; their median is reported.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) repeats: usize,
    /// Measure also with so many tokens already in the cache, such as 0,512,1024.
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    pub(crate) depths: Vec<usize>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExportCommand {
    /// GGUF file, folder with config.json and safetensors or ONNX, or id of a stored model.
    pub(crate) model: String,
    /// File to write; for safetensors a new folder.
    #[arg(short, long, value_name = "OUT")]
    pub(crate) out: PathBuf,
    /// Form to write: gguf, or safetensors with config.json and the tokenizer's files.
    #[arg(long, value_name = "FORMAT", default_value = "gguf")]
    pub(crate) format: String,
    /// Storage of the matrices: keep, f32, f16, bf16, q8_0, q4_0, q4_1. What is rounded here is rounded value by value;
    /// `prune --ratio 0 --dtype q4_0` makes up for it.
    #[arg(long, value_name = "DTYPE", default_value = "keep")]
    pub(crate) dtype: String,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InspectCommand {
    /// GGUF file, folder with config.json and safetensors or ONNX, or id of a stored model.
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorCommand {
    /// A model to plan for.
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ModelsCommand {
    #[command(subcommand)]
    pub(crate) command: ModelsAction,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelsAction {
    /// List the pruned models.
    List,
    /// Compare every file with its digest.
    Verify {
        /// Ids, or beginnings of ids; all models when absent.
        ids: Vec<String>,
    },
    /// Remove pruned models.
    Remove {
        /// Ids, or beginnings of ids.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ConfigCommand {
    #[command(subcommand)]
    pub(crate) command: ConfigAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigAction {
    /// Show every setting.
    Show {
        /// Say where each one comes from.
        #[arg(long)]
        origin: bool,
        #[command(flatten)]
        args: Box<ServeArgs>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsCommand {
    /// The shell.
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManCommand {
    /// Folder to write the pages to, one for each command.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

impl Command {
    /// The flags that are settings.
    pub(crate) fn layers(&self) -> ArgLayers {
        match self {
            Self::Serve(args) => args.layers(),
            Self::Plan(c) => vec![layer(&c.cache), layer(&c.plan), layer(&c.run), layer(&c.state)],
            Self::Prune(c) => {
                vec![layer(&c.cache), layer(&c.plan), layer(&c.method), layer(&c.run), layer(&c.state)]
            }
            Self::Compare(c) => {
                vec![layer(&c.cache), layer(&c.plan), layer(&c.method), layer(&c.run), layer(&c.state)]
            }
            Self::Eval(c) => vec![layer(&c.cache), layer(&c.run), layer(&c.compute), layer(&c.state)],
            Self::Generate(c) => vec![layer(&c.cache), layer(&c.run), layer(&c.compute), layer(&c.state)],
            Self::OwnText(c) => vec![layer(&c.run), layer(&c.compute), layer(&c.state)],
            Self::Bench(c) => vec![layer(&c.cache), layer(&c.run), layer(&c.compute), layer(&c.state)],
            Self::Export(c) => vec![layer(&c.state)],
            Self::Inspect(c) => vec![layer(&c.state)],
            Self::Doctor(c) => vec![layer(&c.run), layer(&c.state), layer(&c.listen)],
            Self::Models(c) => vec![layer(&c.state)],
            Self::Config(ConfigCommand { command: ConfigAction::Show { args, .. } }) => args.layers(),
            Self::Completions(_) | Self::Man(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn only_given_flags_become_a_layer() {
        let cli = Cli::try_parse_from(["secateur", "plan", "m.gguf", "--memory-budget", "1GiB"]).unwrap();
        let layers = cli.command.layers();
        let given: Vec<_> = layers.iter().filter(|layer| !layer.as_object().unwrap().is_empty()).collect();
        assert_eq!(given, [&serde_json::json!({ "memory_budget": "1GiB" })]);
    }
}
