//! The bounded queue in front of the compute thread.
//!
//! Requests and control commands wait in separate lanes: requests are bounded and may be taken while a job is
//! at work; control commands are few and are taken when the thread is free.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Why a command was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    /// All places are taken.
    Full,
    /// The queue is closed.
    Closed,
}

struct Lanes<R, C> {
    requests: VecDeque<R>,
    controls: VecDeque<C>,
    closed: bool,
}

/// A queue of requests `R` and control commands `C`.
pub(crate) struct Queue<R, C> {
    lanes: Mutex<Lanes<R, C>>,
    changed: Condvar,
    max_requests: usize,
}

/// What the compute thread gets.
pub(crate) enum Next<R, C> {
    Request(R),
    Control(C),
    /// The queue is closed and empty.
    Closed,
}

impl<R, C> Queue<R, C> {
    pub(crate) fn new(max_requests: usize) -> Self {
        let lanes = Lanes { requests: VecDeque::new(), controls: VecDeque::new(), closed: false };
        Self { lanes: Mutex::new(lanes), changed: Condvar::new(), max_requests }
    }

    fn lock(&self) -> MutexGuard<'_, Lanes<R, C>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request.
    pub(crate) fn push_request(&self, request: R) -> Result<(), PushError> {
        let mut lanes = self.lock();
        if lanes.closed {
            return Err(PushError::Closed);
        }
        if self.max_requests <= lanes.requests.len() {
            return Err(PushError::Full);
        }
        lanes.requests.push_back(request);
        self.changed.notify_one();
        Ok(())
    }

    /// Adds a control command; the callers bound their number.
    pub(crate) fn push_control(&self, control: C) -> Result<(), PushError> {
        let mut lanes = self.lock();
        if lanes.closed {
            return Err(PushError::Closed);
        }
        lanes.controls.push_back(control);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for something to do: control commands first, they are short or were waited for longer.
    pub(crate) fn next(&self) -> Next<R, C> {
        let mut lanes = self.lock();
        loop {
            if let Some(control) = lanes.controls.pop_front() {
                return Next::Control(control);
            }
            if let Some(request) = lanes.requests.pop_front() {
                return Next::Request(request);
            }
            if lanes.closed {
                return Next::Closed;
            }
            lanes = self.changed.wait(lanes).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes a waiting control command, if there is one.
    pub(crate) fn try_control(&self) -> Option<C> {
        self.lock().controls.pop_front()
    }

    /// True when nothing more is taken.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Takes a waiting request, if there is one.
    pub(crate) fn try_request(&self) -> Option<R> {
        self.lock().requests.pop_front()
    }

    /// Requests that wait.
    pub(crate) fn n_requests(&self) -> usize {
        self.lock().requests.len()
    }

    /// Places for requests.
    pub(crate) fn max_requests(&self) -> usize {
        self.max_requests
    }

    /// Takes nothing more; what waits can still be had.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_bounded_and_what_waits_outlives_closing() {
        let queue = Queue::<u32, &str>::new(2);
        assert_eq!(queue.push_request(1), Ok(()));
        assert_eq!(queue.push_request(2), Ok(()));
        assert_eq!(queue.push_request(3), Err(PushError::Full));
        assert_eq!(queue.push_control("job"), Ok(()));
        queue.close();
        assert_eq!(queue.push_request(4), Err(PushError::Closed));
        assert_eq!(queue.push_control("late"), Err(PushError::Closed));
        assert!(matches!(queue.next(), Next::Control("job")));
        assert_eq!(queue.try_request(), Some(1));
        assert!(matches!(queue.next(), Next::Request(2)));
        assert!(matches!(queue.next(), Next::Closed));
    }

    #[test]
    fn a_waiting_thread_is_woken() {
        let queue = std::sync::Arc::new(Queue::<u32, ()>::new(1));
        let taker = {
            let queue = queue.clone();
            std::thread::spawn(move || match queue.next() {
                Next::Request(request) => Some(request),
                _ => None,
            })
        };
        queue.push_request(7).unwrap();
        assert_eq!(taker.join().unwrap(), Some(7));
        queue.close();
        assert!(matches!(queue.next(), Next::Closed));
    }
}
