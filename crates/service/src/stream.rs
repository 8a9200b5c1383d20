//! The way of one request's events from the compute thread to its reader.
//!
//! The writer never waits: a reader that is slow gets several deltas in one, so at most four events lie between
//! the two and their size is bounded by the answer. Dropping the reader cancels the request.

use crate::api::GenerationEvent;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Default)]
struct State {
    events: VecDeque<GenerationEvent>,
    waker: Option<Waker>,
    writer_gone: bool,
    reader_gone: bool,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // The state is whole after every statement under the lock.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the two ends.
pub(crate) fn event_channel() -> (EventSink, EventStream) {
    let state = Arc::new(Mutex::new(State::default()));
    (EventSink { state: state.clone() }, EventStream { state })
}

/// The writing end.
pub(crate) struct EventSink {
    state: Arc<Mutex<State>>,
}

impl EventSink {
    /// True when nobody reads any more: the request shall end.
    pub(crate) fn is_cancelled(&self) -> bool {
        lock(&self.state).reader_gone
    }

    /// Hands an event over; joins it to a delta that has not been read yet.
    pub(crate) fn send(&self, event: GenerationEvent) {
        let mut state = lock(&self.state);
        match (state.events.back_mut(), event) {
            (
                Some(GenerationEvent::Delta { text, logprobs }),
                GenerationEvent::Delta { text: more, logprobs: more_logprobs },
            ) => {
                text.push_str(&more);
                logprobs.extend(more_logprobs);
            }
            (_, event) => state.events.push_back(event),
        }
        wake(state);
    }
}

/// Wakes the reader after letting go of the lock, which it needs.
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Drop for EventSink {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.writer_gone = true;
        wake(state);
    }
}

/// The reading end of a request. Dropping it cancels the request within one token.
pub struct EventStream {
    state: Arc<Mutex<State>>,
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream").finish_non_exhaustive()
    }
}

impl EventStream {
    /// Polls for the next event; `None` after the last one.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<GenerationEvent>> {
        let mut state = lock(&self.state);
        if let Some(event) = state.events.pop_front() {
            return Poll::Ready(Some(event));
        }
        if state.writer_gone {
            return Poll::Ready(None);
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Waits for the next event; `None` after the last one. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<GenerationEvent> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.reader_gone = true;
        state.events.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(text: &str) -> GenerationEvent {
        GenerationEvent::Delta { text: text.to_owned(), logprobs: Vec::new() }
    }

    #[tokio::test]
    async fn a_slow_reader_gets_all_text_in_few_events() {
        let (sink, mut stream) = event_channel();
        sink.send(GenerationEvent::Started { prompt_tokens: 3, cached_tokens: 0 });
        for part in 0..10_000 {
            sink.send(delta(&format!("{part} ")));
        }
        assert!(lock(&sink.state).events.len() <= 2);
        let want: String = (0..10_000).map(|part| format!("{part} ")).collect();
        assert!(matches!(stream.next().await, Some(GenerationEvent::Started { .. })));
        match stream.next().await {
            Some(GenerationEvent::Delta { text, .. }) => assert_eq!(text, want),
            other => panic!("{other:?}"),
        }
        drop(sink);
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn events_wake_a_waiting_reader_and_dropping_it_cancels() {
        let (sink, mut stream) = event_channel();
        let writer = std::thread::spawn(move || {
            sink.send(delta("a"));
            while !sink.is_cancelled() {
                std::thread::yield_now();
            }
        });
        assert!(matches!(stream.next().await, Some(GenerationEvent::Delta { .. })));
        drop(stream);
        writer.join().unwrap();
    }
}
