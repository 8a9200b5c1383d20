//! Requests that share one model: they take turns, one token or one piece of a prompt each.
//!
//! The KV caches of all of them together have as many places as the one cache the budget was planned with. A cache
//! grows with its answer. When places run out, caches kept for later turns of a chat go first, then the youngest
//! request gives its cache up and reads its tokens again when there is room; the oldest always moves on.
//!
//! A request whose prompt begins like one at work copies what that one has read.

use crate::ServiceError;
use crate::api::GenerationEvent;
use crate::drafting::{Answering, Engines};
use crate::served::Served;
use crate::stream::EventSink;
use secateur_generate::{
    DraftCounts, FinishReason, Finished, GenerateEvent, Generation, PREFILL_STEP, Sequence, Step, TokenModel,
};
use secateur_tokenizer::StreamDecoder;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Caches grow by so many places at least, so that they are not moved at every token.
const GROWTH_PLACES: usize = 64;
/// Fewer common tokens are sooner read again than copied.
const MIN_SHARED_TOKENS: usize = 16;

/// A request at work.
struct Active {
    generation: Generation<StreamDecoder>,
    /// Absent until its first turn, and after its places went to an older request.
    sequence: Option<Sequence<Answering>>,
    sink: EventSink,
    started: Instant,
    drafted: DraftCounts,
}

/// A request that has ended, for the counters.
pub(crate) struct Ended {
    pub(crate) result: Result<Finished, ServiceError>,
    pub(crate) sink: EventSink,
    pub(crate) seconds: f64,
    /// What became of a draft's guesses; absent without one.
    pub(crate) drafted: Option<DraftCounts>,
}

/// How the slots are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotLimits {
    /// Places of all caches together.
    pub(crate) places: usize,
    /// What a second sequence costs beside its places, in places.
    pub(crate) overhead: usize,
    /// Requests at work.
    pub(crate) parallel: usize,
}

impl SlotLimits {
    /// The limits of a model whose cache was planned with `context_len` places.
    pub(crate) fn new(engines: &Engines, served: &Served, parallel: usize) -> Self {
        let place_bytes = engines.place_bytes(served.kv_dtype).max(1);
        let overhead = engines.request_bytes().div_ceil(place_bytes) as usize;
        Self { places: served.context_len, overhead, parallel: parallel.max(1) }
    }
}

/// Requests at work and caches kept for later.
pub(crate) struct Slots {
    limits: SlotLimits,
    /// Oldest first.
    active: Vec<Active>,
    /// Least recently used first.
    idle: Vec<Sequence<Answering>>,
    /// Memory is short: one request at a time, no room to spare, nothing kept.
    is_tight: bool,
}

/// What a request gets for its turn.
enum Room {
    Yes,
    /// Older requests have the places, or are reading what this one needs.
    Wait,
}

impl Slots {
    pub(crate) fn new(limits: SlotLimits) -> Self {
        Self { limits, active: Vec::new(), idle: Vec::new(), is_tight: false }
    }

    pub(crate) fn n_active(&self) -> usize {
        self.active.len()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.active.len() < if self.is_tight { 1 } else { self.limits.parallel }
    }

    /// Takes a request in.
    pub(crate) fn admit(&mut self, generation: Generation<StreamDecoder>, sink: EventSink) {
        let (started, drafted) = (Instant::now(), DraftCounts::default());
        self.active.push(Active { generation, sequence: None, sink, started, drafted });
    }

    /// Says whether memory is short.
    pub(crate) fn set_tight(&mut self, is_tight: bool) {
        self.is_tight = is_tight;
    }

    /// Lets go of the caches kept for later turns.
    pub(crate) fn drop_idle(&mut self) {
        self.idle.clear();
    }

    /// Gives every request at work no more places than it needs now.
    pub(crate) fn shrink(&mut self) {
        for sequence in self.active.iter_mut().filter_map(|active| active.sequence.as_mut()) {
            let places = sequence.tokens().len().max(1);
            // Only a size of nothing is an error.
            let _ = sequence.model_mut().resize(places);
        }
    }

    /// Places for a computation beside the requests, when there are so many at the moment.
    pub(crate) fn spare(&mut self, places: usize) -> bool {
        let needed = places + self.limits.overhead;
        while self.limits.places < self.used() + needed && !self.idle.is_empty() {
            self.idle.remove(0);
        }
        self.used() + needed <= self.limits.places || self.used() == 0
    }

    /// Moves every request on by one step, and returns those that have ended.
    pub(crate) fn turn(
        &mut self,
        engines: &Engines,
        served: &Served,
        tick: &dyn Fn(),
        must_end: &dyn Fn() -> bool,
    ) -> Vec<Ended> {
        let mut ended = Vec::new();
        let mut idx = 0;
        while idx < self.active.len() {
            let result = self.move_on(idx, engines, served, tick, must_end);
            match result {
                None => idx += 1,
                Some(result) => {
                    let Active { sequence, sink, started, drafted, .. } = self.active.remove(idx);
                    self.idle.extend(sequence.filter(|sequence| !sequence.tokens().is_empty()));
                    let kept = if self.is_tight { 0 } else { self.limits.parallel };
                    while kept < self.idle.len() {
                        self.idle.remove(0);
                    }
                    let drafted = engines.draft.is_some().then_some(drafted);
                    ended.push(Ended { result, sink, seconds: started.elapsed().as_secs_f64(), drafted });
                }
            }
        }
        ended
    }

    /// The end of the request, or `None` when it goes on.
    fn move_on(
        &mut self,
        idx: usize,
        engines: &Engines,
        served: &Served,
        tick: &dyn Fn(),
        must_end: &dyn Fn() -> bool,
    ) -> Option<Result<Finished, ServiceError>> {
        let is_over = self.active[idx].sink.is_cancelled() || must_end();
        if is_over && self.active[idx].sequence.is_none() {
            return Some(Ok(cancelled()));
        }
        // The step of a request that is over only tells how far it came.
        let room = if is_over { Ok(Room::Yes) } else { self.make_room(idx, engines, served) };
        match room {
            Ok(Room::Yes) => {}
            Ok(Room::Wait) => return None,
            Err(error) => return Some(Err(error)),
        }
        let Active { generation, sequence, sink, drafted, .. } = &mut self.active[idx];
        let sequence_now = sequence.as_mut()?;
        let cancelled = || {
            tick();
            sink.is_cancelled() || must_end()
        };
        let mut on_event = |event| {
            send(served, sink, event);
            ControlFlow::Continue(())
        };
        let step =
            catch_unwind(AssertUnwindSafe(|| generation.step(sequence_now, &cancelled, &mut on_event)));
        *drafted += sequence_now.model_mut().take_counts();
        match step {
            Ok(Ok(Step::More)) => None,
            Ok(Ok(Step::Finished(finished))) => Some(Ok(finished)),
            Ok(Err(error)) => Some(Err(error.into())),
            Err(_) => {
                // What the cache holds is unknown after a panic.
                *sequence = None;
                let message = "generation panicked; see the log".to_owned();
                Some(Err(ServiceError::Internal { message }))
            }
        }
    }

    /// Places in use, with what sequences cost beside them. The plan covers the buffers of one sequence.
    fn used(&self) -> usize {
        let sequences = self.active.iter().filter_map(|active| active.sequence.as_ref()).chain(&self.idle);
        let (n, places) = sequences
            .fold((0_usize, 0), |(n, places), sequence| (n + 1, places + sequence.model().context_len()));
        places + n.saturating_sub(1) * self.limits.overhead
    }

    /// Sees to it that the request has a cache with places for its next step.
    fn make_room(&mut self, idx: usize, engines: &Engines, served: &Served) -> Result<Room, ServiceError> {
        if self.active[idx].sequence.is_none() {
            if self.waits_for_a_prefix(idx) {
                return Ok(Room::Wait);
            }
            self.take_idle(idx);
        }
        let (has, kept) = match &self.active[idx].sequence {
            Some(sequence) => (sequence.model().context_len(), sequence.tokens().len()),
            None => (0, 0),
        };
        let needed = match &self.active[idx].sequence {
            Some(sequence) => self.active[idx].generation.places_needed(sequence),
            None => self.active[idx].generation.tokens().len().min(PREFILL_STEP),
        };
        if needed <= has {
            return Ok(Room::Yes);
        }
        let generous = match self.is_tight {
            true => needed,
            false => needed.max(has + has / 2).next_multiple_of(GROWTH_PLACES).min(served.context_len),
        };
        let extra = if has == 0 && 0 < self.n_sequences() { self.limits.overhead } else { 0 };
        let free = |slots: &Self, places: usize| slots.used() - has + places + extra <= slots.limits.places;
        while !free(self, generous) && !self.idle.is_empty() {
            self.idle.remove(0);
        }
        let places = if free(self, generous) { generous } else { needed };
        while !free(self, places) {
            let youngest = (idx + 1..self.active.len()).rev().find(|&at| self.active[at].sequence.is_some());
            let Some(youngest) = youngest else { break };
            self.active[youngest].sequence = None;
        }
        // The first one may always have all there is.
        if !free(self, places) && 0 < idx {
            return Ok(Room::Wait);
        }
        match &mut self.active[idx].sequence {
            Some(sequence) => sequence.model_mut().resize(places)?,
            None => self.active[idx].sequence = Some(self.start(idx, places, engines, served)?),
        }
        debug_assert!(kept <= places);
        Ok(Room::Yes)
    }

    fn n_sequences(&self) -> usize {
        self.active.iter().filter(|active| active.sequence.is_some()).count() + self.idle.len()
    }

    /// A fresh cache, or a copy of what a request at work has read of the same prompt.
    fn start(
        &self,
        idx: usize,
        places: usize,
        engines: &Engines,
        served: &Served,
    ) -> Result<Sequence<Answering>, ServiceError> {
        let wanted = self.active[idx].generation.tokens();
        let shared = |sequence: &&Sequence<Answering>| sequence.common_prefix(wanted);
        let others = self.active.iter().filter_map(|active| active.sequence.as_ref()).chain(&self.idle);
        if let Some(model) = others.max_by_key(shared) {
            let n_shared = model.common_prefix(wanted).min(places);
            if MIN_SHARED_TOKENS <= n_shared {
                let fork = model.model().fork(n_shared, places)?;
                return Ok(Sequence::holding(fork, wanted[..n_shared].to_vec()));
            }
        }
        Ok(Sequence::new(engines.session(places, served.kv_dtype)?))
    }

    /// True while an older request reads a piece of the prompt that this one could copy.
    fn waits_for_a_prefix(&self, idx: usize) -> bool {
        let wanted = self.active[idx].generation.tokens();
        self.active[..idx].iter().any(|older| {
            let tokens = older.generation.tokens();
            let common = tokens.iter().zip(wanted).take_while(|(a, b)| a == b).count();
            let has_read = older.sequence.as_ref().map_or(0, |sequence| sequence.tokens().len());
            MIN_SHARED_TOKENS <= common && has_read + MIN_SHARED_TOKENS <= common
        })
    }

    /// Gives the request the kept cache that begins most like it, when that saves work or there is no other.
    fn take_idle(&mut self, idx: usize) {
        let wanted = self.active[idx].generation.tokens();
        let best = (0..self.idle.len()).max_by_key(|&at| self.idle[at].common_prefix(wanted));
        let Some(best) = best else { return };
        let cache = &self.idle[best];
        let common = cache.common_prefix(wanted);
        // A cache that goes on with something else may be wanted again by its own chat: it is copied instead.
        if 0 < common && cache.tokens().len() <= 2 * common {
            self.active[idx].sequence = Some(self.idle.remove(best));
        }
    }
}

/// The end of a request that nobody waits for any more, or that must not go on.
fn cancelled() -> Finished {
    Finished {
        reason: FinishReason::Cancelled,
        stop_string: None,
        usage: secateur_generate::Usage::default(),
        timings: secateur_generate::Timings::default(),
    }
}

fn send(served: &Served, sink: &EventSink, event: GenerateEvent) {
    match event {
        GenerateEvent::Prefilled { prompt_tokens, cached_tokens } => {
            sink.send(GenerationEvent::Started { prompt_tokens, cached_tokens });
        }
        GenerateEvent::Delta { text, logprobs } => {
            let logprobs = logprobs.iter().map(|token| served.logprobs_view(token)).collect();
            sink.send(GenerationEvent::Delta { text, logprobs });
        }
    }
}
