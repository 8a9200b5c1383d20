//! The server over real sockets: clients that leave, dawdle or overdo it, and its own end.

use crate::fake::{Fake, options};
use secateur_http_api::{ApiKeys, App, Drained, HttpOptions, Listener};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

/// Far beyond anything that happens here; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<std::io::Result<Drained>>,
}

impl Running {
    async fn start(fake: &Fake, options: HttpOptions, drain: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let app = App::new(fake.clone(), options);
        let shutdown = async {
            let _ = stopped.await;
        };
        let served = tokio::spawn(app.serve(listener, shutdown, drain));
        Self { address, stop, served }
    }

    async fn connect(&self) -> Client {
        Client { stream: TcpStream::connect(self.address).await.unwrap(), seen: String::new() }
    }

    async fn end(self) -> Drained {
        self.stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, self.served).await.expect("the server ends").unwrap().unwrap()
    }
}

struct Client {
    stream: TcpStream,
    seen: String,
}

impl Client {
    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    async fn post(&mut self, path: &str, body: &str) {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n");
        self.send(&format!("{head}content-length: {length}\r\n\r\n{body}")).await;
    }

    /// Reads more; false at the end of the connection.
    async fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let n =
            tokio::time::timeout(PATIENCE, self.stream.read(&mut buffer)).await.expect("an answer in time");
        let n = n.unwrap_or(0);
        self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        0 < n
    }

    async fn read_until(&mut self, text: &str) {
        while !self.seen.contains(text) {
            assert!(self.read().await, "the connection ended before {text:?}: {}", self.seen);
        }
    }

    async fn read_to_end(&mut self) {
        while self.read().await {}
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

fn gated(n_events: usize) -> (Fake, Arc<Semaphore>) {
    let fake = Fake::new();
    let gate = Arc::new(Semaphore::new(n_events));
    fake.with(|script| script.gate = Some(gate.clone()));
    (fake, gate)
}

const STREAMED: &str = r#"{"messages":[{"role":"user","content":"x"}],"stream":true}"#;
const WHOLE: &str = r#"{"messages":[{"role":"user","content":"x"}]}"#;
const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn tokens_arrive_one_by_one_and_a_client_that_leaves_cancels() {
    let (fake, gate) = gated(2);
    let server = Running::start(&fake, options(), PATIENCE).await;
    let mut client = server.connect().await;
    client.post(CHAT, STREAMED).await;
    client.read_until("Hello").await;
    assert!(!client.seen.contains("wörld"), "later tokens are not there yet");
    gate.add_permits(1);
    client.read_until(", ").await;
    assert_eq!(fake.abandoned.load(Ordering::SeqCst), 0);
    drop(client);
    until("the generation ends with its client", || fake.abandoned.load(Ordering::SeqCst) == 1).await;
    assert_eq!(server.end().await, Drained::All);
}

#[tokio::test]
async fn a_client_that_leaves_before_a_whole_answer_cancels() {
    let (fake, _gate) = gated(2);
    let server = Running::start(&fake, options(), PATIENCE).await;
    let mut client = server.connect().await;
    client.post(CHAT, WHOLE).await;
    until("the request is there", || fake.with(|script| script.chats.len()) == 1).await;
    drop(client);
    until("the generation ends with its client", || fake.abandoned.load(Ordering::SeqCst) == 1).await;
    assert_eq!(server.end().await, Drained::All);
}

#[tokio::test]
async fn silent_streams_are_kept_alive_by_comments() {
    let (fake, gate) = gated(1);
    let server =
        Running::start(&fake, HttpOptions { ping_interval: Duration::from_millis(5), ..options() }, PATIENCE)
            .await;
    let mut client = server.connect().await;
    client.post(CHAT, STREAMED).await;
    client.read_until(": ping").await;
    gate.add_permits(100);
    client.read_until("data: [DONE]").await;
    drop(client);
    assert_eq!(server.end().await, Drained::All);
}

#[tokio::test]
async fn stopping_ends_endless_streams_properly_and_lets_answers_finish() {
    let (fake, gate) = gated(2);
    fake.with(|script| script.job_ends = false);
    let server = Running::start(&fake, options(), PATIENCE).await;
    let address = server.address;
    let mut job = server.connect().await;
    job.send("GET /api/v1/jobs/1/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    job.read_until("id: 3").await;
    let mut chat = server.connect().await;
    chat.post(CHAT, STREAMED).await;
    chat.read_until("Hello").await;
    let mut idle = server.connect().await;
    idle.send("GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    idle.read_until("ok").await;
    let ended = tokio::spawn(server.end());
    job.read_until("event: error").await;
    job.read_to_end().await;
    assert!(job.seen.contains("shutting_down"));
    idle.read_to_end().await;
    gate.add_permits(100);
    chat.read_until("data: [DONE]").await;
    assert_eq!(ended.await.unwrap(), Drained::All);
    assert!(TcpStream::connect(address).await.is_err(), "nothing is accepted any more");
}

#[tokio::test]
async fn answers_that_do_not_end_in_time_end_with_an_error() {
    let (fake, gate) = gated(0);
    let server = Running::start(&fake, options(), Duration::from_millis(50)).await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut client = server.connect().await;
        client.post(CHAT, STREAMED).await;
        client.read_until("200 OK").await;
        streams.push(client);
    }
    // One of them is in the middle of its text.
    gate.add_permits(2);
    let mut whole = server.connect().await;
    whole.post(CHAT, WHOLE).await;
    until("the request is there", || fake.with(|script| script.chats.len()) == 9).await;
    assert_eq!(server.end().await, Drained::Cut);
    assert_eq!(fake.abandoned.load(Ordering::SeqCst), 9);
    for mut client in streams {
        client.read_to_end().await;
        assert!(client.seen.contains("\"code\":\"shutting_down\""), "{}", client.seen);
        assert!(!client.seen.contains("[DONE]"));
        assert!(client.seen.ends_with("\r\n0\r\n\r\n"), "the body is whole: {}", client.seen);
    }
    whole.read_to_end().await;
    assert!(whole.seen.starts_with("HTTP/1.1 503"), "{}", whole.seen);
}

#[tokio::test]
async fn dawdling_clients_are_cut() {
    let fake = Fake::new();
    let short = Duration::from_millis(50);
    let server = Running::start(&fake, HttpOptions { header_timeout: short, ..options() }, PATIENCE).await;
    let mut silent = server.connect().await;
    silent.read_to_end().await;
    let mut head = server.connect().await;
    head.send("GET /livez HTTP/1.1\r\nhost: local").await;
    head.read_to_end().await;
    assert!(!head.seen.contains("200 OK"));
    // On a busy machine, one may be cut before it has asked; another one asks again.
    let mut idle = loop {
        let mut idle = server.connect().await;
        let asked = idle.stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        if asked.is_ok() && idle.read().await {
            break idle;
        }
    };
    idle.read_to_end().await;
    assert!(idle.seen.starts_with("HTTP/1.1 200"), "{}", idle.seen);
    assert_eq!(server.end().await, Drained::All);
    let server = Running::start(&fake, HttpOptions { body_timeout: short, ..options() }, PATIENCE).await;
    let mut body = server.connect().await;
    let start = "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    body.send(&format!("{start}content-length: 100\r\n\r\n{{\"content")).await;
    body.read_to_end().await;
    assert!(body.seen.starts_with("HTTP/1.1 408"), "{}", body.seen);
    assert_eq!(server.end().await, Drained::All);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_their_turn() {
    let fake = Fake::new();
    let server = Running::start(&fake, HttpOptions { max_connections: 1, ..options() }, PATIENCE).await;
    let ask = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut first = server.connect().await;
    first.send(ask).await;
    first.read_until("ok").await;
    let mut second = server.connect().await;
    second.send(ask).await;
    first.send(ask).await;
    first.seen.clear();
    first.read_until("ok").await;
    drop(first);
    second.read_until("ok").await;
    drop(second);
    assert_eq!(server.end().await, Drained::All);
}

#[tokio::test]
async fn requests_that_are_no_http_do_no_harm() {
    let fake = Fake::new();
    let server = Running::start(&fake, options(), PATIENCE).await;
    let many_headers = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "a: b\r\n".repeat(10_000));
    let long_header = format!("GET / HTTP/1.1\r\nhost: localhost\r\na: {}\r\n\r\n", "x".repeat(200_000));
    let long_target = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(200_000));
    for text in [
        "\r\n\r\n\r\n",
        "hello\r\n\r\n",
        "GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: localhost\r\nhost: evil.com\r\nconnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nconnection: close\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999999999999\r\n\r\n",
        "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        &many_headers,
        &long_header,
        &long_target,
    ] {
        let mut client = server.connect().await;
        // The server may hang up before it has read everything.
        let _ = client.stream.write_all(text.as_bytes()).await;
        let _ = client.stream.shutdown().await;
        client.read_to_end().await;
        let start: String = text.chars().take(40).collect();
        let fine = client.seen.is_empty()
            || client.seen.starts_with("HTTP/1.1 4")
            || client.seen.starts_with("HTTP/1.0 4");
        assert!(fine, "{start:?}: {}", client.seen);
    }
    let mut client = server.connect().await;
    client.send("GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    client.read_to_end().await;
    assert!(client.seen.starts_with("HTTP/1.1 200"), "{}", client.seen);
    assert_eq!(server.end().await, Drained::All);
}

#[tokio::test]
async fn whoever_may_open_the_unix_socket_needs_no_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listeners = vec![
        Listener::Tcp(TcpListener::bind("127.0.0.1:0").await.unwrap()),
        Listener::Unix(UnixListener::bind(&path).unwrap()),
    ];
    let Listener::Tcp(tcp) = &listeners[0] else { unreachable!("made above") };
    let address = tcp.local_addr().unwrap();
    let keys = ApiKeys { user: Vec::new(), admin: vec!["admin-key-of-some-length".to_owned()] };
    let (stop, stopped) = oneshot::channel::<()>();
    let app = App::new(Fake::new(), HttpOptions { keys, ..options() });
    let served = tokio::spawn(app.serve_all(listeners, async { drop(stopped.await) }, PATIENCE));
    let request = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut text = String::new();
    let mut unix = UnixStream::connect(&path).await.unwrap();
    unix.write_all(request).await.unwrap();
    unix.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let mut text = String::new();
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(request).await.unwrap();
    tcp.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 401"), "{text}");
    stop.send(()).unwrap();
    assert_eq!(served.await.unwrap().unwrap(), Drained::All);
}
