//! The claim table: for every call sent to a worker, one word in shared memory that says whose the call is.
//!
//! A parent sends calls ahead, so that a worker never waits for its next one, and yet wants to take back those that
//! have not started. A message can't do that: it would cross the start of the call. So both sides look at the same
//! word, and one compare-and-swap decides.
//!
//! # The word
//!
//! `sequence << 2 | state`. The sequence names one call for ever (62 bits are never used up), so that a slot can be
//! used again at once: whoever still speaks of the call before names another sequence, and every transition but `send`
//! compares it. Sequences start at 1; a word of zero has never been used.
//!
//! # The transitions
//!
//! ```text
//!              send (parent)            start (worker)             finish (worker)
//!   Finished ───────────────▶ Sent ───────────────────▶ Started ───────────────────▶ Finished
//!   (or unused)                │
//!                              └───────────────────────▶ Revoked
//!                                    revoke (parent)
//! ```
//!
//! | transition           | by     | how                | condition                                        |
//! |----------------------|--------|--------------------|--------------------------------------------------|
//! | any → (s, Sent)      | parent | store              | the slot is the parent's: unused, revoked, answered, or its worker is dead |
//! | (s, Sent) → Started  | worker | compare-and-swap   | it holds the frame of call s and is about to run it |
//! | (s, Sent) → Revoked  | parent | compare-and-swap   | it no longer wants call s run here               |
//! | (s, Started) → Finished | worker | compare-and-swap | call s has ended; before the reply is sent      |
//!
//! `send` comes before the frame is written to the channel, so a worker that reads the frame finds the word `Sent` or
//! later, and finding another sequence or `Revoked` there, it drops the frame. After the death of a worker the word
//! tells what became of the call: `Sent`, it never ran and may go elsewhere; `Started`, it is the culprit; `Finished`,
//! only its reply was lost.
//!
//! # What a lying peer can do
//!
//! Write any word. Then a call is lost or wrongly blamed, and the parent, which bounds and kills, deals with it; every
//! value of a word is a legal value for every function here. The table can't be shrunk under us either (on Linux the
//! memory is sealed; macOS sizes such memory once), which would turn our next access into a SIGBUS.
//!
//! The words are dense: eight calls of one worker share a cache line. Only the two sides of one channel ever touch it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::sys;

mod protocol;

/// What the claim table says about one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClaimState {
    /// The parent has sent it, and nobody has decided yet.
    Sent,
    /// The worker has begun to run it.
    Started,
    /// The parent has taken it back; the worker will not run it.
    Revoked,
    /// The worker has run it to its end.
    Finished,
    /// The slot holds another call or none, or does not exist.
    Unknown,
}

/// A table of calls in memory that a parent and one worker share. The parent [creates](Claims::create) it and hands its
/// descriptor over, the worker [opens](Claims::open) it.
///
/// Each call has a slot (where) and a sequence number (which). A slot holds one call at a time; the sequence must be
/// another for every call, start at 1, and fit in 62 bits: the two highest bits are ignored. No function panics on a
/// slot that doesn't exist or on a word that makes no sense, since both may come from a peer that lies.
///
/// All methods are safe from any number of threads of both processes, and none blocks or allocates.
///
/// # Examples
///
/// ```
/// use polypool_ipc::{ClaimState, Claims};
///
/// # fn main() -> std::io::Result<()> {
/// let (parent, fd) = Claims::create(16)?;
/// let worker = Claims::open(&fd, 16)?; // in the other process, really
///
/// parent.send(0, 1);
/// assert!(worker.start(0, 1)); // the worker was first:
/// assert!(!parent.revoke(0, 1)); // too late
///
/// parent.send(1, 2);
/// assert!(parent.revoke(1, 2)); // the parent was first:
/// assert!(!worker.start(1, 2)); // never runs
///
/// worker.finish(0, 1);
/// assert_eq!(parent.state(0, 1), ClaimState::Finished);
/// # Ok(())
/// # }
/// ```
pub struct Claims {
    words: NonNull<AtomicU64>,
    slots: usize,
}

// SAFETY: a `Claims` owns its mapping, which belongs to the process and not to a thread, and gives out nothing but
// shared references to atomics in it.
unsafe impl Send for Claims {}
// SAFETY: as above; every access through `&Claims` is atomic.
unsafe impl Sync for Claims {}

impl Claims {
    /// Makes a table of unused slots and the descriptor by which a worker can open it.
    ///
    /// The descriptor is close-on-exec: pass it with [`send_with_fds`](crate::send_with_fds). It may be closed as soon
    /// as every worker has it.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if `slots` is zero or does not fit in memory, or what the system
    /// says when it is out of descriptors or memory.
    pub fn create(slots: usize) -> io::Result<(Claims, OwnedFd)> {
        let bytes = bytes_for(slots)?;
        let fd = sys::create_shared_memory(bytes)?;
        let claims = Claims::map(&fd, slots, bytes)?;
        Ok((claims, fd))
    }

    /// Maps a table that another process has made with the same number of slots. The descriptor isn't needed
    /// afterwards.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for an impossible number of slots;
    /// [`InvalidData`](io::ErrorKind::InvalidData) if the memory behind `fd` is too small or (on Linux) could still be
    /// shrunk by the other side; or what the system says.
    pub fn open(fd: impl AsFd, slots: usize) -> io::Result<Claims> {
        let fd = fd.as_fd();
        let bytes = bytes_for(slots)?;
        // The seals first: from then on the size is final.
        sys::check_sealed(fd)?;
        let size = rustix::fs::fstat(fd)?.st_size;
        if u64::try_from(size).unwrap_or(0) < bytes as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a claim table of {slots} slots takes {bytes} bytes, but the shared memory has {size}"),
            ));
        }
        Claims::map(fd, slots, bytes)
    }

    /// Maps `bytes` of `fd`; the caller has seen that it has that size and keeps it.
    fn map(fd: impl AsFd, slots: usize, bytes: usize) -> io::Result<Claims> {
        // SAFETY: without MAP_FIXED the kernel chooses a free range, so no memory of this program is replaced.
        let start =
            unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)? };
        let words = NonNull::new(start.cast::<AtomicU64>())
            .ok_or_else(|| io::Error::other("shared memory was mapped at address zero"))?;
        Ok(Claims { words, slots })
    }

    /// The number of slots.
    #[must_use = "it has no effect but its result"]
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// **Parent:** publishes the call `sequence` in `slot` as sent. Call it before the frame is written to the channel,
    /// and only for a slot that is yours: unused, revoked, answered, or of a dead worker.
    ///
    /// `false` if there is no such slot.
    pub fn send(&self, slot: usize, sequence: u64) -> bool {
        self.word(slot).map(|word| protocol::send(word, sequence)).is_some()
    }

    /// **Worker:** claims the call for running. `true` means that it must run it now, `false` that it must drop the
    /// frame: the call was revoked, or the slot holds another call or doesn't exist.
    ///
    /// What the parent wrote before [`send`](Claims::send) is visible after a `true`.
    #[must_use = "a call that could not be claimed must not run"]
    pub fn start(&self, slot: usize, sequence: u64) -> bool {
        self.word(slot).is_some_and(|word| protocol::start(word, sequence))
    }

    /// **Parent:** takes the call back. `true` for exactly one caller, and then the worker will never run it; `false`
    /// if the worker has started (or finished) it, if it was revoked before, or if the slot holds another call or
    /// doesn't exist.
    #[must_use = "`false` means that the call was not taken back"]
    pub fn revoke(&self, slot: usize, sequence: u64) -> bool {
        self.word(slot).is_some_and(|word| protocol::revoke(word, sequence))
    }

    /// **Worker:** marks the call as ended; before the reply is sent. `false`, and without effect, if it isn't the call
    /// that was started there.
    pub fn finish(&self, slot: usize, sequence: u64) -> bool {
        self.word(slot).is_some_and(|word| protocol::finish(word, sequence))
    }

    /// **Either side:** where the call stands now. Of `Sent` and `Started` the answer may be old when it arrives,
    /// unless the worker is dead.
    #[must_use = "it has no effect but its result"]
    pub fn state(&self, slot: usize, sequence: u64) -> ClaimState {
        self.word(slot).map_or(ClaimState::Unknown, |word| protocol::state(word, sequence))
    }

    fn word(&self, slot: usize) -> Option<&AtomicU64> {
        if slot >= self.slots {
            return None;
        }
        // SAFETY: `slot` is inside the mapping, which lives as long as `self`, is page-aligned, at least `slots` words
        // long (checked before it was mapped) and can't shrink (see the head of this file). Its bytes are initialised:
        // the kernel hands out zeroed pages. Every bit pattern is a valid `u64`, and both processes touch the words by
        // atomic operations of the same size only; a peer that does otherwise can change the value that we read, but
        // not make it anything but a value.
        Some(unsafe { self.words.add(slot).as_ref() })
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `map` got from the kernel (which rounds the length up to pages both times),
        // it is unmapped once, and no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.words.as_ptr().cast(), self.slots * WORD) };
        // Can't fail for a range that is mapped; if it does, the memory leaks, which is harmless.
        debug_assert!(unmapped.is_ok(), "munmap failed: {unmapped:?}");
    }
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims").field("slots", &self.slots).finish_non_exhaustive()
    }
}

const WORD: usize = size_of::<AtomicU64>();

/// The size of a table. No allocation in Rust is larger than `isize::MAX` bytes, and pointer arithmetic relies on that.
fn bytes_for(slots: usize) -> io::Result<usize> {
    slots
        .checked_mul(WORD)
        .filter(|&bytes| bytes > 0 && isize::try_from(bytes).is_ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("a claim table can't have {slots} slots")))
}
