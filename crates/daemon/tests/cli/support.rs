//! Starts the binary, talks to it, and ends it.

use secateur_test_support::{TinyLayer, TinyModel};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio};
use tempfile::TempDir;

/// A folder with a tiny model, where the binary has its home.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
    pub(crate) model: PathBuf,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self::with(&TinyModel::default())
    }

    /// Six layers, wide enough that pruning takes a moment.
    pub(crate) fn with_slow_model() -> Self {
        let layer = TinyLayer { heads: 4, kv_heads: 2, intermediate_size: 256 };
        Self::with(&TinyModel { layers: vec![layer; 6], ..TinyModel::default() })
    }

    pub(crate) fn with(model: &TinyModel) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = model.write_to(dir.path());
        Self { dir, model }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The binary with this home and none of the caller's settings.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_secateur"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SECATEUR_")) {
            command.env_remove(name);
        }
        for name in [
            "XDG_CONFIG_HOME",
            "XDG_STATE_HOME",
            "STATE_DIRECTORY",
            "NOTIFY_SOCKET",
            "WATCHDOG_USEC",
            "CREDENTIALS_DIRECTORY",
        ] {
            command.env_remove(name);
        }
        // What else the machine does is none of the tests' business.
        command.env("MEMORY_PRESSURE_WATCH", "/dev/null");
        command.env("HOME", self.dir.path()).current_dir(self.dir.path()).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed and returns the object on the last line of its stdout.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}\n{stderr}", output.status);
        last_object(&output)
    }
}

/// The object on the last line of stdout.
pub(crate) fn last_object(output: &Output) -> Value {
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    let line = stdout.lines().last().unwrap_or_else(|| panic!("nothing on stdout"));
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert!(value.is_object(), "{line}");
    value
}

pub(crate) fn str_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Sends a signal to a process.
pub(crate) fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

/// A running `secateur serve`; killed when dropped.
pub(crate) struct Server {
    child: Child,
    log: BufReader<ChildStderr>,
    _stdout: BufReader<ChildStdout>,
    pub(crate) address: String,
    seen: String,
}

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    #[allow(dead_code, reason = "shown when a test fails")]
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

impl Server {
    pub(crate) fn start(home: &Home, args: &[&str]) -> Self {
        Self::spawn(home.command(&[&["serve", "--port", "0", "--json"], args].concat()))
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let Ok(hello) = serde_json::from_str::<Value>(&line) else {
            let mut text = String::new();
            log.read_to_string(&mut text).unwrap();
            panic!("no address on stdout: {line:?}\n{text}");
        };
        let address = hello["url"].as_str().unwrap().trim_start_matches("http://").to_owned();
        Self { child, log, _stdout: stdout, address, seen: String::new() }
    }

    /// Reads the log up to a line with `text`.
    pub(crate) fn wait_for(&mut self, text: &str) {
        loop {
            let mut line = String::new();
            let n = self.log.read_line(&mut line).unwrap();
            self.seen.push_str(&line);
            assert_ne!(n, 0, "the log ended before `{text}`:\n{}", self.seen);
            if line.contains(text) {
                return;
            }
        }
    }

    pub(crate) fn ready(&mut self) {
        self.wait_for("status=\"serving\"");
    }

    pub(crate) fn log_so_far(&self) -> &str {
        &self.seen
    }

    pub(crate) fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.ask(&format!("DELETE {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask(&post_text(path, body))
    }

    fn ask(&self, request: &str) -> Answer {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            unchunk(body)
        } else {
            body.to_owned()
        };
        Answer { status, head: head.to_owned(), body }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, which: rustix::process::Signal) {
        signal(&self.child, which);
    }

    /// Waits for the end and returns the status and the rest of the log.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        (status, std::mem::take(&mut self.seen) + &rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn post_text(path: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn unchunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        text.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    text
}
