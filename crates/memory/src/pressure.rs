//! What to give up when memory runs short, and when to take it back.
//!
//! [`PressureLadder`] is pure: it is fed with the time and what was measured, and says on which [`PressureStep`] the
//! service should stand. It climbs one step at a time, so that every step can show what it does, and comes down much
//! more slowly than it went up. [`PressureWatch`] is the kernel's word that tasks stall, by systemd's protocol or the
//! device's own file; without either the ladder is fed by the clock alone. [`wait_for_pressure`] waits for that word, and
//! for an end, at the same time.

use crate::status::{MIN_RESERVE_BYTES, MemoryStatus, reserve_bytes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{File, OpenOptions};
use std::io::{PipeReader, Write};
use std::os::fd::AsFd;
use std::time::Duration;

/// Share of the time in which tasks wait for memory that is too much: systemd's own default.
const HIGH_STALL_SHARE: f64 = 0.10;
/// Share below which things are well again.
const LOW_STALL_SHARE: f64 = 0.02;
/// A step is given this long to help before the next one.
const CLIMB_AFTER: Duration = Duration::from_secs(2);
/// Things must be well for this long before a step is taken back.
const DESCEND_AFTER: Duration = Duration::from_secs(30);

/// What is given up, each step with all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PressureStep {
    /// Nothing.
    #[default]
    Calm,
    /// Caches that only save work: prompts of earlier chats, tables of grammars.
    DropCaches,
    /// Room that requests at work have beyond their tokens; one request at a time.
    ShrinkCaches,
    /// Pages of the mapped model, which come back when they are read.
    GiveBackPages,
    /// New requests are told to come back.
    RefuseWork,
    /// The model.
    Unload,
    /// A smaller model is made in the background, to be served in its place.
    Replan,
}

impl PressureStep {
    /// All steps, from nothing to everything.
    pub const ALL: [Self; 7] = [
        Self::Calm,
        Self::DropCaches,
        Self::ShrinkCaches,
        Self::GiveBackPages,
        Self::RefuseWork,
        Self::Unload,
        Self::Replan,
    ];

    /// Place on the ladder, from 0.
    #[must_use]
    pub fn level(self) -> usize {
        self as usize
    }

    /// Name for the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::DropCaches => "drop caches",
            Self::ShrinkCaches => "shrink caches",
            Self::GiveBackPages => "give back pages",
            Self::RefuseWork => "refuse work",
            Self::Unload => "unload",
            Self::Replan => "plan a smaller model",
        }
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PressureSample {
    /// Stalled time since the start of the system or group, the worst of all sources.
    pub stalled_us: Option<u64>,
    /// What this process may grow to, its present memory included.
    pub available_bytes: u64,
    /// Its present memory.
    pub rss_bytes: u64,
    /// The kernel has just said that tasks stall.
    pub triggered: bool,
}

impl PressureSample {
    /// What a probe has read.
    #[must_use]
    pub fn of(status: &MemoryStatus, triggered: bool) -> Self {
        let stalled_us = status.pressure.iter().map(|pressure| pressure.some.total_us).max();
        Self {
            stalled_us,
            available_bytes: status.available_bytes,
            rss_bytes: status.process.rss_bytes,
            triggered,
        }
    }

    /// True when less than half of the reserve is left beside this process.
    fn is_short(&self) -> bool {
        let left = self.available_bytes.saturating_sub(self.rss_bytes);
        left < reserve_bytes(self.available_bytes).min(MIN_RESERVE_BYTES) / 2
    }
}

/// Where on the ladder the service stands.
#[derive(Clone, Debug, Default)]
pub struct PressureLadder {
    step: PressureStep,
    last: Option<(Duration, PressureSample)>,
    climbed_at: Option<Duration>,
    well_since: Option<Duration>,
}

impl PressureLadder {
    /// The present step.
    #[must_use]
    pub fn step(&self) -> PressureStep {
        self.step
    }

    /// Takes a measurement at the time `now` and returns the step to stand on.
    pub fn observe(&mut self, now: Duration, sample: PressureSample) -> PressureStep {
        let share = self.last.and_then(|(then, last)| stall_share(then, last, now, sample));
        self.last = Some((now, sample));
        let is_high =
            sample.triggered || sample.is_short() || share.is_some_and(|share| HIGH_STALL_SHARE <= share);
        let is_well = !is_high && share.is_none_or(|share| share < LOW_STALL_SHARE);
        if is_high {
            self.well_since = None;
            let may_climb = self.climbed_at.is_none_or(|then| CLIMB_AFTER <= now.saturating_sub(then));
            if may_climb && self.step != PressureStep::Replan {
                self.step = PressureStep::ALL[self.step.level() + 1];
                self.climbed_at = Some(now);
            }
        } else if !is_well {
            self.well_since = None;
        } else if self.step != PressureStep::Calm {
            let since = *self.well_since.get_or_insert(now);
            if DESCEND_AFTER <= now.saturating_sub(since) {
                self.step = PressureStep::ALL[self.step.level() - 1];
                self.well_since = Some(now);
            }
        }
        self.step
    }
}

/// Share of the time between two measurements in which tasks stalled.
fn stall_share(then: Duration, last: PressureSample, now: Duration, sample: PressureSample) -> Option<f64> {
    let elapsed_us = now.saturating_sub(then).as_micros() as f64;
    let stalled_us = sample.stalled_us?.saturating_sub(last.stalled_us?) as f64;
    (0.0 < elapsed_us).then(|| (stalled_us / elapsed_us).min(1.0))
}

/// The kernel's file that says when tasks stall.
#[derive(Debug)]
pub struct PressureWatch {
    file: File,
}

/// What systemd asks services to watch when it does not say.
const DEFAULT_TRIGGER: &[u8] = b"some 200000 2000000\0";
/// Windows of processes without privileges are multiples of two seconds.
const OWN_TRIGGER: &[u8] = b"some 150000 2000000\0";

impl PressureWatch {
    /// Starts watching what systemd names in `MEMORY_PRESSURE_WATCH`, or else the device's own file; `None` when
    /// neither can be watched.
    #[must_use]
    pub fn start() -> Option<Self> {
        match std::env::var("MEMORY_PRESSURE_WATCH") {
            // systemd's way to say that nothing is to be watched.
            Ok(path) if path == "/dev/null" => None,
            Ok(path) => {
                let trigger = std::env::var("MEMORY_PRESSURE_WRITE").ok().and_then(|text| from_base64(&text));
                Self::open(&path, trigger.as_deref().unwrap_or(DEFAULT_TRIGGER))
            }
            Err(_) => Self::open("/proc/pressure/memory", OWN_TRIGGER),
        }
    }

    fn open(path: &str, trigger: &[u8]) -> Option<Self> {
        let mut file = OpenOptions::new().read(true).write(true).open(path).ok()?;
        file.write_all(trigger).ok()?;
        Some(Self { file })
    }

    /// True while the watched group exists.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.file, PollFlags::PRI)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && !fds[0].revents().contains(PollFlags::ERR)
    }
}

/// Why a wait came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PressureWake {
    /// The time was over.
    Elapsed,
    /// The kernel says that tasks stall.
    Stalled,
    /// Nobody needs the answer any more.
    Ended,
}

/// Waits for the kernel's word, at most `limit`, and ends at once when the other side of `end` is closed.
#[must_use]
pub fn wait_for_pressure(watch: Option<&PressureWatch>, end: &PipeReader, limit: Duration) -> PressureWake {
    // Nothing is ever written to it; some systems tell a hang-up only to those who want to read.
    let mut fds = vec![PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN)];
    fds.extend(watch.map(|watch| PollFd::new(&watch.file, PollFlags::PRI)));
    let limit = Timespec::try_from(limit).ok();
    // A signal only makes the next look come early.
    if poll(&mut fds, limit.as_ref()).is_err() {
        return PressureWake::Elapsed;
    }
    let said = |idx: usize, what| fds.get(idx).is_some_and(|fd: &PollFd<'_>| fd.revents().intersects(what));
    if said(0, PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
        PressureWake::Ended
    } else if said(1, PollFlags::PRI) {
        PressureWake::Stalled
    } else {
        PressureWake::Elapsed
    }
}

/// Base64 (RFC 4648), padding and white space left out; `None` for anything else.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut n_bits) = (0_u32, 0);
    for byte in text.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        n_bits += 6;
        if 8 <= n_bits {
            n_bits -= 8;
            bytes.push((bits >> n_bits) as u8);
            bits &= (1 << n_bits) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use PressureStep::{Calm, DropCaches, GiveBackPages, RefuseWork, Replan, ShrinkCaches, Unload};

    const ROOMY: PressureSample = PressureSample {
        stalled_us: Some(0),
        available_bytes: 2 << 30,
        rss_bytes: 200 << 20,
        triggered: false,
    };

    /// The steps of a ladder that is fed every two seconds with shares of stalled time in per cent.
    fn steps(per_cent: &[u64]) -> Vec<PressureStep> {
        let mut ladder = PressureLadder::default();
        ladder.observe(Duration::ZERO, ROOMY);
        let mut stalled_us = 0;
        let mut steps = Vec::new();
        for (idx, share) in per_cent.iter().enumerate() {
            stalled_us += share * 20_000;
            let now = Duration::from_secs(2 * (idx as u64 + 1));
            steps.push(ladder.observe(now, PressureSample { stalled_us: Some(stalled_us), ..ROOMY }));
        }
        steps
    }

    #[test]
    fn it_climbs_one_step_at_a_time_and_stops_at_the_top() {
        let want = [DropCaches, ShrinkCaches, GiveBackPages, RefuseWork, Unload, Replan, Replan];
        assert_eq!(steps(&[50; 7]), want);
        assert_eq!(steps(&[9; 5]), [Calm; 5], "less than the threshold");
    }

    #[test]
    fn it_comes_down_slowly_and_only_when_things_are_well() {
        // Two steps up, then 29 s of peace: nothing yet; then one step for each half minute.
        let mut shares = vec![20, 20];
        shares.extend([0; 40]);
        let got = steps(&shares);
        assert_eq!(got[1], ShrinkCaches);
        assert!(got[2..16].iter().all(|step| *step == ShrinkCaches), "{got:?}");
        assert_eq!((got[17], got[31], got[32]), (DropCaches, DropCaches, Calm));
        // A little pressure between the two bounds neither climbs nor descends.
        let mut shares = vec![20];
        shares.extend([5; 40]);
        assert!(steps(&shares).iter().all(|step| *step == DropCaches));
        // A relapse starts the wait anew.
        let mut shares = vec![20];
        shares.extend([0; 14]);
        shares.push(5);
        shares.extend([0; 14]);
        assert!(steps(&shares).iter().all(|step| *step == DropCaches));
    }

    #[test]
    fn shortage_and_the_kernels_word_count_without_figures_of_stalls() {
        let mut ladder = PressureLadder::default();
        let blind = PressureSample { stalled_us: None, ..ROOMY };
        assert_eq!(ladder.observe(Duration::ZERO, blind), Calm);
        let short = PressureSample { rss_bytes: (2 << 30) - (20 << 20), ..blind };
        assert_eq!(ladder.observe(Duration::from_secs(2), short), DropCaches);
        assert_eq!(ladder.observe(Duration::from_secs(3), short), DropCaches, "each step is given time");
        let triggered = PressureSample { triggered: true, ..blind };
        assert_eq!(ladder.observe(Duration::from_secs(5), triggered), ShrinkCaches);
        assert_eq!(ladder.observe(Duration::from_secs(7), blind), ShrinkCaches);
        assert_eq!(ladder.observe(Duration::from_secs(37), blind), DropCaches);
    }

    #[test]
    fn a_wait_ends_by_time_and_at_once_when_nobody_needs_it() {
        let (end, alive) = std::io::pipe().unwrap();
        assert_eq!(wait_for_pressure(None, &end, Duration::from_millis(1)), PressureWake::Elapsed);
        let waiting = std::thread::spawn(move || wait_for_pressure(None, &end, Duration::from_secs(3600)));
        drop(alive);
        assert_eq!(waiting.join().unwrap(), PressureWake::Ended);
        // With the kernel's file beside it, where this machine lets us watch one.
        let (end, alive) = std::io::pipe().unwrap();
        drop(alive);
        let watch = PressureWatch::start();
        assert_eq!(wait_for_pressure(watch.as_ref(), &end, Duration::from_secs(3600)), PressureWake::Ended);
    }

    #[test]
    fn triggers_of_systemd_are_decoded() {
        assert_eq!(from_base64("c29tZSAyMDAwMDAgMjAwMDAwMAA=").as_deref(), Some(DEFAULT_TRIGGER));
        assert_eq!(from_base64("!"), None);
    }
}
