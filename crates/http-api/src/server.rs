//! Accepts connections, with limits on their number and on their patience, and stops in good order.

use crate::App;
use crate::app::Phase;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Longest head of a request; hyper answers 431 beyond.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Most header lines of a request.
const MAX_HEADERS: usize = 100;
/// Pause after the system refused a connection, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time for the last events of streams to get out.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What the end of serving was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every answer was given to its end.
    All,
    /// Some were ended by an error after the time limit.
    Cut,
}

impl App {
    /// Serves until `shutdown` is ready; then takes no new connections, ends endless streams, and waits up to `drain`
    /// for requests at work. What is left then ends with an error that says why.
    ///
    /// # Errors
    /// When the listener has no address: it was not bound.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
        drain: Duration,
    ) -> io::Result<Drained> {
        let address = listener.local_addr()?;
        tracing::info!(%address, "listening");
        let options = &self.shared.options;
        let places = Arc::new(Semaphore::new(options.max_connections));
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(options.header_timeout)
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEADERS);
        let graceful = GracefulShutdown::new();
        let mut shutdown = pin!(shutdown);
        let mut connections = tokio::task::JoinSet::new();
        loop {
            // A place first: without one, connections wait in the system's queue.
            let accepted = async {
                let place = places.clone().acquire_owned().await;
                (listener.accept().await, place)
            };
            let (accepted, place) = tokio::select! {
                accepted = accepted => accepted,
                Some(_) = connections.join_next() => continue,
                () = &mut shutdown => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Tokens are small packets that should not wait for each other.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "no delay could not be set");
            }
            let service = TowerToHyperService::new(self.router.clone());
            let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
            connections.spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection broke");
                }
                drop(place);
            });
        }
        drop(listener);
        self.shared.enter(Phase::Draining);
        let mut ended = pin!(graceful.shutdown());
        let in_time = tokio::time::timeout(drain, &mut ended).await.is_ok();
        if !in_time {
            self.shared.enter(Phase::Ending);
            if tokio::time::timeout(LAST_WORDS, ended).await.is_err() {
                tracing::warn!("clients that do not read were cut off");
            }
        }
        connections.shutdown().await;
        Ok(if in_time { Drained::All } else { Drained::Cut })
    }
}
