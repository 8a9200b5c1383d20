//! `secateur serve`: the port answers at once, the model is made ready behind it.

use crate::failure::{Failure, IO, OK, SOFTWARE, UNAVAILABLE};
use crate::keys::read_keys;
use crate::notify::{feed_watchdog, follow_status, send};
use crate::output;
use crate::settings::Settings;
use crate::signals::Signals;
use sd_notify::NotifyState;
use secateur_http_api::{App, HttpOptions};
use secateur_service::{Service, ServiceHandle, ServiceOptions};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Threads for connections; all heavy work is done elsewhere.
const WORKER_THREADS: usize = 1;
/// Threads for calls that take milliseconds.
const BLOCKING_THREADS: usize = 4;
/// Stack of each; deep enough for templates, whose depth is limited.
const STACK_BYTES: usize = 1 << 20;
/// Time beyond the drain in which everything must have ended.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Serves until a signal.
/// # Errors
/// [`Failure`] when it cannot start, or the compute thread broke.
pub(crate) fn serve(settings: &Settings, json: bool) -> Result<ExitCode, Failure> {
    let http = http_options(settings)?;
    let address = address(settings, &http)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(SOFTWARE, "internal", format!("no runtime: {error}")))?;
    let result = runtime.block_on(run(settings, http, address, json));
    // Nothing that still blocks may keep the process alive.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

fn http_options(settings: &Settings) -> Result<HttpOptions, Failure> {
    let keys = settings.api_key_file.as_deref().map(read_keys).transpose()?.unwrap_or_default();
    Ok(HttpOptions { allowed_hosts: settings.allowed_hosts.clone(), keys, ..HttpOptions::default() })
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
    http: HttpOptions,
    address: SocketAddr,
    json: bool,
) -> Result<ExitCode, Failure> {
    let mut signals =
        Signals::new().map_err(|error| Failure::new(SOFTWARE, "internal", error.to_string()))?;
    let listener = TcpListener::bind(address).await.map_err(|error| bind_failure(address, &error))?;
    let address = listener.local_addr().map_err(|error| bind_failure(address, &error))?;
    let service = Service::start(service_options(settings))?;
    let handle = service.handle();
    announce(address, json)?;
    send(&[NotifyState::Ready]);
    tokio::spawn(follow_status(handle.clone()));
    tokio::spawn(feed_watchdog(handle.clone()));
    let drain = Duration::from_secs(settings.drain_s);
    let (stop, stopped) = oneshot::channel::<()>();
    let app = App::new(handle.clone(), http);
    let server = tokio::spawn(app.serve(listener, async { drop(stopped.await) }, drain));
    let broke = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, drain_s = settings.drain_s, "stopping");
            false
        }
        () = handle.stopped() => true,
    };
    send(&[NotifyState::Stopping]);
    // Dropping it would do as well.
    let _ = stop.send(());
    let ended = tokio::select! {
        ended = tokio::time::timeout(drain + STOP_GRACE, end(&handle, server, drain)) => ended.is_ok(),
        signal = signals.next() => {
            tracing::warn!(signal, "second signal: ending at once");
            false
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
    std::process::exit(i32::from(UNAVAILABLE));
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
        memory_budget: settings.memory_budget.clone(),
        n_threads: settings.threads,
        precision: settings.precision.clone(),
        queue_len: settings.queue_len,
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
