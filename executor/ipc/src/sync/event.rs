//! [`Event`]: one signal that frees all who wait for it. Python's `multiprocessing.Event`.
//!
//! One word:
//!
//! | bits | meaning |
//! |---|---|
//! | 0 | set |
//! | 1 | somebody may be asleep; only while it is not set |
//! | 2–31 | how often it has been set, modulo 2³⁰ |
//!
//! The count is there so that a signal isn't lost when [`clear`](Event::clear) follows [`set`](Event::set) at once:
//! whoever was waiting then is free, though the event is no longer set when it looks. An event holds nothing for
//! anybody, so nobody's death changes it.
//!
//! The protocol is run through every interleaving by `tests/loom_event.rs`.

use std::fmt;
use std::future::Future;
use std::io;
use std::mem::size_of;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::object::{BODY, Kind, Object};
use crate::wait::{self, Change, Step, Waiting, futex};

mod protocol;

const KIND: Kind = *b"evnt";

/// A signal between processes.
///
/// The handle is cheap to clone; clones, and what arrives of it in other processes, are the same event. What was
/// written before [`set`](Self::set) is seen by those whom it frees.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// # fn main() -> std::io::Result<()> {
/// let ready = polypool_ipc::Event::new()?;
/// assert!(!ready.wait_timeout(Duration::from_millis(1)));
/// std::thread::scope(|s| {
///     s.spawn(|| ready.wait());
///     ready.set();
/// });
/// assert!(ready.is_set());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "an event that is not kept can't be waited for"]
pub struct Event {
    object: Object,
}

impl Event {
    /// A new event, not set.
    ///
    /// # Errors
    ///
    /// What the system says when it is out of memory or descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Event { object: Object::create(KIND, 0, size_of::<AtomicU32>())? })
    }

    /// Frees all who wait, and all who will, until [`clear`](Self::clear).
    pub fn set(&self) {
        if protocol::set(self.word()) {
            futex::wake_all(self.word());
        }
    }

    /// From now on one must wait again. Those who were waiting when it was set are free all the same.
    pub fn clear(&self) {
        protocol::clear(self.word());
    }

    /// Whether it is set at this moment.
    #[must_use = "it has no effect but its result"]
    pub fn is_set(&self) -> bool {
        protocol::is_set(self.word())
    }

    /// The form of [`wait`](Self::wait) that doesn't wait: returns whether it is set, as [`is_set`](Self::is_set) does.
    #[must_use = "it doesn't wait"]
    pub fn try_wait(&self) -> bool {
        self.is_set()
    }

    /// Waits until it is set. (Python's `wait` returns `True` here.)
    pub fn wait(&self) {
        self.wait_until(None);
    }

    /// Waits until it is set, for at most `timeout`. Returns whether it was.
    #[must_use = "it says whether the event was set"]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.wait_until(wait::after(timeout))
    }

    /// Waits until it is set, without blocking the thread. It counts from the call, not from the first poll.
    ///
    /// **Cancellation:** dropped, it waits no more.
    pub fn wait_async(&self) -> impl Future<Output = ()> + Send {
        let since = protocol::now(self.word());
        Waiting::new(move || self.step(since))
    }

    /// Whether both are handles of the same event.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &Self) -> bool {
        self.object.is(&other.object)
    }

    fn wait_until(&self, until: Option<Instant>) -> bool {
        let since = protocol::now(self.word());
        wait::block(until, || self.step(since)).is_some()
    }

    fn step(&self, since: u32) -> Step<()> {
        match protocol::look(self.word(), since) {
            Ok(()) => Step::Ready(()),
            Err(expected) => Step::Wait(Change::of(self.object.segment(), BODY, expected)),
        }
    }

    fn word(&self) -> &AtomicU32 {
        self.object.at(0)
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("set", &self.is_set()).finish_non_exhaustive()
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Event { object: Object::deserialize(deserializer, KIND, 0, size_of::<AtomicU32>())? })
    }
}
