//! Settings in layers: flags win over `SECATEUR_*` variables, these over configuration files, these over defaults.

use crate::cli::{ArgLayers, LogArgs};
use crate::failure::{CONFIG, Failure, NO_INPUT};
use figment::providers::{Env, Format, Serialized, Toml};
use figment::{Figment, Metadata, Source};
use secateur_service::{
    Calibration, CalibrationText, DEFAULT_METHOD, DEFAULT_PARALLEL, DEFAULT_QUEUE_LEN, PlanSettings,
    PruneSettings,
};
use serde::{Deserialize, Deserializer, Serialize};
use std::path::{Path, PathBuf};

/// Name of the layer of flags.
const FLAGS: &str = "command line";
/// Name of the layer of defaults.
const DEFAULTS: &str = "default";

/// Every setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) model: Option<String>,
    pub(crate) draft: Option<String>,
    #[serde(deserialize_with = "text_or_number")]
    pub(crate) memory_budget: String,
    pub(crate) context_len: Option<usize>,
    pub(crate) kv_dtype: Option<String>,
    pub(crate) threads: Option<usize>,
    pub(crate) precision: Option<String>,
    pub(crate) host: String,
    pub(crate) port: u16,
    #[serde(deserialize_with = "list_or_text")]
    pub(crate) allowed_hosts: Vec<String>,
    #[serde(deserialize_with = "list_or_text")]
    pub(crate) cors_origins: Vec<String>,
    pub(crate) api_key_file: Option<PathBuf>,
    pub(crate) socket: Option<PathBuf>,
    pub(crate) confine: bool,
    pub(crate) state_dir: PathBuf,
    pub(crate) queue_len: usize,
    pub(crate) parallel: usize,
    pub(crate) drain_s: u64,
    pub(crate) method: String,
    pub(crate) policy: String,
    pub(crate) dtype: String,
    pub(crate) table_dtype: String,
    pub(crate) seed: u64,
    pub(crate) calibration: Option<PathBuf>,
    pub(crate) calibration_tokens: Option<usize>,
    pub(crate) log: Option<String>,
    pub(crate) log_format: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: None,
            draft: None,
            memory_budget: "auto".into(),
            context_len: None,
            kv_dtype: None,
            threads: None,
            precision: None,
            host: "127.0.0.1".into(),
            port: 8712,
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            api_key_file: None,
            socket: None,
            confine: true,
            state_dir: default_state_dir(),
            queue_len: DEFAULT_QUEUE_LEN,
            parallel: DEFAULT_PARALLEL,
            drain_s: 3,
            method: DEFAULT_METHOD.into(),
            policy: "quality".into(),
            dtype: "auto".into(),
            table_dtype: "auto".into(),
            seed: 0,
            calibration: None,
            calibration_tokens: None,
            log: None,
            log_format: "auto".into(),
        }
    }
}

impl Settings {
    /// The credential `api-key` that systemd hands over, if there is one.
    pub(crate) fn credential() -> Option<PathBuf> {
        Some(env_path("CREDENTIALS_DIRECTORY")?.join("api-key")).filter(|path| path.is_file())
    }

    /// The settings that a running service takes over; the names of others that differ.
    pub(crate) fn changes_that_need_a_restart(&self, other: &Self) -> Vec<String> {
        const LIVE: [&str; 5] = ["allowed_hosts", "cors_origins", "api_key_file", "log", "log_format"];
        let values = |settings: &Self| serde_json::to_value(settings).expect("settings are plain values");
        let (old, new) = (values(self), values(other));
        let names = setting_names().into_iter().filter(|name| !LIVE.contains(&name.as_str()));
        names.filter(|name| old[name] != new[name]).collect()
    }

    /// How to prune, with the ratio of the command.
    pub(crate) fn prune(&self, ratio: Option<f64>) -> PruneSettings {
        let text = self.calibration.clone().map_or(CalibrationText::Default, CalibrationText::File);
        PruneSettings {
            plan: self.plan(ratio),
            method: self.method.clone(),
            seed: self.seed,
            calibration: Calibration { text, tokens: self.calibration_tokens },
        }
    }

    /// What to plan, with the ratio of the command.
    pub(crate) fn plan(&self, ratio: Option<f64>) -> PlanSettings {
        PlanSettings {
            ratio,
            context_len: self.context_len,
            policy: Some(self.policy.clone()),
            dtype: Some(self.dtype.clone()),
            table_dtype: Some(self.table_dtype.clone()),
            kv_dtype: self.kv_dtype.clone(),
        }
    }

    /// How to run a model once.
    pub(crate) fn run(&self) -> secateur_service::ops::RunOptions {
        secateur_service::ops::RunOptions {
            memory_budget: self.memory_budget.clone(),
            n_threads: self.threads,
            precision: self.precision.clone(),
            kv_dtype: self.kv_dtype.clone(),
        }
    }
}

/// Budgets may be written as plain numbers.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Text(String),
        Number(u64),
    }
    Ok(match Value::deserialize(deserializer)? {
        Value::Text(text) => text,
        Value::Number(number) => number.to_string(),
    })
}

/// Variables hold lists as text with commas.
fn list_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        List(Vec<String>),
        Text(String),
    }
    Ok(match Value::deserialize(deserializer)? {
        Value::List(list) => list,
        Value::Text(text) => {
            text.split(',').map(|part| part.trim().to_owned()).filter(|p| !p.is_empty()).collect()
        }
    })
}

fn env_path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// systemd's folder, the user's, or the system's.
fn default_state_dir() -> PathBuf {
    // systemd gives several folders with colons between them.
    let given =
        std::env::var("STATE_DIRECTORY").ok().and_then(|dirs| dirs.split(':').next().map(PathBuf::from));
    let given = given.filter(|dir| !dir.as_os_str().is_empty());
    let user = || {
        Some(
            env_path("XDG_STATE_HOME")
                .or_else(|| Some(env_path("HOME")?.join(".local/state")))?
                .join("secateur"),
        )
    };
    given.or_else(user).unwrap_or_else(|| PathBuf::from("/var/lib/secateur"))
}

/// The usual configuration files, weakest first.
fn config_files() -> Vec<PathBuf> {
    let system = env_path("CONFIGURATION_DIRECTORY").unwrap_or_else(|| PathBuf::from("/etc/secateur"));
    let mut files = vec![system.join("config.toml")];
    let parts = std::fs::read_dir(system.join("conf.d")).into_iter().flatten().flatten();
    let mut parts: Vec<PathBuf> = parts.map(|entry| entry.path()).collect();
    parts.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    parts.sort();
    files.extend(parts);
    let user = env_path("XDG_CONFIG_HOME").or_else(|| Some(env_path("HOME")?.join(".config")));
    files.extend(user.map(|dir| dir.join("secateur/config.toml")));
    files
}

/// The layers, weakest first.
pub(crate) struct Layers {
    figment: Figment,
}

impl Layers {
    /// Defaults, configuration files and variables; `config` takes the place of the usual files.
    /// # Errors
    /// [`Failure`] when `config` is not there.
    pub(crate) fn read(config: Option<&Path>) -> Result<Self, Failure> {
        let files = match config {
            Some(path) if !path.is_file() => {
                let message = format!("--config {}: there is no such file", path.display());
                return Err(Failure::new(NO_INPUT, "not_found", message));
            }
            Some(path) => vec![path.to_owned()],
            None => config_files(),
        };
        let mut figment = Figment::from(named(DEFAULTS, &Settings::default()));
        // A file that is not there is no fault, unless it was named.
        for file in files.into_iter().filter(|file| file.is_file()) {
            figment = figment.merge(Toml::file_exact(file));
        }
        // Other variables with this beginning belong to scripts.
        let known = setting_names();
        let env = Env::prefixed("SECATEUR_").filter(move |key| known.iter().any(|name| key == name.as_str()));
        Ok(Self { figment: figment.merge(env) })
    }

    pub(crate) fn with(self, args: &LogArgs) -> Self {
        Self { figment: self.figment.merge(named(FLAGS, args)) }
    }

    pub(crate) fn with_all(mut self, layers: &ArgLayers) -> Self {
        for layer in layers {
            self.figment = self.figment.merge(named(FLAGS, layer));
        }
        self
    }

    /// The settings that result.
    /// # Errors
    /// [`Failure`] naming the setting and the layer that is wrong.
    pub(crate) fn settings(&self) -> Result<Settings, Failure> {
        self.figment.extract().map_err(|error| {
            let lines: Vec<String> = error.into_iter().map(|error| describe(&error)).collect();
            Failure::new(CONFIG, "config", lines.join("; "))
        })
    }

    /// Where the value of a setting comes from, in words.
    pub(crate) fn origin(&self, name: &str) -> String {
        self.figment.find_metadata(name).map_or_else(|| DEFAULTS.to_owned(), describe_origin)
    }
}

fn named<T: Serialize>(name: &'static str, value: &T) -> impl figment::Provider {
    Named {
        name,
        inner: Serialized::defaults(serde_json::to_value(value).expect("settings are plain values")),
    }
}

/// A layer with a name of ours.
struct Named {
    name: &'static str,
    inner: Serialized<serde_json::Value>,
}

impl figment::Provider for Named {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name)
    }

    fn data(&self) -> Result<figment::value::Map<figment::Profile, figment::value::Dict>, figment::Error> {
        self.inner.data()
    }
}

/// Names of all settings, in order.
pub(crate) fn setting_names() -> Vec<String> {
    let defaults = serde_json::to_value(Settings::default()).expect("settings are plain values");
    defaults.as_object().into_iter().flat_map(|object| object.keys().cloned()).collect()
}

fn describe_origin(metadata: &Metadata) -> String {
    match &metadata.source {
        Some(Source::File(path)) => path.display().to_string(),
        _ if metadata.name.contains("environment") => "environment".to_owned(),
        _ => metadata.name.to_string(),
    }
}

fn describe(error: &figment::Error) -> String {
    let origin = error.metadata.as_ref().map(describe_origin);
    let mut text = error.kind.to_string();
    if let figment::error::Kind::UnknownField(name, _) = &error.kind {
        text = format!("`{name}` is not a setting");
        if let Some(near) = nearest(name, &setting_names()) {
            text.push_str(&format!("; did you mean `{near}`?"));
        }
    }
    let path = error.path.join(".");
    let place = match (origin, path.is_empty()) {
        (Some(origin), false) => format!("{origin}: `{path}`: "),
        (Some(origin), true) => format!("{origin}: "),
        (None, false) => format!("`{path}`: "),
        (None, true) => String::new(),
    };
    format!("{place}{text}")
}

/// The name that differs from `name` in the fewest letters, if these are few.
fn nearest(name: &str, names: &[String]) -> Option<String> {
    const MAX_DISTANCE: usize = 3;
    let distance = |other: &String| edit_distance(name.as_bytes(), other.as_bytes());
    names.iter().min_by_key(|other| distance(other)).filter(|other| distance(other) <= MAX_DISTANCE).cloned()
}

fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(toml: &str) -> Result<Settings, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, toml).unwrap();
        Layers::read(Some(&path)).unwrap().settings()
    }

    #[test]
    fn files_are_read_strictly() {
        let settings = read("memory_budget = 134217728\nport = 1\nallowed_hosts = [\"a\", \"b\"]").unwrap();
        assert_eq!(settings.memory_budget, "134217728");
        assert_eq!((settings.port, settings.allowed_hosts.len()), (1, 2));
        for (toml, want) in [
            ("memory_bugdet = 1", "did you mean `memory_budget`"),
            ("zzz = 1", "`zzz` is not a setting"),
            ("port = 123456", "port"),
            ("port = \"x\"", "port"),
            ("port =", "config.toml"),
        ] {
            let failure = read(toml).unwrap_err();
            let text = format!("{failure:?}");
            assert!(text.contains(want) && text.contains("config.toml"), "{toml}: {text}");
        }
    }

    #[test]
    fn flags_win_and_origins_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "port = 1\nseed = 7").unwrap();
        let layers = Layers::read(Some(&path)).unwrap().with_all(&vec![serde_json::json!({ "port": 2 })]);
        let settings = layers.settings().unwrap();
        assert_eq!((settings.port, settings.seed), (2, 7));
        assert_eq!(layers.origin("port"), FLAGS);
        assert_eq!(layers.origin("seed"), path.display().to_string());
        assert_eq!(layers.origin("method"), DEFAULTS);
    }

    #[test]
    fn distances() {
        assert_eq!(edit_distance(b"kitten", b"sitting"), 3);
        assert_eq!(edit_distance(b"", b"abc"), 3);
    }
}
