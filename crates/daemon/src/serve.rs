//! `secateur serve`: the port answers at once, the model is made ready behind it.

use crate::confine::{Confinement, confine};
use crate::failure::{Failure, IO, OK, SOFTWARE, UNAVAILABLE};
use crate::keys::{read_credential, read_keys};
use crate::logging;
use crate::notify::{self, feed_watchdog, follow_status, send};
use crate::output;
use crate::settings::Settings;
use crate::signals::{Signals, hangup};
use sd_notify::NotifyState;
use secateur_http_api::{Access, AccessControl, ApiKeys, App, HttpOptions, Listener};
use secateur_service::{Service, ServiceHandle, ServiceOptions};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;

/// Threads for connections; all heavy work is done elsewhere.
const WORKER_THREADS: usize = 1;
/// Threads for calls that take milliseconds.
const BLOCKING_THREADS: usize = 4;
/// Stack of each; deep enough for templates, whose depth is limited.
const STACK_BYTES: usize = 1 << 20;
/// Time beyond the drain in which everything must have ended.
const STOP_GRACE: Duration = Duration::from_millis(1500);

/// Serves until a signal.
/// # Errors
/// [`Failure`] when it cannot start, or the compute thread broke.
pub(crate) fn serve(settings: &Settings, again: &Again<'_>, json: bool) -> Result<ExitCode, Failure> {
    let http = http_options(settings)?;
    let address = address(settings, &http)?;
    let sockets = Sockets::bind(address, settings.socket.as_deref())?;
    // Before any other thread exists: a confinement covers the thread that asks for it and those it starts.
    if settings.confine {
        confine_process(settings);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(SOFTWARE, "internal", format!("no runtime: {error}")))?;
    let result = runtime.block_on(run(settings, again, http, sockets, json));
    // Nothing that still blocks may keep the process alive.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// Reads the settings again, as at the start.
pub(crate) type Again<'a> = dyn Fn() -> Result<Settings, Failure> + Sync + 'a;

fn access(settings: &Settings) -> Result<Access, Failure> {
    let keys = match (&settings.api_key_file, Settings::credential()) {
        (Some(path), _) => read_keys(path)?,
        (None, Some(path)) => read_credential(&path)?,
        (None, None) => ApiKeys::default(),
    };
    let (allowed_hosts, cors_origins) = (settings.allowed_hosts.clone(), settings.cors_origins.clone());
    Ok(Access { allowed_hosts, cors_origins, keys })
}

fn http_options(settings: &Settings) -> Result<HttpOptions, Failure> {
    let Access { allowed_hosts, cors_origins, keys } = access(settings)?;
    Ok(HttpOptions { allowed_hosts, cors_origins, keys, ..HttpOptions::default() })
}

fn confine_process(settings: &Settings) {
    if let Err(error) = std::fs::create_dir_all(&settings.state_dir) {
        tracing::debug!(%error, "the state folder could not be made yet");
    }
    let models = [&settings.model, &settings.draft].into_iter().flatten().map(Path::new);
    match confine(settings, models) {
        Ok(how @ (Confinement::Full | Confinement::Partial)) => tracing::info!(?how, "confined by landlock"),
        Ok(Confinement::None) => tracing::info!("this kernel has no landlock; the process is not confined"),
        Err(error) => tracing::warn!(%error, "landlock refused; the process is not confined"),
    }
}

/// Bound sockets.
struct Sockets {
    tcp: std::net::TcpListener,
    address: SocketAddr,
    unix: Option<std::os::unix::net::UnixListener>,
}

impl Sockets {
    fn bind(address: SocketAddr, socket: Option<&Path>) -> Result<Self, Failure> {
        let tcp = std::net::TcpListener::bind(address).map_err(|error| bind_failure(address, &error))?;
        let address = tcp.local_addr().map_err(|error| bind_failure(address, &error))?;
        Ok(Self { tcp, address, unix: socket.map(bind_unix).transpose()? })
    }

    /// Hands them to the runtime.
    fn listeners(self) -> std::io::Result<Vec<Listener>> {
        self.tcp.set_nonblocking(true)?;
        let mut listeners = vec![Listener::Tcp(TcpListener::from_std(self.tcp)?)];
        if let Some(unix) = self.unix {
            unix.set_nonblocking(true)?;
            listeners.push(Listener::Unix(UnixListener::from_std(unix)?));
        }
        Ok(listeners)
    }
}

/// A socket that only its owner and group may open; one that a killed process left is replaced.
fn bind_unix(path: &Path) -> Result<std::os::unix::net::UnixListener, Failure> {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    let failed = |error: std::io::Error| Failure::new(IO, "io", format!("{}: {error}", path.display()));
    if UnixStream::connect(path).is_ok() {
        let message = format!("{} is taken (is a service running already?)", path.display());
        return Err(Failure::new(UNAVAILABLE, "address_in_use", message));
    }
    let is_socket =
        |metadata: std::fs::Metadata| std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type());
    if std::fs::symlink_metadata(path).is_ok_and(is_socket) {
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

/// Where to listen; anything but loopback needs a key.
fn address(settings: &Settings, http: &HttpOptions) -> Result<SocketAddr, Failure> {
    let host = settings.host.trim_matches(['[', ']']);
    let ip: IpAddr = match host {
        "localhost" => IpAddr::from([127, 0, 0, 1]),
        host => host.parse().map_err(|_| {
            Failure::usage(format!("--host `{host}`: give an IP address such as 127.0.0.1, ::1 or 0.0.0.0"))
        })?,
    };
    if !ip.is_loopback() && http.keys.is_open() {
        return Err(Failure::usage(format!(
            "--host {ip} can be reached from other machines: give --api-key-file with a file of keys, or stay on \
             127.0.0.1"
        )));
    }
    Ok(SocketAddr::new(ip, settings.port))
}

async fn run(
    settings: &Settings,
    again: &Again<'_>,
    http: HttpOptions,
    sockets: Sockets,
    json: bool,
) -> Result<ExitCode, Failure> {
    let mut signals =
        Signals::new().map_err(|error| Failure::new(SOFTWARE, "internal", error.to_string()))?;
    let mut hangups = hangup().map_err(|error| Failure::new(SOFTWARE, "internal", error.to_string()))?;
    let address = sockets.address;
    let listeners = sockets.listeners().map_err(|error| bind_failure(address, &error))?;
    let service = Service::start(service_options(settings))?;
    let handle = service.handle();
    announce(address, json)?;
    send(&[NotifyState::Ready]);
    tokio::spawn(follow_status(handle.clone()));
    tokio::spawn(feed_watchdog(handle.clone()));
    let drain = Duration::from_secs(settings.drain_s);
    let (stop, stopped) = oneshot::channel::<()>();
    let app = App::new(handle.clone(), http);
    let access_control = app.access_control();
    let server = tokio::spawn(app.serve_all(listeners, async { drop(stopped.await) }, drain));
    let broke = loop {
        tokio::select! {
            signal = signals.next() => {
                tracing::info!(signal, drain_s = settings.drain_s, "stopping");
                break false;
            }
            _ = hangups.recv() => reload(settings, again, &access_control),
            () = handle.stopped() => break true,
        }
    };
    send(&[NotifyState::Stopping]);
    // Dropping it would do as well.
    let _ = stop.send(());
    let ended = tokio::select! {
        ended = tokio::time::timeout(drain + STOP_GRACE, end(&handle, server, drain)) => ended.is_ok(),
        signal = signals.next() => {
            tracing::warn!(signal, "second signal: ending at once");
            std::process::exit(i32::from(UNAVAILABLE));
        }
    };
    if broke {
        return Err(Failure::new(SOFTWARE, "internal", "the compute thread has broken; see the log"));
    }
    if ended {
        service.join();
        tracing::info!("stopped");
        return Ok(ExitCode::from(OK));
    }
    // A step of the pruner may take longer. What it has done lies on the disk, and a kill at any moment is safe.
    tracing::warn!("ending in the middle of a step");
    std::process::exit(i32::from(OK));
}

/// Takes over what may change while the service runs: keys, hosts, origins and the log.
fn reload(settings: &Settings, again: &Again<'_>, access_control: &AccessControl) {
    notify::reloading();
    match again().and_then(|new| Ok((access(&new)?, logging::reload(&new, "info")?, new))) {
        // What was refused at the start is refused here: a service that others can reach keeps its keys.
        Ok((access, (), _)) if access.keys.is_open() && !is_loopback(settings) => {
            tracing::error!(
                "the configuration names no key, but others can reach the service; all stays as it was"
            );
        }
        Ok((access, (), new)) => {
            access_control.set(&access);
            let names = settings.changes_that_need_a_restart(&new);
            if names.is_empty() {
                tracing::info!("the configuration was read again");
            } else {
                tracing::warn!(settings = names.join(", "), "read again; these settings need a restart");
            }
        }
        Err(failure) => tracing::error!(?failure, "the configuration is wrong; all stays as it was"),
    }
    send(&[NotifyState::Ready]);
}

fn is_loopback(settings: &Settings) -> bool {
    let host = settings.host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Lets requests finish on both sides at the same time.
async fn end(
    handle: &ServiceHandle,
    server: tokio::task::JoinHandle<std::io::Result<secateur_http_api::Drained>>,
    drain: Duration,
) {
    let (served, ()) = tokio::join!(server, handle.shutdown(drain));
    match served {
        Ok(Ok(drained)) => tracing::info!(?drained, "connections have ended"),
        Ok(Err(error)) => tracing::warn!(%error, "the server ended with an error"),
        Err(error) => tracing::error!(%error, "the server has broken"),
    }
}

fn service_options(settings: &Settings) -> ServiceOptions {
    ServiceOptions {
        model: settings.model.clone(),
        draft: settings.draft.clone(),
        memory_budget: settings.memory_budget.clone(),
        n_threads: settings.threads,
        precision: settings.precision.clone(),
        queue_len: settings.queue_len,
        parallel: settings.parallel,
        prune: settings.prune(None),
        ..ServiceOptions::new(settings.state_dir.clone())
    }
}

fn bind_failure(address: SocketAddr, error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::AddrInUse => Failure::new(
            UNAVAILABLE,
            "address_in_use",
            format!("{address} is taken (is a service running already?); give another --port"),
        ),
        _ => Failure::new(IO, "io", format!("{address}: {error}")),
    }
}

fn announce(address: SocketAddr, json: bool) -> Result<(), Failure> {
    let url = format!("http://{address}");
    if json {
        return output::print(&serde_json::json!({ "url": url, "pid": std::process::id() }).to_string());
    }
    output::print(&format!("secateur listens on {url}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_goes_without_a_key() {
        let open = HttpOptions::default();
        let at = |host: &str| address(&Settings { host: host.into(), ..Settings::default() }, &open);
        for host in ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"] {
            assert!(at(host).is_ok(), "{host}");
        }
        for host in ["0.0.0.0", "::", "192.168.0.7", "::ffff:127.0.0.1"] {
            assert!(format!("{:?}", at(host).unwrap_err()).contains("--api-key-file"), "{host}");
        }
        assert!(at("example.org").is_err());
        let mut keyed = HttpOptions::default();
        keyed.keys.admin.push("0123456789abcdef".into());
        let everywhere = Settings { host: "0.0.0.0".into(), ..Settings::default() };
        assert!(address(&everywhere, &keyed).is_ok());
    }
}
