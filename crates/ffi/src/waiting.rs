//! Waiting for a future on the caller's own thread, without a runtime.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs `future` to its end. The future must not need a runtime: channels and our own streams do not.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    match drive(future, None) {
        Some(output) => output,
        None => unreachable!("without a time limit the wait ends with the future"),
    }
}

/// As [`block_on`], but gives up after `limit`.
pub(crate) fn block_on_for<F: Future>(future: F, limit: Duration) -> Option<F::Output> {
    drive(future, Some(Instant::now() + limit))
}

fn drive<F: Future>(future: F, deadline: Option<Instant>) -> Option<F::Output> {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        // A wake between poll and park leaves a token, so that park returns at once.
        match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            None => std::thread::park(),
            Some(Duration::ZERO) => return None,
            Some(left) => std::thread::park_timeout(left),
        }
    }
}

/// What came first.
pub(crate) enum First<A, B> {
    /// The first future.
    A(A),
    /// The second.
    B(B),
}

/// Waits for the first of two futures; the first one wins a tie.
pub(crate) async fn first<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> First<A, B> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    std::future::poll_fn(|context| match a.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(First::A(output)),
        Poll::Pending => b.as_mut().poll(context).map(First::B),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[test]
    fn waits_across_threads_and_takes_the_first() {
        let (sender, receiver) = oneshot::channel();
        let thread = std::thread::spawn(move || sender.send(7));
        assert_eq!(block_on(receiver), Ok(7));
        thread.join().unwrap().unwrap();
        assert_eq!(block_on_for(std::future::pending::<()>(), Duration::from_millis(1)), None);
        assert_eq!(block_on_for(async { 4 }, Duration::ZERO), Some(4));
        let never = std::future::pending::<()>();
        assert!(matches!(block_on(first(never, async { 3 })), First::B(3)));
        assert!(matches!(block_on(first(async { 1 }, async { 2 })), First::A(1)));
    }
}
