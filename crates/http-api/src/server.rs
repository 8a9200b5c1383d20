//! Accepts connections, with limits on their number and on their patience, and stops in good order.

use crate::App;
use crate::app::Phase;
use crate::guard::LocalPeer;
use axum::Extension;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Longest head of a request; hyper answers 431 beyond.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Most header lines of a request.
const MAX_HEADERS: usize = 100;
/// Pause after the system refused a connection, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time for the last events of streams to get out.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A connection's work, for one kind of stream or the other.
enum Either<L, R> {
    Left(L),
    Right(R),
}

/// What the end of serving was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every answer was given to its end.
    All,
    /// Some were ended by an error after the time limit.
    Cut,
}

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// A port.
    Tcp(TcpListener),
    /// A socket in the file system: whoever may open it needs no key.
    Unix(UnixListener),
}

/// A connection of either kind.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Tokens are small packets that should not wait for each other.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "no delay could not be set");
                }
                Ok(Stream::Tcp(stream))
            }
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        }
    }

    fn describe(&self) -> io::Result<String> {
        match self {
            Self::Tcp(listener) => Ok(listener.local_addr()?.to_string()),
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                Ok(address
                    .as_pathname()
                    .map_or("a socket without a name".to_owned(), |path| path.display().to_string()))
            }
        }
    }
}

/// The next connection on any of the listeners.
async fn accept_any(listeners: &[Listener]) -> io::Result<Stream> {
    let mut accepts: Vec<_> = listeners.iter().map(|listener| Box::pin(listener.accept())).collect();
    std::future::poll_fn(|cx| {
        let ready = accepts.iter_mut().find_map(|accept| match accept.as_mut().poll(cx) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        });
        ready.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

impl App {
    /// As [`Self::serve_all`], on one port.
    ///
    /// # Errors
    /// When the listener has no address: it was not bound.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
        drain: Duration,
    ) -> io::Result<Drained> {
        self.serve_all(vec![Listener::Tcp(listener)], shutdown, drain).await
    }

    /// Serves until `shutdown` is ready; then takes no new connections, ends endless streams, and waits up to `drain`
    /// for requests at work. What is left then ends with an error that says why.
    ///
    /// # Errors
    /// When a listener has no address: it was not bound.
    pub async fn serve_all(
        self,
        listeners: Vec<Listener>,
        shutdown: impl Future<Output = ()>,
        drain: Duration,
    ) -> io::Result<Drained> {
        for listener in &listeners {
            tracing::info!(address = listener.describe()?, "listening");
        }
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
                (accept_any(&listeners).await, place)
            };
            let (accepted, place) = tokio::select! {
                accepted = accepted => accepted,
                Some(_) = connections.join_next() => continue,
                () = &mut shutdown => break,
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let connection = match stream {
                Stream::Tcp(stream) => {
                    let service = TowerToHyperService::new(self.router.clone());
                    Either::Left(graceful.watch(http.serve_connection(TokioIo::new(stream), service)))
                }
                Stream::Unix(stream) => {
                    let router = self.router.clone().layer(Extension(LocalPeer));
                    let service = TowerToHyperService::new(router);
                    Either::Right(graceful.watch(http.serve_connection(TokioIo::new(stream), service)))
                }
            };
            connections.spawn(async move {
                let ended = match connection {
                    Either::Left(connection) => connection.await,
                    Either::Right(connection) => connection.await,
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection broke");
                }
                drop(place);
            });
        }
        drop(listeners);
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
