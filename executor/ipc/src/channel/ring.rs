//! The ring in shared memory on which queues stand: records of bytes, any number of processes on either side, any of
//! which may be killed at any moment.
//!
//! # Layout
//!
//! ```text
//!   settings │ producers: lock, head as last seen │ tail │ consumers: lock, tail as last seen │ head │
//!   not empty │ not full │ size, closed │ … extra … │ ring: as large as it may ever become, sparse
//! ```
//!
//! Each part has cache lines of its own. A producer needs the line of the consumers' head only when the ring seems
//! full, and a consumer the tail's only when it seems empty, so under load the two sides touch each other's lines once
//! for many records.
//!
//! A record is a head of 8 bytes (its length, twice) and its bytes, rounded up to 8. It may wrap round the end of the
//! ring. A position counts records *and* bytes in one word, so one store publishes both, and the length of the queue is
//! never off by one.
//!
//! # Killed at any moment
//!
//! | in the middle of | nobody sees anything until | killed before | killed after |
//! |---|---|---|---|
//! | a put | the store of `tail` | that record never was | the record is in the queue |
//! | a get | the store of `head` | the record is still there for others | that record is lost with its getter |
//! | growing | the store of `size` | the ring is as large as it was | it is larger |
//! | shrinking | the store of `size` | it is as large as it was | it is small; pages come back with a later shrinking |
//!
//! Each side is serialised by a [`RawLock`], which the next one takes from a dead holder. There is nothing to repair
//! then: what the dead one has written beyond the published position is written over.
//!
//! # Growing
//!
//! The ring starts small, so that it stays in the processor's cache, and is doubled when something doesn't fit. A
//! record stands at its position modulo the size; so in a ring of twice the size, some of the records belong into the
//! new half, and are copied there: into memory that nobody uses yet. Then the size is stored. Growing takes both locks
//! (the producers' first), as does shrinking (the producers' only if it is free), which a getter does when it has
//! emptied a ring that had become large: for an empty ring every size is right.
//!
//! # No wake-up is lost
//!
//! Whoever finds nothing to get sleeps on the word *not empty*; whoever finds no room sleeps on *not full*. The word
//! has a flag that says that somebody may be asleep, and a number. Take a getter; putters are the same the other way
//! round:
//!
//! - The getter **(1)** sets the flag and takes the word's value, **(2)** looks at the tail again, and **(3)** sleeps
//!   if it hasn't moved *and*, which the kernel checks, the word still has this value.
//! - The putter **(a)** stores the tail, **(b)** looks at the flag, and if it is set **(c)** changes the word's number
//!   and **(d)** wakes one.
//!
//! Between 1 and 2, and between a and b, stands a fence, so of 2 and b at least one sees what the other side has done
//! before: either the getter finds the record, or the putter finds the flag. In the latter case, c comes before 3, and
//! the getter doesn't fall asleep, or after it, and d wakes it or another sleeper.
//!
//! The flag stays set as long as d finds somebody to wake, so each of several records wakes another of several
//! sleepers, no matter when those come to run. When d finds nobody, the flag is cleared together with a change of the
//! number. A getter that fell asleep between that d and the clearing would sleep without a flag; so all are woken once
//! more after it, and set the flag again if they must.
//!
//! A putter that waits for bytes rather than for a place in a bounded queue sets a second flag: it may have no use for
//! the room that wakes it, which would have been enough for another; therefore all are woken.
//!
//! A process killed between c and d, or between being woken and its get, takes a wake-up along. That is what sleeps of
//! limited length are for ([`RECHECK`](crate::wait::futex::RECHECK)). `tests/loom_ring.rs` runs all this through every
//! interleaving, without that safety net.
//!
//! # What a lying peer can do
//!
//! Spoil the records, and bring everybody to say [`Corrupt`]. Positions, sizes and lengths are checked before each use,
//! the ring's place and largest size are taken from its memory's length once, and no more is copied or allocated than
//! the ring holds.

use std::io;
use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::memory::copy;
use crate::memory::segment::Layout;
use crate::object::{BODY, Kind, Object};
use crate::sync::raw::{LockWord, RawLock};
use crate::wait::{self, Change, Step, futex};

mod protocol;
pub(crate) mod record;

use record::{GRANULE, LARGEST, Position};

/// How large a ring is at first: it fits the second-level cache.
const FIRST: u64 = 64 << 10;

/// The smallest size a user can ask for.
const SMALLEST: u64 = 4 << 10;

/// From this size on a ring that has been emptied becomes small again.
const SHRINK_FROM: u64 = 1 << 20;

/// As much memory stays with a ring that has become small again; fresh pages are slow.
const KEEP: u64 = 32 << 20;

/// How much is asked of the system at once: a signal makes it start anew.
const PORTION: u64 = 1 << 20;

/// How often a producer looks for room in a row; a position that moves all the time and never makes room is a lie.
const LOOKS: u32 = 10_000;

/// The fewest bytes at which a batch of gets ends, so that one getter doesn't fill its memory.
const BATCH: usize = 1 << 20;

/// Adjacent lines are fetched in pairs.
#[repr(C, align(128))]
struct Line<T>(T);

#[repr(C)]
struct Settings {
    /// The most records, or 0.
    bound: AtomicU32,
    /// The bytes between this head and the ring.
    extra: AtomicU32,
    /// What the owner of the ring wants to know about it.
    flags: AtomicU32,
}

/// One side: its lock, and the position of the other side as it was seen last.
#[repr(C)]
struct Side {
    lock: LockWord,
    unused: AtomicU32,
    seen: AtomicU64,
}

#[repr(C)]
struct Shape {
    /// The size of the ring as a power of two, less its first one. Changed under both locks.
    grown: AtomicU32,
    /// Changed under the producers' lock, to 1.
    closed: AtomicU32,
    /// How many bytes of the ring have memory. Changed under the consumers' lock.
    backed: AtomicU64,
}

#[repr(C)]
struct Head {
    settings: Line<Settings>,
    producers: Line<Side>,
    tail: Line<AtomicU64>,
    consumers: Line<Side>,
    head: Line<AtomicU64>,
    not_empty: Line<AtomicU32>,
    not_full: Line<AtomicU32>,
    shape: Line<Shape>,
}

// SAFETY: repr(C) and atomics only; what lies between them is never read.
unsafe impl Layout for Head {}

/// Where the head begins in the body, which itself begins at half of a pair of lines.
const HEAD: usize = 128 - BODY % 128;

/// How long the head is, so where the extra bytes begin.
pub(crate) const EXTRA: usize = HEAD + size_of::<Head>();

/// What the user has asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// The most records; `None`: as many as there is memory for.
    pub(crate) bound: Option<u32>,
    /// The most bytes, rounded up to a power of two.
    pub(crate) memory: u64,
}

/// As much as an address space has plenty of.
pub(crate) const DEFAULT_MEMORY: u64 = if cfg!(target_pointer_width = "64") { 1 << 30 } else { 32 << 20 };

/// The memory of a queue contradicts itself: a process that shares it has written what no queue writes.
///
/// Nothing can be said about the items in it any more, and every operation that notices says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the memory of the queue has been spoiled by a process that shares it: {0}")]
pub struct Corrupt(&'static str);

/// Why a ring refuses a record.
#[derive(Debug)]
pub(crate) enum Refusal {
    Closed,
    TooLarge { size: u64, limit: u64 },
    Memory(io::Error),
    Corrupt(Corrupt),
}

impl From<&'static str> for Refusal {
    fn from(what: &'static str) -> Self {
        Refusal::Corrupt(Corrupt(what))
    }
}

/// What a waiter remembers from one attempt to the next.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Whether it has slept on the lock of its side, and on the other one.
    lock: bool,
    other: bool,
    /// Whether it has slept for the ring.
    slept: bool,
}

impl Memory {
    /// In the mode [`Once`](Mode::Once): whether it's not the ring that would have to be waited for, but somebody who
    /// stays in the middle of a step, as a process that was stopped there does.
    pub(crate) fn was_busy(&self) -> bool {
        self.lock || self.other
    }
}

/// How an attempt deals with having to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// There is only one attempt, so it gives those who have the lock a moment, as they need no more.
    Once,
    /// A thread waits, which may spin a little before it sleeps.
    Block,
    /// A future waits.
    Poll,
}

/// Records to be put, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) bytes: Vec<u8>,
    /// Where each record ends in the bytes.
    pub(crate) ends: Vec<usize>,
}

impl Batch {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// What has been appended to the bytes is a record.
    pub(crate) fn end(&mut self) {
        self.ends.push(self.bytes.len());
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn get(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[index]]
    }
}

/// A ring.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    object: Object,
    /// Where the ring begins in the body.
    start: usize,
    /// Its first and its largest size.
    first: u64,
    largest: u64,
    /// The most records.
    bound: u32,
    flags: u32,
}

/// Holds one of the locks.
struct Locked<'a>(RawLock<'a>);

impl Drop for Locked<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.unlock();
    }
}

impl Ring {
    /// A new ring, with `extra` bytes for its owner, a multiple of 128.
    pub(crate) fn create(kind: Kind, shape: u64, options: Options, extra: u32, flags: u32) -> io::Result<Self> {
        let refuse = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
        if options.memory > LARGEST {
            return Err(refuse(format!("a queue of {} bytes is larger than the limit, {LARGEST}", options.memory)));
        }
        let largest = options.memory.max(SMALLEST).next_power_of_two();
        if let Some(bound) = options.bound
            && (bound == 0 || bound > i32::MAX as u32)
        {
            return Err(refuse(format!("a queue can be bounded to 1 to {} items, not to {bound}", i32::MAX)));
        }
        let start = EXTRA + extra as usize;
        let len = usize::try_from(largest).ok().and_then(|largest| largest.checked_add(start));
        let len = len.ok_or_else(|| refuse(format!("a queue of {largest} bytes does not fit in memory")))?;
        let object = Object::create(kind, shape, len)?;
        let settings = &object.at::<Head>(HEAD).settings.0;
        settings.bound.store(options.bound.unwrap_or(0), Ordering::Relaxed);
        settings.extra.store(extra, Ordering::Relaxed);
        settings.flags.store(flags, Ordering::Release);
        let ring = Ring::over(object)?;
        ring.back(ring.first).map_err(io::Error::from)?;
        Ok(ring)
    }

    /// The ring in an object that has been opened with at least [`EXTRA`] bytes.
    pub(crate) fn over(object: Object) -> io::Result<Self> {
        let settings = &object.at::<Head>(HEAD).settings.0;
        let flags = settings.flags.load(Ordering::Acquire);
        let bound = settings.bound.load(Ordering::Relaxed);
        let start = EXTRA + settings.extra.load(Ordering::Relaxed) as usize;
        let largest = object.len().checked_sub(start).map_or(0, |largest| largest as u64);
        if !largest.is_power_of_two() || !(SMALLEST..=LARGEST).contains(&largest) || !(BODY + start).is_multiple_of(128)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the memory that came with a handle is not a queue",
            ));
        }
        let bound = if bound == 0 || bound > i32::MAX as u32 { u32::MAX } else { bound };
        Ok(Ring { object, start, first: largest.min(FIRST), largest, bound, flags })
    }

    pub(crate) fn object(&self) -> &Object {
        &self.object
    }

    pub(crate) fn flags(&self) -> u32 {
        self.flags
    }

    /// The most records, if there is a bound.
    pub(crate) fn bound(&self) -> Option<u32> {
        (self.bound != u32::MAX).then_some(self.bound)
    }

    /// The most bytes a record can have.
    pub(crate) fn longest(&self) -> u64 {
        (self.largest - GRANULE as u64).min(u64::from(u32::MAX))
    }

    /// How many records there are at this moment; and how many there have ever been put, modulo 2³².
    pub(crate) fn len(&self) -> (u32, u32) {
        let head = self.head();
        let mut tries = 0;
        loop {
            // The two are read one after the other; a tail that hasn't moved meanwhile belongs to the head.
            let tail = protocol::look(&head.tail.0);
            let taken = Position::from_word(protocol::look(&head.head.0)).count;
            tries += 1;
            if head.tail.0.load(Ordering::Acquire) == tail || tries == 100 {
                let put = Position::from_word(tail).count;
                let most = (self.largest / GRANULE as u64) as u32;
                // Negative, if the tail is an old one.
                let len = put.wrapping_sub(taken);
                return (if len > i32::MAX as u32 { 0 } else { len.min(most) }, put);
            }
        }
    }

    /// Whether not even the smallest record goes in.
    pub(crate) fn is_full(&self) -> bool {
        let head = self.head();
        let taken = Position::from_word(protocol::look(&head.head.0));
        let put = Position::from_word(protocol::look(&head.tail.0));
        put.count.wrapping_sub(taken.count) >= self.bound
            || u64::from(put.at.wrapping_sub(taken.at)) * GRANULE as u64 >= self.largest
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.head().shape.0.closed.load(Ordering::Acquire) != 0
    }

    /// No put succeeds from now on.
    pub(crate) fn close(&self) {
        let head = self.head();
        let lock = self.producers();
        lock.lock();
        let locked = Locked(lock);
        head.shape.0.closed.store(1, Ordering::Release);
        drop(locked);
        for word in [&head.not_empty.0, &head.not_full.0] {
            // As a putter that waits for bytes would: all are to look.
            protocol::announce(word, protocol::ASLEEP | protocol::ALL);
            wake(word, u32::MAX);
        }
    }

    /// Puts the records from number `done` on, which it raises, as far as there is room; ready when all are in.
    #[inline]
    pub(crate) fn put<'b>(
        &self,
        record: impl Fn(usize) -> Option<&'b [u8]>,
        done: &mut usize,
        mode: Mode,
        memory: &mut Memory,
    ) -> Step<Result<(), Refusal>> {
        let head = self.head();
        let locked = match self.lock(self.producers(), mode, &mut memory.lock) {
            Ok(locked) => locked,
            Err(change) => return Step::Wait(change),
        };
        let before = *done;
        let mut end = Position::from_word(head.tail.0.load(Ordering::Relaxed));
        let outcome = self.fill(&record, done, &mut end, mode, memory);
        if head.tail.0.load(Ordering::Relaxed) != end.word() {
            protocol::publish(&head.tail.0, end.word());
        }
        drop(locked);
        let put = (*done - before) as u32;
        if put > 0 && protocol::must_wake(&head.not_empty.0) {
            wake(&head.not_empty.0, put);
        }
        match outcome {
            Ok(None) => Step::Ready(Ok(())),
            Ok(Some(change)) => Step::Wait(change),
            Err(refusal) => Step::Ready(Err(refusal)),
        }
    }

    /// Under the producers' lock: writes records behind `end`, for the caller to publish; also when it fails half-way.
    #[inline]
    fn fill<'b>(
        &self,
        record: &impl Fn(usize) -> Option<&'b [u8]>,
        done: &mut usize,
        end: &mut Position,
        mode: Mode,
        memory: &mut Memory,
    ) -> Result<Option<Change>, Refusal> {
        let head = self.head();
        if head.shape.0.closed.load(Ordering::Relaxed) != 0 {
            return Err(Refusal::Closed);
        }
        let mut seen = Position::from_word(head.producers.0.seen.load(Ordering::Relaxed));
        let mut size = self.size()?;
        let mut announced = None;
        let mut looks = 0;
        loop {
            let Some(bytes) = record(*done) else { return Ok(None) };
            let needs =
                record::granules(bytes.len()).filter(|needs| u64::from(*needs) * GRANULE as u64 <= self.largest);
            let Some(needs) = needs else {
                return Err(Refusal::TooLarge { size: bytes.len() as u64, limit: self.longest() });
            };
            let content = record::between(seen, *end, size)?;
            if content.records < self.bound && needs <= size - content.granules {
                self.write(*end, size, record::head(bytes.len()), bytes);
                *end = end.after(1, needs);
                *done += 1;
                continue;
            }
            // It doesn't fit, as far as we know. What has been put so far, others may get meanwhile.
            protocol::publish(&head.tail.0, end.word());
            let now = protocol::look(&head.head.0);
            looks += 1;
            if now != seen.word() && looks < LOOKS {
                seen = Position::from_word(now);
                head.producers.0.seen.store(now, Ordering::Relaxed);
                continue;
            }
            if content.records < self.bound && u64::from(size) * (GRANULE as u64) < self.largest {
                if let Some(change) = self.grow(needs, mode, memory)? {
                    return Ok(Some(change));
                }
                size = self.size()?;
                seen = Position::from_word(head.producers.0.seen.load(Ordering::Relaxed));
                continue;
            }
            if let Some(change) = announced {
                memory.slept = true;
                return Ok(Some(change));
            }
            if mode == Mode::Once {
                return Ok(Some(Change::of(self.object.segment(), at(offset_of!(Head, not_full)), 0)));
            }
            let flags = if content.records < self.bound { protocol::ASLEEP | protocol::ALL } else { protocol::ASLEEP };
            let value = protocol::announce(&head.not_full.0, flags);
            announced = Some(Change::of(self.object.segment(), at(offset_of!(Head, not_full)), value));
        }
    }

    /// Gets up to `most` records, at least one; ready when it has.
    ///
    /// `claim` is called with their number before they leave the ring. Should the process die after that, they are
    /// still in it.
    #[inline]
    pub(crate) fn get(
        &self,
        into: &mut Batch,
        most: usize,
        mode: Mode,
        memory: &mut Memory,
        claim: impl FnOnce(u32),
    ) -> Step<Result<(), Refusal>> {
        let head = self.head();
        if mode == Mode::Block && !memory.slept {
            self.spin();
        }
        let locked = match self.lock(self.consumers(), mode, &mut memory.lock) {
            Ok(locked) => locked,
            Err(change) => return Step::Wait(change),
        };
        let start = Position::from_word(head.head.0.load(Ordering::Relaxed));
        let mut seen = Position::from_word(head.consumers.0.seen.load(Ordering::Relaxed));
        let mut announced = None;
        if most > 1 {
            // A batch is of what there is, and not of what there was.
            seen = Position::from_word(protocol::look(&head.tail.0));
            head.consumers.0.seen.store(seen.word(), Ordering::Relaxed);
        }
        while seen == start {
            // Read before the tail: once it is closed, the tail stays where it is.
            let closed = self.is_closed();
            let tail = protocol::look(&head.tail.0);
            if tail != start.word() {
                seen = Position::from_word(tail);
                head.consumers.0.seen.store(tail, Ordering::Relaxed);
                break;
            }
            if closed {
                return Step::Ready(Err(Refusal::Closed));
            }
            if let Some(change) = announced {
                memory.slept = true;
                return Step::Wait(change);
            }
            if mode == Mode::Once {
                return Step::Wait(Change::of(self.object.segment(), at(offset_of!(Head, not_empty)), 0));
            }
            let value = protocol::announce(&head.not_empty.0, protocol::ASLEEP);
            announced = Some(Change::of(self.object.segment(), at(offset_of!(Head, not_empty)), value));
        }
        let end = match self.take(start, seen, into, most) {
            Ok(end) => end,
            Err(refusal) => return Step::Ready(Err(refusal)),
        };
        let taken = end.count.wrapping_sub(start.count);
        claim(taken);
        protocol::publish(&head.head.0, end.word());
        self.shrink(end, locked);
        if protocol::must_wake(&head.not_full.0) {
            wake(&head.not_full.0, taken);
        }
        Step::Ready(Ok(()))
    }

    /// Copies records out, and says where the next one begins.
    #[inline]
    fn take(&self, start: Position, seen: Position, into: &mut Batch, most: usize) -> Result<Position, Refusal> {
        let size = self.size()?;
        let mut position = start;
        while into.ends.len() < most && into.bytes.len() < BATCH {
            let content = record::between(position, seen, size)?;
            if content.records == 0 {
                break;
            }
            let place = self.place(position.at, size);
            let word = self.object.at::<AtomicU64>(place).load(Ordering::Relaxed);
            let (len, granules) = match record::parse(word, content) {
                Ok(record) => record,
                // First those before it.
                Err(_) if !into.ends.is_empty() => break,
                Err(what) => return Err(what.into()),
            };
            if into.bytes.try_reserve(len).is_err() {
                if into.ends.is_empty() {
                    return Err(Refusal::Memory(io::ErrorKind::OutOfMemory.into()));
                }
                break;
            }
            let size = size as usize * GRANULE;
            let from = (place - self.start + GRANULE) & (size - 1);
            let piece = len.min(size - from);
            self.append(self.start + from, piece, &mut into.bytes);
            self.append(self.start, len - piece, &mut into.bytes);
            into.end();
            position = position.after(1, granules);
        }
        Ok(position)
    }

    /// Waits a moment for something to get, without a lock, and without making the producers wake us.
    #[inline]
    fn spin(&self) {
        let head = self.head();
        let taken = head.head.0.load(Ordering::Relaxed);
        if head.consumers.0.seen.load(Ordering::Relaxed) != taken {
            return;
        }
        for _ in 0..wait::spins() {
            if head.tail.0.load(Ordering::Relaxed) != taken {
                return;
            }
            // Not too eager: each look takes the tail's line away from the producer, who wants to write the next one to
            // it.
            for _ in 0..4 {
                std::hint::spin_loop();
            }
        }
    }

    /// Under the producers' lock: makes the ring large enough for a record, if it may become so large. Returns what to
    /// wait for, if the consumers' lock is taken.
    #[cold]
    fn grow(&self, needs: u32, mode: Mode, memory: &mut Memory) -> Result<Option<Change>, Refusal> {
        let head = self.head();
        let _locked = match self.lock(self.consumers(), mode, &mut memory.other) {
            Ok(locked) => locked,
            Err(change) => return Ok(Some(change)),
        };
        let size = self.size()?;
        let taken = Position::from_word(protocol::look(&head.head.0));
        let put = Position::from_word(head.tail.0.load(Ordering::Relaxed));
        let content = record::between(taken, put, size)?;
        let room = |size: u64| size / GRANULE as u64 - u64::from(content.granules);
        head.producers.0.seen.store(taken.word(), Ordering::Relaxed);
        if room(u64::from(size) * GRANULE as u64) >= u64::from(needs) {
            return Ok(None);
        }
        let mut large = u64::from(size) * GRANULE as u64 * 2;
        while large < self.largest && room(large) < u64::from(needs) {
            large *= 2;
        }
        self.back(large)?;
        // The live records span at most two blocks of the old size. Each has its place in the ring of the new size;
        // only those in the first are there.
        let (old, new) = (size as u64, large / GRANULE as u64);
        let (mut from, mut left) = (u64::from(taken.at), u64::from(content.granules));
        while left > 0 {
            let count = (old - from % old).min(left);
            if from % new >= old {
                self.copy_within(
                    (from % old) as usize * GRANULE,
                    (from % new) as usize * GRANULE,
                    count as usize * GRANULE,
                );
            }
            from = (from + count) % (1 << 32);
            left -= count;
        }
        head.shape.0.grown.store((large / self.first).trailing_zeros(), Ordering::Release);
        Ok(None)
    }

    /// Under the consumers' lock, with `end` as the head: makes a large ring small if that's all there was in it. Gives
    /// the lock back.
    #[inline]
    fn shrink(&self, end: Position, locked: Locked<'_>) {
        if self.head().shape.0.grown.load(Ordering::Relaxed) >= (SHRINK_FROM / FIRST).trailing_zeros() {
            self.shrink_large(end, locked);
        }
    }

    #[cold]
    fn shrink_large(&self, end: Position, locked: Locked<'_>) {
        let head = self.head();
        if protocol::look(&head.tail.0) != end.word() {
            return;
        }
        let producers = self.producers();
        if producers.try_lock().is_none() {
            return;
        }
        let other = Locked(producers);
        if protocol::look(&head.tail.0) != end.word() {
            return;
        }
        // What the producers have seen last may be further away than the small ring is large.
        head.producers.0.seen.store(end.word(), Ordering::Relaxed);
        head.shape.0.grown.store(0, Ordering::Release);
        drop(other);
        // Growing needs the lock that we still hold, so nobody is beyond the first size.
        let backed = head.shape.0.backed.load(Ordering::Relaxed).min(self.largest);
        if backed > KEEP {
            head.shape.0.backed.store(KEEP, Ordering::Relaxed);
            let from = (BODY + self.start) as u64 + KEEP;
            // Should the system refuse, the memory stays with the ring, which is as good.
            let _ = fallocate(
                self.object.segment().fd(),
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                from,
                backed - KEEP,
            );
        }
        drop(locked);
    }

    /// Sees to it that the first bytes of the ring have memory behind them, so that the system can say no now, instead
    /// of killing us when we touch it.
    fn back(&self, size: u64) -> Result<(), Refusal> {
        let backed = &self.head().shape.0.backed;
        let mut done = backed.load(Ordering::Relaxed);
        let mut interrupted = 0;
        while done < size {
            let portion = (size - done).min(PORTION);
            match fallocate(
                self.object.segment().fd(),
                FallocateFlags::empty(),
                (BODY + self.start) as u64 + done,
                portion,
            ) {
                Ok(()) => {}
                Err(Errno::INTR) if interrupted < 100 => {
                    interrupted += 1;
                    continue;
                }
                // It gets its memory when it's touched.
                Err(Errno::INTR | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(Refusal::Memory(error.into())),
            }
            done += portion;
            backed.store(done, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes a record at a position; the caller knows that there is room.
    #[inline]
    fn write(&self, position: Position, size: u32, head: u64, bytes: &[u8]) {
        let place = self.place(position.at, size);
        self.object.at::<AtomicU64>(place).store(head, Ordering::Relaxed);
        let size = size as usize * GRANULE;
        let from = (place - self.start + GRANULE) & (size - 1);
        let (one, two) = bytes.split_at(bytes.len().min(size - from));
        self.object.store(self.start + from, one);
        if !two.is_empty() {
            self.object.store(self.start, two);
        }
    }

    /// Appends bytes of the body to a vector that has room for them.
    #[inline]
    fn append(&self, offset: usize, count: usize, to: &mut Vec<u8>) {
        let len = to.len();
        assert!(offset + count <= self.object.len() && count <= to.capacity() - len);
        // SAFETY: the range lies in the mapping, which is only ever accessed atomically or by `copy` while it is
        // shared, and the vector has room for as much; the two can't overlap, as the vector is memory of our own.
        unsafe {
            let from = self.object.segment().start().add(BODY + offset).cast_const();
            copy::load(from, to.as_mut_ptr().add(len), count);
        }
        // SAFETY: `count` bytes behind the old end have just been written.
        unsafe { to.set_len(len + count) };
    }

    fn copy_within(&self, from: usize, to: usize, count: usize) {
        let mut piece = [0; 4096];
        for done in (0..count).step_by(piece.len()) {
            let piece = &mut piece[..(count - done).min(4096)];
            self.object.load(self.start + from + done, piece);
            self.object.store(self.start + to + done, piece);
        }
    }

    /// Where in the body the granule with that number stands.
    #[inline]
    fn place(&self, at: u32, size: u32) -> usize {
        self.start + (at & (size - 1)) as usize * GRANULE
    }

    /// How many granules the ring has now.
    #[inline]
    fn size(&self) -> Result<u32, Refusal> {
        let grown = self.head().shape.0.grown.load(Ordering::Acquire);
        match self.first.checked_shl(grown) {
            Some(size) if grown < 32 && size <= self.largest => Ok((size / GRANULE as u64) as u32),
            _ => Err(Refusal::from("the size of the ring is none it could have")),
        }
    }

    #[inline]
    fn lock<'a>(&'a self, lock: RawLock<'a>, mode: Mode, slept: &mut bool) -> Result<Locked<'a>, Change> {
        if lock.try_lock().is_some() {
            return Ok(Locked(lock));
        }
        self.lock_slowly(lock, mode, slept)
    }

    #[cold]
    fn lock_slowly<'a>(&'a self, lock: RawLock<'a>, mode: Mode, slept: &mut bool) -> Result<Locked<'a>, Change> {
        match mode {
            Mode::Once => {
                *slept = lock.lock_until(wait::after(wait::PATIENCE)).is_none();
                if *slept {
                    // It's not waited for.
                    return Err(Change::of(self.object.segment(), at(0), 0));
                }
                Ok(Locked(lock))
            }
            Mode::Block | Mode::Poll => match lock.step(slept) {
                Step::Ready(_) => {
                    *slept = false;
                    Ok(Locked(lock))
                }
                Step::Wait(change) => Err(change),
            },
        }
    }

    #[inline]
    fn head(&self) -> &Head {
        self.object.at(HEAD)
    }

    #[inline]
    fn producers(&self) -> RawLock<'_> {
        RawLock::new(&self.object, HEAD + offset_of!(Head, producers) + offset_of!(Side, lock))
    }

    #[inline]
    fn consumers(&self) -> RawLock<'_> {
        RawLock::new(&self.object, HEAD + offset_of!(Head, consumers) + offset_of!(Side, lock))
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Memory(error) => error,
            Refusal::Corrupt(corrupt) => io::Error::new(io::ErrorKind::InvalidData, corrupt),
            other => io::Error::other(format!("{other:?}")),
        }
    }
}

/// Where a field of the head stands in the segment.
const fn at(field: usize) -> usize {
    BODY + HEAD + field
}

/// For other words of a ring's owner: says that the caller is about to sleep on it, as long as it has the value
/// returned, unless what it waits for is found on a second look.
pub(crate) fn announce(word: &AtomicU32) -> u32 {
    protocol::announce(word, protocol::ASLEEP | protocol::ALL)
}

/// Wakes all who sleep on such a word, after the change for which they wait.
pub(crate) fn tell_all(word: &AtomicU32) {
    if protocol::must_wake(word) {
        wake(word, u32::MAX);
    }
}

#[cold]
fn wake(word: &AtomicU32, count: u32) {
    protocol::wake(word, count, |count| futex::wake(word, count.min(i32::MAX as u32)));
}

#[cfg(test)]
mod tests;
