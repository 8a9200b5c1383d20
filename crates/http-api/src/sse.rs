//! Server-sent events out of a source that is asked for the next event.

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio_stream::Stream;

/// A source of server-sent events.
pub(crate) trait EventSource: Send + 'static {
    /// The next event; `None` ends the stream.
    fn next(&mut self) -> impl Future<Output = Option<Event>> + Send;
}

type Step<S> = Pin<Box<dyn Future<Output = (Option<Event>, S)> + Send>>;

/// The stream over a source. The source lives in the step at work, so dropping the stream drops it at once.
struct SourceStream<S> {
    step: Option<Step<S>>,
}

fn step<S: EventSource>(mut source: S) -> Step<S> {
    Box::pin(async move {
        let event = source.next().await;
        (event, source)
    })
}

impl<S: EventSource> Stream for SourceStream<S> {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(running) = self.step.as_mut() else { return Poll::Ready(None) };
        let Poll::Ready((event, source)) = running.as_mut().poll(cx) else { return Poll::Pending };
        self.step = event.is_some().then(|| step(source));
        Poll::Ready(event.map(Ok))
    }
}

/// The answer that streams a source, with comments while it is silent.
pub(crate) fn respond<S: EventSource>(source: S, ping_interval: Duration) -> Response {
    let stream = SourceStream { step: Some(step(source)) };
    Sse::new(stream).keep_alive(KeepAlive::new().interval(ping_interval).text("ping")).into_response()
}

/// An event with JSON data. Serialised values hold no raw line breaks, so the data is one line.
pub(crate) fn json_event(value: &Value) -> Event {
    Event::default().data(value.to_string())
}
