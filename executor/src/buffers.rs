//! Large buffers that have done their work and wait a moment for the next message.
//!
//! Memory fresh from the system costs a page fault for each of its pages, and allocators give a large block back to the
//! system as soon as it is freed. For a message of many megabytes that is most of the time that it takes. So what was
//! given away by value and has been sent serves for the next message that comes: in a worker the buffer of the last
//! answer becomes that of the next argument, in the parent it's the other way round. Few are kept, for seconds, as
//! allocators do that keep large blocks at all, and no longer than there is a pool ([`MOST`], [`IDLE`], [`Use`]); a
//! thread that exists only as long as there are any gives them back.
//!
//! What isn't found here is new, and asks for huge pages.

use std::collections::TryReserveError;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

/// Allocators keep smaller ones themselves.
const LEAST: usize = 1 << 20;

/// So many bytes are kept, in buffers none of which is larger than half of that.
const MOST: usize = 256 << 20;

/// For how long a buffer is kept that nobody needs; at most twice as long.
const IDLE: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 5_000 });

struct Spare {
    buffers: Vec<(Instant, Vec<u8>)>,
    /// Whether the thread is there that gives them back.
    is_swept: bool,
    users: usize,
    /// The process that all this is about. A child of a plain `fork` has inherited neither the thread nor any users.
    process: u32,
}

static SPARE: Mutex<Spare> = Mutex::new(Spare { buffers: Vec::new(), is_swept: false, users: 0, process: 0 });

/// Waits for the lock no longer than a moment: in a child of a plain `fork` somebody may have it who isn't there.
fn spare(patience: Duration) -> Option<MutexGuard<'static, Spare>> {
    let mut spare = SPARE.try_lock_for(patience)?;
    let process = std::process::id();
    if spare.process != process {
        *spare = Spare { buffers: Vec::new(), is_swept: false, users: 0, process };
    }
    Some(spare)
}

/// For how long somebody may be in the way who keeps or takes a buffer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Wakes the thread before its time.
static IS_UNUSED: Condvar = Condvar::new();

/// Somebody to whom messages come: a pool, or a worker. Without any, nothing is kept.
pub(crate) struct Use {
    is_counted: bool,
}

impl Use {
    pub(crate) fn begin() -> Self {
        let is_counted = spare(PATIENCE).is_some_and(|mut spare| {
            spare.users += 1;
            true
        });
        Use { is_counted }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if !self.is_counted {
            return;
        }
        let Some(mut spare) = spare(PATIENCE) else { return };
        spare.users = spare.users.saturating_sub(1);
        if spare.users == 0 {
            IS_UNUSED.notify_all();
        }
    }
}

/// A buffer that is kept when its last owner has done with it.
pub(crate) struct Recycled(Vec<u8>);

impl Recycled {
    pub(crate) fn new(buffer: Vec<u8>) -> Self {
        Recycled(buffer)
    }
}

impl AsRef<[u8]> for Recycled {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Recycled {
    fn drop(&mut self) {
        keep(std::mem::take(&mut self.0));
    }
}

/// Whether a buffer is one of those that are kept.
pub(crate) fn is_kept(buffer: &Vec<u8>) -> bool {
    (LEAST..=MOST / 2).contains(&buffer.capacity())
}

/// An empty buffer with room for so many bytes, and not much more.
///
/// # Errors
/// There is no memory for it.
pub(crate) fn with_room(len: usize) -> Result<Vec<u8>, TryReserveError> {
    if len >= LEAST
        && let Some(mut spare) = spare(Duration::ZERO)
    {
        let fits = |(_, buffer): &(Instant, Vec<u8>)| (len..=len + len / 4).contains(&buffer.capacity());
        // The one that came last: what nobody needs grows old.
        if let Some(at) = spare.buffers.iter().rposition(fits) {
            let mut buffer = spare.buffers.remove(at).1;
            buffer.clear();
            return Ok(buffer);
        }
    }
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(len)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if len >= 2 * LEAST {
        polypool_ipc::prefer_huge_pages(&mut buffer);
    }
    Ok(buffer)
}

/// Keeps a buffer for a moment, if it's worth it.
fn keep(buffer: Vec<u8>) {
    if !is_kept(&buffer) {
        return;
    }
    // Whoever has to wait here, does without.
    let Some(mut spare) = spare(Duration::ZERO).filter(|spare| spare.users > 0) else { return };
    let mut total: usize = spare.buffers.iter().map(|(_, buffer)| buffer.capacity()).sum();
    let mut gone = Vec::new();
    while total + buffer.capacity() > MOST {
        let (_, oldest) = spare.buffers.remove(0);
        total -= oldest.capacity();
        gone.push(oldest);
    }
    if !spare.is_swept {
        let thread = std::thread::Builder::new().name("polypool-spare".to_owned()).stack_size(64 * 1024).spawn(sweep);
        if thread.is_err() {
            return;
        }
        spare.is_swept = true;
    }
    spare.buffers.push((Instant::now(), buffer));
    // Memory is given back, which takes a while, with the lock free.
    drop(spare);
    drop(gone);
}

/// The life of the thread.
fn sweep() {
    loop {
        let mut spare = SPARE.lock();
        if spare.users > 0 {
            let _ = IS_UNUSED.wait_for(&mut spare, IDLE);
        }
        let is_unused = spare.users == 0;
        let old = spare.buffers.partition_point(|(since, _)| is_unused || since.elapsed() >= IDLE);
        let gone: Vec<_> = spare.buffers.drain(..old).collect();
        let is_over = spare.buffers.is_empty();
        // Under the lock: who keeps the next one starts another thread.
        spare.is_swept = !is_over;
        drop(spare);
        drop(gone);
        if is_over {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both in one test: they share what is kept.
    #[test]
    fn a_buffer_serves_again_and_few_are_kept_for_a_while() {
        const ODD: usize = (5 << 20) + 12_345;
        let user = Use::begin();
        // The thread may be faster, and whoever finds the lock taken does without; but not every time.
        let serves_again = || {
            let mut buffer = with_room(ODD).unwrap();
            buffer.resize(ODD, 7);
            let at = buffer.as_ptr().addr();
            drop(Recycled::new(buffer));
            let again = with_room(ODD - 100).unwrap();
            assert!(again.is_empty() && again.capacity() >= ODD - 100);
            again.as_ptr().addr() == at && again.capacity() >= ODD
        };
        assert!((0..1_000).any(|_| serves_again()));

        for _ in 0..10 {
            // Room that is never touched takes no memory.
            drop(Recycled::new(Vec::with_capacity(MOST / 3)));
            drop(Recycled::new(Vec::with_capacity(MOST)));
            let kept: usize = SPARE.lock().buffers.iter().map(|(_, buffer)| buffer.capacity()).sum();
            assert!(kept <= MOST, "{kept}");
        }
        // As long as it takes: nothing bounds when the thread gets its turn.
        while !SPARE.lock().buffers.is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }

        drop(user);
        if SPARE.lock().users == 0 {
            drop(Recycled::new(Vec::with_capacity(ODD)));
            assert!(SPARE.lock().users > 0 || SPARE.lock().buffers.is_empty(), "nobody has a use for it");
        }
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        assert!(with_room(isize::MAX as usize).is_err());
    }
}
