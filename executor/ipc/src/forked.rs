//! What a child that was made by a plain `fork` must not take for its own: the seats, threads and locks of its parent.
//!
//! Such a child has all the handles of its parent, but none of its other threads, so nobody keeps its presence. Here
//! the C library's fork handlers see to it that the child knows no seat of its own on any board; it takes one, with a
//! thread of its own behind it, when it first uses an object; if it can't have them, that use panics, rather than that
//! it passes for its parent. What its parent held at the fork stays the parent's:
//! copies of guards, permits and places in lines that the child has inherited do nothing when they are dropped there.
//!
//! Another thread of the parent may be anywhere at the moment of the fork, also under one of the locks of this crate's
//! tables, and it doesn't exist in the child. So all those locks are taken before the fork, and given back after it on
//! both sides. The order in which they are taken is that in which the crate's own functions nest them.
//!
//! Calls that make a process past the C library (`clone`, `_Fork`) aren't noticed. After `exec` there is nothing left
//! to be forgotten.

use std::cell::{Cell, UnsafeCell};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::channel::join;
use crate::memory::{pid_lock, segment};
use crate::sync::reentrant;
use crate::wait::reactor;
use crate::{memory, presence};

/// How many forks lie between the first process and this one; as long as it's zero, all that this process has is its
/// own.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// How many forks lie between the first process and this one.
#[inline]
pub(crate) fn generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// All the locks, in the order in which they are taken. (Fields are dropped in this order too, which doesn't matter.)
struct Frozen {
    rows: join::Frozen,
    presence: presence::Frozen,
    reactor: reactor::Frozen,
    seats: presence::robust::Frozen,
    segments: segment::Frozen,
    _owners: reentrant::Frozen,
    _faults: memory::fault::Frozen,
}

/// Where the locks are kept between the handlers.
struct Kept(UnsafeCell<Option<Frozen>>);

// SAFETY: only the handlers touch it, and of several threads that fork at once only the one that has the locks gets
// there: `before` stores after it has taken them, and the two others take them out of it before they give them back.
unsafe impl Sync for Kept {}

static KEPT: Kept = Kept(UnsafeCell::new(None));

/// Makes the C library call us at each fork. Before the process has anything that a child must not inherit: before the
/// first mapping, the first thread and the first lock of a table.
///
/// # Errors
///
/// The C library has no memory for it. The next call tries again.
#[inline]
pub(crate) fn watch() -> io::Result<()> {
    if WATCHED.load(Ordering::Acquire) { Ok(()) } else { register() }
}

/// Whether the handlers are registered. Not a `Once`: a child that is forked off while another thread is in one finds
/// it busy for ever. So two threads may register the handlers at once, or a child those that it has inherited, and then
/// they are called twice at each fork; see [`FORKS_NOW`].
static WATCHED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread is between the handlers, as it forks. Of handlers that were registered twice, the second
    /// ones find that their work has been done.
    static FORKS_NOW: Cell<bool> = const { Cell::new(false) };
}

#[cold]
fn register() -> io::Result<()> {
    // SAFETY: registers functions that may run in any thread that forks, any number of times for one fork.
    match unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) } {
        0 => {
            WATCHED.store(true, Ordering::Release);
            Ok(())
        }
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

extern "C" fn before() {
    if FORKS_NOW.replace(true) {
        return;
    }
    let frozen = Frozen {
        rows: join::freeze(),
        presence: presence::freeze(),
        reactor: reactor::freeze(),
        seats: presence::robust::freeze(),
        segments: segment::freeze(),
        _owners: reentrant::freeze(),
        _faults: memory::fault::freeze(),
    };
    // SAFETY: we have the locks, so no other thread is here.
    unsafe { *KEPT.0.get() = Some(frozen) };
}

/// Takes the locks back out.
fn kept() -> Option<Frozen> {
    // SAFETY: in the thread that stored them, which still has the locks.
    unsafe { (*KEPT.0.get()).take() }
}

extern "C" fn in_parent() {
    if FORKS_NOW.replace(false) {
        drop(kept());
    }
}

extern "C" fn in_child() {
    if !FORKS_NOW.replace(false) {
        return;
    }
    let Some(mut frozen) = kept() else { return };
    FORKS.fetch_add(1, Ordering::Relaxed);
    pid_lock::forget();
    // Of what the other threads had in their hands, nothing will ever be finished or freed.
    frozen.seats.forget();
    frozen.reactor.forget();
    frozen.presence.forget();
    frozen.rows.forget();
    frozen.segments.forget();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_that_are_registered_twice_act_once() {
        watch().unwrap();
        register().unwrap();
        let before = generation();
        // SAFETY: the child calls nothing but `_exit`, after the handlers, which are made for that.
        let child = match unsafe { libc::fork() } {
            0 => {
                let forks = generation() - before;
                // SAFETY: ends the child without anything that its parent would do at its end.
                unsafe { libc::_exit(i32::try_from(forks).unwrap_or(99)) }
            }
            child => child,
        };
        assert!(child > 0, "{}", io::Error::last_os_error());
        let mut status = 0;
        // SAFETY: the status is ours.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1, "{status:x}");
        assert_eq!(generation(), before, "the parent is no child");
        drop(segment::Segment::create(4_096).unwrap());
    }
}
